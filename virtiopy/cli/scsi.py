"""SCSI host devices of the command line: --scsi disk=PATH,...,cdrom=FILE,..."""

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from virtiopy.cli.attachments import ModeChoice, choose_mode, needs_storage_daemon
from virtiopy.cli.options import DeviceOptions, note
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError

if TYPE_CHECKING:
    from virtiopy.devices.scsi import Address, Scsi
    from virtiopy.devices.scsi.plugging import UnitAddresses
    from virtiopy.devices.scsi.spc import PrimaryUnit
    from virtiopy.host.disk import CacheMode, DiskImage
    from virtiopy.host.nbd import NbdDisk
    from virtiopy.vhost.user.rings import Lease

#: Digits of the serial number of a unit that was given none.
_SERIAL_DIGITS = 20

#: The mode in which the kernel has the units.
VHOST = "vhost"


def choose_scsi_mode(options: DeviceOptions, default: str) -> ModeChoice:
    """Return the mode: the kernel's target has one, which it has to have."""
    if options.text("vhost", ""):
        return ModeChoice(options.choice("mode", (VHOST,), VHOST))
    if options.text("mode", "") == VHOST:
        return ModeChoice(VHOST)
    return choose_mode(options, default)


def _build_vhost(wwpn: str, options: DeviceOptions) -> VirtioDevice:
    from virtiopy.vhost.kernel.scsi import KernelScsi

    if options.parts or options.text("queue-size", ""):
        other = options.parts[0][0] if options.parts else "queue-size"
        raise ConfigError(
            f"{options.option} vhost={wwpn} is the kernel's, which has its own {other}: leave one "
            "of them out."
        )
    return KernelScsi(wwpn, num_queues=options.number("queues", 1, 1, 64))


def _build_target(options: DeviceOptions) -> VirtioDevice:
    """Make a target of the kernel's of the images, for the device's life."""
    from virtiopy.host.target import ScsiTarget, TargetUnit
    from virtiopy.vhost.kernel.scsi import KernelScsi

    if options.text("queue-size", ""):
        raise ConfigError(f"{options.option} mode=vhost has queues of 128: leave queue-size out.")
    num_queues = options.number("queues", 1, 1, 64)
    addresses = _addresses(options)
    for kind, part in options.parts:
        if kind != "disk" or part.flag("readonly") or needs_storage_daemon(part):
            raise ConfigError(
                f"{options.option} mode=vhost has raw images that can be written: leave "
                f"{part.main} out, or use mode=ioeventfd."
            )
    with contextlib.ExitStack() as opened:
        units = []
        for address, (kind, part) in zip(addresses, options.parts, strict=True):
            if not part.main:
                raise ConfigError(f"{part.option} has {kind}= without an image: name one.")
            serial = _serial(part)
            rotational = part.flag("rotational", default=True)
            image = _open_raw(kind, part, claimed=True, files=None)
            opened.callback(image.close)
            units.append(TargetUnit(address.target, address.lun, image, serial, rotational))
        opened.pop_all()
    with contextlib.ExitStack() as opened:
        target = opened.enter_context(ScsiTarget(units))
        device = KernelScsi(target.wwpn, num_queues=num_queues, release=target.close)
        opened.pop_all()
    return device


def build_scsi(options: DeviceOptions) -> VirtioDevice:
    """Make a SCSI host device of `disk=PATH[,lun=N][,...]...[,queues=N]`, or of `vhost=WWPN`.

    In vhost mode the kernel's target has the disks.
    """
    if wwpn := options.text("vhost", ""):
        return _build_vhost(wwpn, options)
    if options.text("mode", "") == VHOST:
        return _build_target(options)
    device, _ = _build(options, claimed=True)
    return device


def build_served_scsi(options: DeviceOptions) -> "tuple[VirtioDevice, Lease | None]":
    """Make one to be served; its rings claim the images while they are worked."""
    if options.text("vhost", ""):
        raise ConfigError(
            f"{options.option} vhost= is the kernel's own: give it to the VMM as vhost-scsi."
        )
    device, images = _build(options, claimed=False)
    lease = _Lease(device, images)
    try:
        lease.claim()
    except ConfigError as error:
        note(f"{error} Until then no frontend can use it here.")
    lease.release()
    return device, lease


def connect_scsi(socket: Path, options: DeviceOptions) -> VirtioDevice:
    """Make the device that another process serves at a socket; raises ConfigError."""
    from virtiopy.vhost.user.scsi import open_scsi

    if options.parts:
        raise ConfigError(
            f"{options.option} is a vhost-user backend's, which has its own units: "
            f"leave {options.parts[0][0]} out here."
        )
    return open_scsi(socket)


class _Lease:
    """The images that a device began with: all of them are claimed, or none.

    One whose unit was unplugged is closed. Those that are plugged in later are claimed for good.
    """

    def __init__(self, device: "Scsi", images: "Mapping[PrimaryUnit, DiskImage]") -> None:
        self._device, self._images = device, images

    def _open(self) -> "Sequence[DiskImage]":
        plugged_in = set(self._device.units.values())
        return [image for unit, image in self._images.items() if unit in plugged_in]

    def claim(self) -> None:
        """Have them; raises ConfigError where another has one."""
        try:
            for image in self._open():
                image.claim()
        except ConfigError:
            self.release()
            raise

    def release(self) -> None:
        """Let others have them."""
        for image in self._open():
            image.release()


def _build(
    options: DeviceOptions, *, claimed: bool
) -> "tuple[Scsi, Mapping[PrimaryUnit, DiskImage]]":
    from virtiopy.devices.scsi import Scsi
    from virtiopy.virtqueue.layout import QUEUE_SIZE_MAX, valid_queue_size

    addresses = _addresses(options)
    queue_size = options.number("queue-size", 256, 4, QUEUE_SIZE_MAX)
    if not valid_queue_size(queue_size):
        raise ConfigError(f"{options.option} has queue-size={queue_size}: use a power of 2.")
    num_queues = options.number("queues", 1, 1, 64)
    units: dict[Address, PrimaryUnit] = {}
    images: dict[PrimaryUnit, DiskImage] = {}
    with contextlib.ExitStack() as opened:
        for address, (kind, part) in zip(addresses, options.parts, strict=True):
            unit, image = _open_unit(kind, part, claimed=claimed)
            opened.callback(unit.close)
            units[address] = unit
            if image is not None:
                _check_is_another(part, image, images.values())
                images[unit] = image
        device = Scsi(units, num_queues=num_queues, queue_size=queue_size)
        device.open_unit = functools.partial(_plug, dict(images))
        opened.pop_all()
    return device, images


def _check_is_another(
    part: DeviceOptions, image: "DiskImage", others: "Iterable[DiskImage]"
) -> None:
    """Raise ConfigError where two units would write one image.

    Claims find that out as well, which the images of a device that is served do not have yet.
    """
    for other in others:
        if image.readonly and other.readonly:
            continue
        if os.path.sameopenfile(image.fileno(), other.fileno()):
            raise ConfigError(
                f"{part.option} has two units on the image {image.path}: give each an image of "
                "its own, or readonly=on."
            )


def _addresses(options: DeviceOptions) -> "Sequence[Address]":
    """Return where each unit is to be; raises ConfigError, also where there is none."""
    if not options.parts:
        raise ConfigError(
            f"{options.option} has no unit: write it as in {options.option} disk=disk.img."
        )
    addresses: dict[Address, DeviceOptions] = {}
    for _, part in options.parts:
        addresses[_address(part, addresses)] = part
    return list(addresses)


def _address(part: DeviceOptions, taken: "UnitAddresses") -> "Address":
    """Return where a unit is to be, which has the first free LUN of its target by default."""
    from virtiopy.devices.scsi import Address
    from virtiopy.devices.scsi.features import LUN_MAX, TARGET_MAX

    target = part.number("target", 0, 0, TARGET_MAX)
    free = next((n for n in range(LUN_MAX + 1) if Address(target, n) not in taken), 0)
    address = Address(target, part.number("lun", free, 0, LUN_MAX))
    if address in taken:
        raise ConfigError(
            f"{part.option} has two units at target={target},lun={address.lun}: give each "
            "an address of its own."
        )
    return address


def _plug(
    images: "dict[PrimaryUnit, DiskImage]",
    text: str,
    taken: "UnitAddresses",
    files: Sequence[int],
) -> "tuple[Address, PrimaryUnit]":
    """Make a unit that is plugged in while the VM runs; `files` are of `open_for_plugging`.

    `images` has those of the units before it, and of some that are gone; its own is put there.
    """
    from virtiopy.cli.sandboxed import Sandbox

    kind, part = _single(text)
    if Sandbox.entered and len(files) != 2:
        remedy = (
            "convert it to a raw one, or start the run with --sandbox off"
            if needs_storage_daemon(part)
            else "plug it in with `virtiopy ctl`, which opens it"
        )
        raise ConfigError(f"The run is in a sandbox, where it opens no more images: {remedy}.")
    address = _address(part, taken)
    passed = (files[0], files[1]) if len(files) == 2 else None
    with contextlib.ExitStack() as opened:
        unit, image = _open_unit(kind, part, claimed=True, files=passed)
        opened.callback(unit.close)
        if image is not None:
            there = set(taken.values())
            _check_is_another(part, image, [one for of, one in images.items() if of in there])
            images[unit] = image
        opened.pop_all()
    return address, unit


def open_for_plugging(
    words: Mapping[str, str | None],
) -> tuple[Mapping[str, str | None], Sequence[int]]:
    """Open the image of a unit for a machine that may not; one of another format it opens itself.

    Raises ConfigError.
    """
    text = words["attach"]
    if not text:
        return words, ()
    kind, part = _single(text)
    if not part.main or needs_storage_daemon(part):
        return words, ()
    # The machine may be in another folder.
    escaped = os.path.realpath(part.main).replace(",", ",,")
    before = part.main.replace(",", ",,")
    words = {**words, "attach": text.replace(f"{kind}={before}", f"{kind}={escaped}", 1)}
    with _open_raw(kind, part, claimed=False, files=None) as image:
        return words, image.open_elsewhere()


def _single(text: str) -> tuple[str, DeviceOptions]:
    """Take a value apart that has one unit; raises ConfigError for another."""
    from virtiopy.cli.attachments import parse
    from virtiopy.devices.registry import entry_named

    options = parse(entry_named("scsi"), text)
    if len(options.parts) != 1 or options.keys:
        raise ConfigError(
            f"{text} is not one unit: write it as in disk=b.img,lun=1, with keys of its own alone."
        )
    [unit] = options.parts
    return unit


def _open_raw(
    kind: str, part: DeviceOptions, *, claimed: bool, files: tuple[int, int] | None
) -> "DiskImage":
    """Open a raw image, or take one that was opened elsewhere; raises ConfigError."""
    from virtiopy.host.disk import CacheMode, DiskImage

    return DiskImage(
        Path(part.main),
        readonly=kind == "cdrom" or part.flag("readonly"),
        cache=CacheMode(part.choice("cache", list(CacheMode), CacheMode.WRITEBACK)),
        any_content=kind == "cdrom" or bool(part.text("format", "")),
        claimed=claimed,
        files=files,
    )


def _open_unit(
    kind: str, part: DeviceOptions, *, claimed: bool, files: tuple[int, int] | None = None
) -> "tuple[PrimaryUnit, DiskImage | None]":
    """Open the image of a unit; raises ConfigError."""
    from virtiopy.devices.scsi import Cdrom, ScsiDisk
    from virtiopy.host.disk import CacheMode

    if not part.main:
        raise ConfigError(f"{part.option} has {kind}= without an image: name one.")
    serial = _serial(part)
    cache = CacheMode(part.choice("cache", list(CacheMode), CacheMode.WRITEBACK))
    # All that is read of the options is checked before anything is opened.
    rotational = part.flag("rotational", default=True)
    writeback = cache is not CacheMode.WRITETHROUGH
    if needs_storage_daemon(part):
        disk = _open_formatted(part, cache, readonly=True if kind == "cdrom" else None)
        if kind == "cdrom":
            return Cdrom(disk, serial=serial), None
        return ScsiDisk(disk, serial=serial, writeback=writeback, rotational=rotational), None
    image = _open_raw(kind, part, claimed=claimed, files=files)
    if kind == "cdrom":
        return Cdrom(image, serial=serial), image
    return ScsiDisk(image, serial=serial, writeback=writeback, rotational=rotational), image


def _open_formatted(part: DeviceOptions, cache: "CacheMode", *, readonly: bool | None) -> "NbdDisk":
    """Have qemu-storage-daemon serve an image of another format, and use it by NBD."""
    from virtiopy.cli.attachments import image_format
    from virtiopy.host.nbd import NbdDisk
    from virtiopy.host.storage import NBD_NAME, NbdImage, StorageDaemon

    if part.text("readonly", ""):
        readonly = part.flag("readonly")
    image = NbdImage(
        part.main,
        image_format(part),
        readonly=readonly,
        cache=cache,
        reaches=tuple(Path(name) for name in part.texts("reaches")),
    )
    with contextlib.ExitStack() as opened:
        daemon = opened.enter_context(StorageDaemon(image))
        disk = NbdDisk(daemon.connect, NBD_NAME, release=daemon.close)
        opened.pop_all()
    return disk


def _serial(part: DeviceOptions) -> str:
    """Return a unit's serial number; raises ConfigError."""
    from virtiopy.devices.scsi.spc import SERIAL_MAX

    serial = part.text("serial", "") or _serial_of(part.main)
    if not serial.isascii() or not serial.isprintable() or len(serial) > SERIAL_MAX:
        raise ConfigError(
            f"{part.option} has serial={serial}: use up to {SERIAL_MAX} ASCII characters."
        )
    return serial


def _serial_of(path: str) -> str:
    """Return a serial number that another image does not have, and this one always has."""
    # Not Path.resolve(), which raises an error for links that lead round in a circle.
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:_SERIAL_DIGITS]

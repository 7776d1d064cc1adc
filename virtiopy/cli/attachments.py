"""Devices of the command line: the value of a device's option, and what is built of it.

Which devices there are, and their options, says `virtiopy/devices/registry.py`.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from virtiopy.cli.options import DeviceOptions, is_text, note, parse_mode, parse_size
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.entry import DeviceEntry, find
from virtiopy.errors import ConfigError
from virtiopy.host.limits import OUTPUT_LIMIT
from virtiopy.sockets import OWNER_ONLY

if TYPE_CHECKING:
    from virtiopy.devices.streams import Stream
    from virtiopy.host.disk import CacheMode
    from virtiopy.vhost.user.rings import Lease
    from virtiopy.vm.slots import IoMode

    _Build: TypeAlias = Callable[[DeviceOptions], VirtioDevice]
    _BuildServed: TypeAlias = Callable[[DeviceOptions], tuple[VirtioDevice, Lease | None]]
    _ChooseMode: TypeAlias = Callable[[DeviceOptions, str], "ModeChoice"]
    _OpenVhostUser: TypeAlias = Callable[[Path, DeviceOptions], VirtioDevice]


#: How a value begins that names a backend's socket in place of an image.
VHOST_USER = "vhost-user="

#: The keys of a backend's device that are the frontend's to set.
_FRONTENDS_KEYS = {"vhost-user", "mac", "tag"}

#: The longest that vhost may poll before it sleeps, microseconds.
POLL_MAX = 1_000_000


@dataclass(slots=True, frozen=True)
class ModeChoice:
    """The mode of a device; where it is not required, another will do that can be had.

    A `quiet` one is the default: the user did not ask for it, and need not hear why it is not had.
    """

    mode: str
    required: bool = True
    quiet: bool = False


#: The best mode that a device can be had in, where none is asked for.
AUTO = "auto"


def vhost_user_path(options: DeviceOptions) -> Path | None:
    """Return the socket of `vhost-user=SOCKET`, in whose place in the value it is; None without.

    Raises ConfigError for keys that are the backend's to set.
    """
    given = options.keys
    if options.main.startswith(VHOST_USER):
        path = options.main.removeprefix(VHOST_USER)
    elif "vhost-user" in given:
        path = options.text("vhost-user", "")
    else:
        return None
    if others := [key for key in given if key not in _FRONTENDS_KEYS]:
        raise ConfigError(
            f"{options.option} is a vhost-user backend's, which has its own {others[0]}: "
            "leave it out here."
        )
    return Path(path)


def choose_mode(options: DeviceOptions, default: str) -> ModeChoice:
    """Return the device's own mode, or else the VM's."""
    if vhost_user_path(options) is not None:
        return ModeChoice("vhost-user")
    mode = options.choice("mode", ("trapped", "ioeventfd"), _without_native(default))
    return ModeChoice(mode)


def _without_native(default: str) -> str:
    return "ioeventfd" if default in {AUTO, "native"} else default


def choose_disk_mode(options: DeviceOptions, default: str) -> ModeChoice:
    """Return the mode of a disk; one that qemu-storage-daemon serves has no choice."""
    if vhost_user_path(options) is not None:
        return ModeChoice("vhost-user")
    if needs_storage_daemon(options):
        return ModeChoice(options.choice("mode", ("vhost-user",), "vhost-user"))
    mode = options.choice("mode", ("trapped", "ioeventfd", "native", AUTO), default)
    return ModeChoice("native", required=False, quiet=True) if mode == AUTO else ModeChoice(mode)


def choose_net_mode(options: DeviceOptions, default: str) -> ModeChoice:
    """Return the mode of a network device: `vhost=on` is another word for `mode=vhost`."""
    if vhost_user_path(options) is not None:
        return ModeChoice("vhost-user")
    modes = ("trapped", "ioeventfd", "native", "vhost", AUTO)
    vhost, mode = options.text("vhost", ""), options.text("mode", "")
    chosen = options.choice("mode", modes, default)
    if vhost:
        options.choice("vhost", ("on", "off", "auto"), vhost)
        if mode and (vhost == "auto" or (vhost == "on") != (mode == "vhost")):
            raise ConfigError(f"--net has vhost={vhost} and mode={mode}: leave one of them out.")
        if vhost != "off":
            return ModeChoice("vhost", required=vhost == "on")
    if chosen == AUTO or (chosen == "native" and not mode):
        return ModeChoice("native", required=False, quiet=chosen == AUTO)
    return ModeChoice(chosen)


def choose_vsock_mode(options: DeviceOptions, default: str) -> ModeChoice:
    """Return the mode of a socket device."""
    if vhost_user_path(options) is not None:
        return ModeChoice("vhost-user")
    modes = ("trapped", "ioeventfd", "vhost")
    return ModeChoice(options.choice("mode", modes, _without_native(default)))


def parse(entry: DeviceEntry, text: str, called: str = "") -> DeviceOptions:
    """Take a value of a device's option apart; raises ConfigError.

    Users know the option by its own name, or by what it is `called` where it has none.
    """
    option = entry.option
    if not option.has_main and text:
        text = f",{text}"
    keys = (*option.keys, "mode")
    return DeviceOptions(called or option.name, text, keys, option.repeatable, option.parts)


def mode_of(entry: DeviceEntry, options: DeviceOptions, default: str) -> ModeChoice:
    """Find a device's mode out from its option's value, given the VM's; raises ConfigError."""
    if entry.choose_mode is None:
        return choose_mode(options, default)
    return cast("_ChooseMode", find(entry.choose_mode))(options, default)


def build(entry: DeviceEntry, options: DeviceOptions) -> VirtioDevice:
    """Make a device; raises ConfigError, with the remedy, and HostError."""
    if (socket := vhost_user_path(options)) is None:
        return cast("_Build", find(entry.build))(options)
    if entry.vhost_user is None:
        raise ConfigError(
            f"virtiopy has no {entry.kind} that another process serves: leave vhost-user= out."
        )
    return cast("_OpenVhostUser", find(entry.vhost_user))(socket, options)


def builder(entry: DeviceEntry, text: str) -> "Callable[[IoMode], VirtioDevice]":
    """Return what makes the device of an option's value that names no mode, for each mode."""

    def build_in(mode: "IoMode") -> VirtioDevice:
        words = f"{text},mode={mode.value}" if mode.value in entry.built_in else text
        return build(entry, parse(entry, words))

    return build_in


def build_served(entry: DeviceEntry, options: DeviceOptions) -> "tuple[VirtioDevice, Lease | None]":
    """Make a device to be served, and what its rings claim while they are worked.

    Raises as `build` does.
    """
    if entry.build_served is None:
        return build(entry, options), None
    return cast("_BuildServed", find(entry.build_served))(options)


def build_disk(options: DeviceOptions) -> VirtioDevice:
    """Make a block device of `PATH[,readonly=on][,cache=MODE][,...]`."""
    from virtiopy.devices.blk import ID_BYTES, Blk
    from virtiopy.devices.diskbacking import POLL_US
    from virtiopy.host.disk import CacheMode, DiskImage
    from virtiopy.virtqueue.layout import QUEUE_SIZE_MAX, valid_queue_size

    cache = CacheMode(options.choice("cache", list(CacheMode), CacheMode.WRITEBACK))
    if needs_storage_daemon(options):
        return build_formatted_disk(options, cache)
    queue_size = options.number("queue-size", 256, 4, QUEUE_SIZE_MAX)
    if not valid_queue_size(queue_size):
        raise ConfigError(f"{options.option} has queue-size={queue_size}: use a power of 2.")
    serial = options.text("serial", "")
    if not serial.isascii() or len(serial) > ID_BYTES:
        raise ConfigError(
            f"{options.option} has serial={serial}: use up to {ID_BYTES} ASCII characters."
        )
    num_queues = options.number("queues", 1, 1, 64)
    disk = DiskImage(
        Path(options.main),
        readonly=options.flag("readonly"),
        cache=cache,
        any_content=bool(options.text("format", "")),
        claimed=options.flag("claimed", default=True),
    )
    return Blk(
        disk,
        serial=serial,
        writeback=cache is not CacheMode.WRITETHROUGH,
        num_queues=num_queues,
        queue_size=queue_size,
        threads=options.number("workers", 1, 1, num_queues),
        poll_us=options.number("poll-us", POLL_US, 0, POLL_MAX),
    )


#: How large the rings of a disk that is served are taken to be, by which its driver is told how
#: many segments a request may have (seg_max): it asks before the frontend has said. QEMU and
#: cloud-hypervisor have as many.
SERVED_QUEUE_SIZE = "128"


def build_served_disk(options: DeviceOptions) -> "tuple[VirtioDevice, Lease | None]":
    """Make a block device to be served; its rings claim the image while they are worked."""
    from virtiopy.devices.blk import Blk
    from virtiopy.host.disk import DiskImage

    if needs_storage_daemon(options):
        raise ConfigError(
            f"{options.main} is no raw image: qemu-storage-daemon can serve it over vhost-user."
        )
    options.prefer("queue-size", SERVED_QUEUE_SIZE)
    options.prefer("claimed", "off")
    device = build_disk(options)
    assert isinstance(device, Blk)
    if not isinstance(device.disk, DiskImage):
        return device, None
    try:
        device.disk.claim()
    except ConfigError as error:
        note(f"{error} Until then no frontend can use it here.")
    device.disk.release()
    return device, device.disk


def needs_storage_daemon(options: DeviceOptions) -> bool:
    """Say whether an image is not a raw file, which virtiopy reads itself."""
    from virtiopy.host.storage import is_url

    return image_format(options) != "raw" or is_url(options.main)


def image_format(options: DeviceOptions) -> str:
    """Return an image's format, by its name or as it was given: never by what is in the image."""
    from virtiopy.host.storage import FORMATS, format_of

    return options.choice("format", FORMATS, format_of(options.main))


def build_formatted_disk(options: DeviceOptions, cache: "CacheMode") -> VirtioDevice:
    """Have qemu-storage-daemon serve an image, and make the block device that this is."""
    from virtiopy.host.storage import Image, StorageDaemon
    from virtiopy.vhost.user.device import QUEUES_MAX, VhostUserBlk

    for key in ("serial", "queue-size"):
        if options.text(key, ""):
            raise ConfigError(
                f"{options.option} has {key}=..., which qemu-storage-daemon cannot set: leave "
                "it out, or convert the image to a raw one."
            )
    image = Image(
        options.main,
        image_format(options),
        readonly=options.flag("readonly") if options.text("readonly", "") else None,
        cache=cache,
        num_queues=options.number("queues", 1, 1, QUEUES_MAX),
        reaches=tuple(Path(name) for name in options.texts("reaches")),
    )
    with contextlib.ExitStack() as opened:
        daemon = opened.enter_context(StorageDaemon(image))
        device = VhostUserBlk(daemon.connect(), daemon.connect, release=daemon.close)
        opened.pop_all()
    return device


def connect_disk(socket: Path, options: DeviceOptions) -> VirtioDevice:
    """Make the block device that another process serves at a socket; raises ConfigError."""
    from virtiopy.vhost.user.device import open_blk

    return open_blk(socket)


def build_rng(options: DeviceOptions) -> VirtioDevice:
    """Make an entropy device."""
    from virtiopy.devices.rng import Rng

    return Rng()


def build_balloon(options: DeviceOptions) -> VirtioDevice:
    """Make a balloon of `[target=SIZE][,stats=SECONDS][,...]`."""
    from virtiopy.devices.balloon import Balloon

    return Balloon(
        target=parse_size(options.text("target", "0")),
        statistics_interval=options.number("stats", 0, 0, 86400),
        deflate_on_oom=options.flag("deflate-on-oom"),
    )


def build_console(options: DeviceOptions) -> VirtioDevice:
    """Make a console device of `TARGET[,port=NAME:TARGET]...[,wait=on][,limit=SIZE][,...]`."""
    from virtiopy.devices.console import Console
    from virtiopy.devices.streams import Stream

    wait = options.flag("wait")
    mode = parse_mode(options.text("socket-mode", f"{OWNER_ONLY:o}"))
    limit = _limit(options, "limit")
    with contextlib.ExitStack() as opened:

        def open_stream(text: str) -> Stream:
            stream = open_target(text, wait=wait, socket_mode=mode, limit=limit)
            opened.callback(stream.close)
            return stream

        stream = open_stream(options.main)
        channels: dict[str, Stream] = {}
        for text in options.texts("port"):
            name, _, target = text.partition(":")
            if not name or not target or name in channels or not is_text(name):
                raise ConfigError(
                    f"--console has port={text}: give each port a name of its own and a "
                    "target, as in port=org.example.agent:socket:agent.sock."
                )
            channels[name] = open_stream(target)
        console = Console(stream, channels)
        opened.pop_all()
    return console


def _limit(options: DeviceOptions, key: str) -> int:
    """Return how many bytes a guest may fill a file with."""
    return parse_size(text) if (text := options.text(key, "")) else OUTPUT_LIMIT


def open_target(
    text: str,
    *,
    wait: bool,
    socket_mode: int = OWNER_ONLY,
    limit: int = OUTPUT_LIMIT,
    option: str = "--console",
    others: str = "",
) -> "Stream":
    """Open the host's side of a port; a pseudoterminal's name is printed.

    `option` is where the user wrote `text`, which may be one of `others` besides, for messages.
    """
    import click

    from virtiopy.host.stream import FileStream, PtyStream, SocketStream
    from virtiopy.host.terminal import StdioStream

    kind, colon, rest = text.partition(":")
    if kind == "stdio" and not colon:
        return StdioStream()
    if kind == "pty":
        stream = PtyStream(Path(rest) if rest else None, wait=wait)
        click.echo(f"virtiopy: {stream.path} is a console's terminal", err=True)
        return stream
    if kind == "socket" and rest:
        return SocketStream(Path(rest), wait=wait, mode=socket_mode)
    if kind == "file" and rest:
        return FileStream(Path(rest), limit=limit)
    raise ConfigError(
        f"{option} has {text!r}: use one of {others}stdio, pty, pty:LINK, socket:PATH, file:PATH."
    )


def build_net(options: DeviceOptions) -> VirtioDevice:
    """Make a network device of `tap=NAME[,create=on][,address=ADDRESS][,...]`."""
    from virtiopy.devices.net import FrameLink, Net, RecordedLink
    from virtiopy.host.pcap import PcapFile
    from virtiopy.host.tap import Tap
    from virtiopy.host.tapconfig import (
        MTU_MAX,
        MTU_MIN,
        QUEUES_MAX,
        TapConfig,
        default_mac,
        parse_address,
        parse_mac,
    )

    name, option = options.word("tap", ""), options.option
    if not name:
        raise ConfigError(f"{option} has no tap: write it as in {option} tap=tap0,create=on.")
    config = TapConfig(
        name,
        create=options.flag("create"),
        address=parse_address(text) if (text := options.text("address", "")) else None,
        bridge=options.word("bridge", "") or None,
        mtu=options.number("mtu", MTU_MIN, MTU_MIN, MTU_MAX) if options.text("mtu", "") else None,
        netns=options.word("netns", "") or None,
        queues=options.number("queues", 1, 1, QUEUES_MAX),
    )
    mac = parse_mac(text) if (text := options.text("mac", "")) else default_mac(config)
    record = options.text("pcap", "")
    with contextlib.ExitStack() as opened:
        link: FrameLink = opened.enter_context(contextlib.closing(Tap(config)))
        if record:
            pcap = PcapFile(Path(record), name, _limit(options, "pcap-limit"))
            file = opened.enter_context(contextlib.closing(pcap))
            link = RecordedLink(link, file)
        polls = bool(options.text("poll-us", ""))
        busy_poll = options.number("poll-us", 0, 0, POLL_MAX) if polls else None
        device = Net(link, mac=mac, busy_poll=busy_poll)
        opened.pop_all()
    return device


def build_share(options: DeviceOptions) -> VirtioDevice:
    """Make a 9P device of `PATH,tag=NAME[,readonly=on]`."""
    from virtiopy.devices.ninep import TAG_MAX, NineP
    from virtiopy.host.share import Share

    tag = options.text("tag", "")
    if not tag or not is_text(tag) or len(tag.encode()) > TAG_MAX:
        raise ConfigError(
            f"{options.option} has tag={tag}: give it a name of up to {TAG_MAX} bytes, by which "
            f"the guest mounts it, as in {options.option} folder,tag=files."
        )
    return NineP(Share(options.folder, readonly=options.flag("readonly")), tag)


def connect_share(socket: Path, options: DeviceOptions) -> VirtioDevice:
    """Make the 9P device that another process serves at a socket; raises ConfigError."""
    from virtiopy.vhost.user.ninep import open_ninep

    if "tag" in options.keys:
        raise ConfigError(
            f"{options.option} is a vhost-user backend's, which has its own tag: leave it out here."
        )
    return open_ninep(socket)


def build_vsock(options: DeviceOptions) -> VirtioDevice:
    """Make a socket device of `cid=N,path=SOCKET[,seqpacket=SOCKET][,socket-mode=MODE]`."""
    from virtiopy.devices.vsock import Vsock
    from virtiopy.devices.vsock.commands import parse_cid
    from virtiopy.host.vsock import HybridSockets

    option = options.option
    cid = parse_cid(options.text("cid", ""), f"{option} has cid")
    path = options.text("path", "")
    if not path:
        if options.text("mode", "") != "vhost":
            raise ConfigError(f"{option} has no path: write it as in {option} cid=3,path=vm.sock.")
        # The kernel has sockets of its own.
        return Vsock(cid)
    seqpacket = options.text("seqpacket", "")
    sockets = HybridSockets(
        Path(path),
        seqpacket=Path(seqpacket) if seqpacket else None,
        mode=parse_mode(options.text("socket-mode", f"{OWNER_ONLY:o}")),
    )
    return Vsock(cid, sockets)


def connect_vsock(socket: Path, options: DeviceOptions) -> VirtioDevice:
    """Make the socket device that another process serves at a socket; raises ConfigError."""
    from virtiopy.vhost.user.vsock import open_vsock

    return open_vsock(socket)


def connect_net(socket: Path, options: DeviceOptions) -> VirtioDevice:
    """Make the network device that another process serves at a socket; raises ConfigError."""
    from virtiopy.host.tapconfig import parse_mac
    from virtiopy.vhost.user.device import open_net

    return open_net(socket, parse_mac(text) if (text := options.text("mac", "")) else None)

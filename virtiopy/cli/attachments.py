"""The devices that a command line can attach: each is an option and what builds the device.

A new device is one more line in ATTACHMENTS.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from virtiopy.cli.options import DeviceOptions, is_text, parse_size
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError

if TYPE_CHECKING:
    from virtiopy.devices.streams import Stream
    from virtiopy.host.disk import CacheMode


#: How a value begins that names a backend's socket in place of an image.
VHOST_USER = "vhost-user="

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


def _auto(mode: str) -> ModeChoice:
    return ModeChoice(mode, required=False, quiet=True)


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
    if others := [key for key in given if key not in {"vhost-user", "mac"}]:
        raise ConfigError(
            f"{options.option} is a vhost-user backend's, which has its own {others[0]}: "
            "leave it out here."
        )
    return Path(path)


def choose_mode(options: DeviceOptions, default: str) -> ModeChoice:
    """Return the device's own mode, or else the VM's."""
    if vhost_user_path(options) is not None:
        return ModeChoice("vhost-user")
    mode = options.choice("mode", ("trapped", "ioeventfd"), _without_auto(default))
    return ModeChoice(mode)


def _without_auto(default: str) -> str:
    return "ioeventfd" if default in {AUTO, "native"} else default


def choose_disk_mode(options: DeviceOptions, default: str) -> ModeChoice:
    """Return the mode of a disk; one that qemu-storage-daemon serves has no choice."""
    if vhost_user_path(options) is not None:
        return ModeChoice("vhost-user")
    if needs_storage_daemon(options):
        return ModeChoice(options.choice("mode", ("vhost-user",), "vhost-user"))
    mode = options.choice("mode", ("trapped", "ioeventfd", "native", AUTO), default)
    return _auto("native") if mode == AUTO else ModeChoice(mode)


def choose_net_mode(options: DeviceOptions, default: str) -> ModeChoice:
    """Return the mode of a network device: `vhost=on` is another word for `mode=vhost`."""
    if vhost_user_path(options) is not None:
        return ModeChoice("vhost-user")
    modes = ("trapped", "ioeventfd", "vhost")
    vhost, mode = options.text("vhost", ""), options.text("mode", "")
    default = _without_auto(default)
    if not vhost:
        return ModeChoice(options.choice("mode", modes, default))
    options.choice("vhost", ("on", "off", "auto"), vhost)
    options.choice("mode", modes, mode or default)
    if mode and (vhost == "auto" or (vhost == "on") != (mode == "vhost")):
        raise ConfigError(f"--net has vhost={vhost} and mode={mode}: leave one of them out.")
    if vhost == "off":
        return ModeChoice(mode or default)
    return ModeChoice("vhost", required=vhost == "on")


@dataclass(slots=True, frozen=True)
class Attachment:
    """An option: its name, the prefix of its devices' names, how it is written, its builder.

    `keys` may follow the first part of its value as key=value, `repeatable` ones several times;
    every device knows `mode` too. Without `has_main` there is no first part: the value is
    key=value,... and may be left out.
    `build` is given the value, taken apart; it raises ConfigError with a remedy.
    """

    option: str
    prefix: str
    metavar: str
    help: str
    keys: tuple[str, ...]
    build: Callable[[DeviceOptions], VirtioDevice]
    has_main: bool = True
    repeatable: tuple[str, ...] = ()
    #: Finds the mode out from the value, given the VM's; raises ConfigError.
    choose_mode: Callable[[DeviceOptions, str], ModeChoice] = choose_mode

    def parse(self, text: str) -> DeviceOptions:
        """Take a value of the option apart; raises ConfigError."""
        if not self.has_main and text:
            text = f",{text}"
        return DeviceOptions(self.option, text, (*self.keys, "mode"), self.repeatable)


def build_disk(options: DeviceOptions) -> VirtioDevice:
    """Make a block device of `PATH[,readonly=on][,cache=MODE][,...]`."""
    from virtiopy.devices.blk import ID_BYTES, POLL_US, Blk
    from virtiopy.host.disk import CacheMode, DiskImage
    from virtiopy.virtqueue.layout import QUEUE_SIZE_MAX, valid_queue_size

    if (socket := vhost_user_path(options)) is not None:
        from virtiopy.vhost.user.device import open_blk

        return open_blk(socket)
    cache = CacheMode(options.choice("cache", list(CacheMode), CacheMode.WRITEBACK))
    if needs_storage_daemon(options):
        return build_formatted_disk(options, cache)
    queue_size = options.number("queue-size", 256, 4, QUEUE_SIZE_MAX)
    if not valid_queue_size(queue_size):
        raise ConfigError(f"--disk has queue-size={queue_size}: use a power of 2.")
    serial = options.text("serial", "")
    if not serial.isascii() or len(serial) > ID_BYTES:
        raise ConfigError(f"--disk has serial={serial}: use up to {ID_BYTES} ASCII characters.")
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
                f"--disk has {key}=..., which qemu-storage-daemon cannot set: leave it out, or "
                "convert the image to a raw one."
            )
    image = Image(
        options.main,
        image_format(options),
        readonly=options.flag("readonly") if options.text("readonly", "") else None,
        cache=cache,
        num_queues=options.number("queues", 1, 1, QUEUES_MAX),
    )
    with contextlib.ExitStack() as opened:
        daemon = opened.enter_context(StorageDaemon(image))
        device = VhostUserBlk(daemon.connect(), daemon.connect, release=daemon.close)
        opened.pop_all()
    return device


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
    """Make a console device of `TARGET[,port=NAME:TARGET]...[,wait=on]`."""
    from virtiopy.devices.console import Console
    from virtiopy.devices.streams import Stream

    wait = options.flag("wait")
    with contextlib.ExitStack() as opened:

        def open_stream(text: str) -> Stream:
            stream = open_target(text, wait=wait)
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


def open_target(text: str, *, wait: bool) -> "Stream":
    """Open the host's side of a port; a pseudoterminal's name is printed."""
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
        return SocketStream(Path(rest), wait=wait)
    if kind == "file" and rest:
        return FileStream(Path(rest))
    raise ConfigError(
        f"--console has {text!r}: use one of stdio, pty, pty:LINK, socket:PATH, file:PATH."
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

    if (socket := vhost_user_path(options)) is not None:
        from virtiopy.vhost.user.device import open_net

        return open_net(socket, parse_mac(text) if (text := options.text("mac", "")) else None)
    name = options.word("tap", "")
    if not name:
        raise ConfigError("--net has no tap: write it as in --net tap=tap0,create=on.")
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
            file = opened.enter_context(contextlib.closing(PcapFile(Path(record), name)))
            link = RecordedLink(link, file)
        device = Net(link, mac=mac, busy_poll=options.number("poll-us", 0, 0, POLL_MAX))
        opened.pop_all()
    return device


ATTACHMENTS = [
    Attachment(
        "--disk",
        "blk",
        "PATH|URL[,format=FORMAT][,readonly=on][,cache=writeback|writethrough|none][,serial=ID]"
        "[,queues=N][,queue-size=N][,workers=N][,poll-us=N]"
        "[,mode=trapped|ioeventfd|native|auto], or vhost-user=SOCKET",
        "Attach a raw image or block device; or one that another process serves at a socket. "
        "`workers` threads in C work its queues in native mode, one a queue at most; each polls "
        "for up to `poll-us` microseconds before it sleeps. "
        "Images in another format, by the file's name or `format`, as qcow2, vmdk, vhdx or vdi, "
        "and http and nbd URLs, are served by qemu-storage-daemon.",
        (
            *("readonly", "cache", "serial", "queues", "queue-size", "format"),
            *("workers", "poll-us"),
        ),
        build_disk,
        choose_mode=choose_disk_mode,
    ),
    Attachment(
        "--rng",
        "rng",
        "[mode=trapped|ioeventfd]",
        "Attach an entropy device.",
        (),
        build_rng,
        has_main=False,
    ),
    Attachment(
        "--balloon",
        "balloon",
        "[target=SIZE][,stats=SECONDS][,deflate-on-oom=on][,mode=trapped|ioeventfd]",
        "Attach a memory balloon.",
        ("target", "stats", "deflate-on-oom"),
        build_balloon,
        has_main=False,
    ),
    Attachment(
        "--console",
        "console",
        "TARGET[,port=NAME:TARGET]...[,wait=on][,mode=trapped|ioeventfd]",
        "Attach a console whose host's side is TARGET: stdio (Ctrl-a x ends the run), pty[:LINK], "
        "socket:PATH or file:PATH; `port` adds a named channel. Output that finds nobody at a "
        "pty or socket is dropped, or with wait=on held for the first who comes.",
        ("wait",),
        build_console,
        repeatable=("port",),
    ),
    Attachment(
        "--net",
        "net",
        "tap=NAME[,create=on][,address=IP/PREFIX][,bridge=NAME][,netns=NAME][,mac=MAC][,mtu=N]"
        "[,queues=N][,pcap=FILE][,vhost=on|off|auto][,poll-us=N]"
        "[,mode=trapped|ioeventfd|vhost], or vhost-user=SOCKET[,mac=MAC]",
        "Attach a network device to a tap, which is there or with create=on is made and taken "
        "away again. `pcap` records its frames. vhost=on has the kernel's vhost-net work the "
        "rings, vhost=auto where that can be had. vhost-user=SOCKET attaches one that another "
        "process serves.",
        (
            *("tap", "create", "address", "bridge", "netns", "mac", "mtu", "queues", "pcap"),
            *("vhost", "poll-us", "vhost-user"),
        ),
        build_net,
        has_main=False,
        choose_mode=choose_net_mode,
    ),
]

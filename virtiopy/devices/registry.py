"""The devices that virtiopy has: one entry each.

A new device is a file in this folder, an entry in _OWN, a guest driver and a test module. The rest
follows from the entry: its option of `virtiopy run`, its name for `serve`, `exits` and
`conformance`, the names of its feature bits, its facts in `ctl`.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from virtiopy.devices.base import DeviceCommand
from virtiopy.devices.entry import (
    DeviceEntry,
    Direction,
    LinuxCounter,
    Option,
    Workload,
)
from virtiopy.errors import ConfigError
from virtiopy.spec import DeviceId

_CLI = "virtiopy.cli.attachments"
_RIGS = "virtiopy.conformance.targets.builders"
_SUITE = "virtiopy.conformance.drivers"

#: The host's port at which a program takes what `virtiopy exits` has a guest send.
SINK_PORT = 5201

_OWN = (
    DeviceEntry(
        name="blk",
        device_id=DeviceId.BLOCK,
        kind="block device",
        device="virtiopy.devices.blk:Blk",
        option=Option(
            "--disk",
            "PATH|URL[,format=FORMAT][,readonly=on][,cache=writeback|writethrough|none][,serial=ID]"
            "[,reaches=PATH]...[,queues=N][,queue-size=N][,workers=N][,poll-us=N]"
            "[,mode=trapped|ioeventfd|native|auto], or vhost-user=SOCKET",
            "Attach a raw image or block device; or one that another process serves at a socket. "
            "In native mode `workers` threads in C work its queues, one a queue at most, and each "
            "polls for up to `poll-us` microseconds before it sleeps. "
            "Images in another format, by the file's name or `format`, as qcow2, vmdk, vhdx or "
            "vdi, and http and nbd URLs, are served by qemu-storage-daemon; each file that such an "
            "image names, as a backing file, has to be named by `reaches`.",
            keys=(
                *("readonly", "cache", "serial", "queues", "queue-size", "format"),
                *("workers", "poll-us"),
            ),
            repeatable=("reaches",),
        ),
        build=f"{_CLI}:build_disk",
        build_served=f"{_CLI}:build_served_disk",
        choose_mode=f"{_CLI}:choose_disk_mode",
        vhost_user=f"{_CLI}:connect_disk",
        needs="virtiopy.cli.sandboxed:needs_of_disk",
        workload=Workload(
            "PATH[,cache=MODE]...",
            "Measure a block device on this image, by random reads of 4 KiB. It is opened for "
            "reading, and nothing on it changes.",
            unit="read",
            count=1_000,
            directions={
                "read": Direction("of 4 KiB", "blk.requests={count} blk.depth={depth}"),
            },
            adds={"readonly": "on"},
        ),
        suite_driver=f"{_SUITE}.blk:BlkDriver",
        rigs={
            "blk": f"{_RIGS}:build_blk",
            "blk-readonly": f"{_RIGS}:build_readonly_blk",
            "blk-writethrough": f"{_RIGS}:build_writethrough_blk",
        },
        judge="virtiopy.check.blk:BlkJudge",
        linux_modules=("virtio_blk", "ext4", "crc32c_generic"),
        linux_counter=LinuxCounter(
            # Documentation/block/stat.rst: reads, writes, discards and flushes that are done.
            "request",
            "awk '{ print $1 + $5 + $12 + $16 }' /sys/block/vda/stat",
        ),
    ),
    DeviceEntry(
        name="rng",
        device_id=DeviceId.ENTROPY,
        kind="entropy device",
        device="virtiopy.devices.rng:Rng",
        option=Option(
            "--rng", "[mode=trapped|ioeventfd]", "Attach an entropy device.", has_main=False
        ),
        build=f"{_CLI}:build_rng",
        suite_driver=f"{_SUITE}.rng:RngDriver",
        rigs={"rng": f"{_RIGS}:build_rng"},
        judge="virtiopy.check.rng:RngJudge",
        linux_modules=("virtio_rng",),
    ),
    DeviceEntry(
        name="balloon",
        device_id=DeviceId.BALLOON,
        kind="balloon",
        device="virtiopy.devices.balloon:Balloon",
        option=Option(
            "--balloon",
            "[target=SIZE][,stats=SECONDS][,deflate-on-oom=on][,mode=trapped|ioeventfd]",
            "Attach a memory balloon.",
            keys=("target", "stats", "deflate-on-oom"),
            has_main=False,
        ),
        build=f"{_CLI}:build_balloon",
        # Its pages are the frontend's to give back to the host.
        served=False,
        suite_driver=f"{_SUITE}.balloon:BalloonDriver",
        rigs={"balloon": f"{_RIGS}:build_balloon"},
        judge="virtiopy.check.balloon:BalloonJudge",
        linux_modules=("virtio_balloon",),
    ),
    DeviceEntry(
        name="console",
        device_id=DeviceId.CONSOLE,
        kind="console",
        device="virtiopy.devices.console:Console",
        option=Option(
            "--console",
            "TARGET[,port=NAME:TARGET]...[,wait=on][,socket-mode=MODE][,limit=SIZE]"
            "[,mode=trapped|ioeventfd]",
            "Attach a console whose host's side is TARGET: stdio (Ctrl-a x ends the run), "
            "pty[:LINK], socket:PATH or file:PATH; `port` adds a named channel. Output for a pty "
            "or socket that no process has open is dropped, or with wait=on held for the first "
            "that opens it. A socket is its owner's alone, or what socket-mode=0660 says. A file "
            "grows up to 1G, or `limit`.",
            keys=("wait", "socket-mode", "limit"),
            repeatable=("port",),
        ),
        build=f"{_CLI}:build_console",
        needs="virtiopy.cli.sandboxed:needs_of_console",
        suite_driver=f"{_SUITE}.console:ConsoleDriver",
        rigs={"console": f"{_RIGS}:build_console"},
        judge="virtiopy.check.console:ConsoleJudge",
        linux_modules=("virtio_console",),
    ),
    DeviceEntry(
        name="net",
        device_id=DeviceId.NETWORK,
        kind="network device",
        device="virtiopy.devices.net:Net",
        option=Option(
            "--net",
            "tap=NAME[,create=on][,address=IP/PREFIX][,bridge=NAME][,netns=NAME][,mac=MAC][,mtu=N]"
            "[,queues=N][,pcap=FILE][,pcap-limit=SIZE][,vhost=on|off|auto][,poll-us=N]"
            "[,mode=trapped|ioeventfd|native|vhost|auto], or vhost-user=SOCKET[,mac=MAC]",
            "Attach a network device to a tap, which is there or with create=on is made and taken "
            "away again. `pcap` records its frames. vhost=on has the kernel's vhost-net work the "
            "rings, vhost=auto where that can be had. vhost-user=SOCKET attaches one that another "
            "process serves.",
            keys=(
                *("tap", "create", "address", "bridge", "netns", "mac", "mtu", "queues", "pcap"),
                *("pcap-limit", "vhost", "poll-us", "vhost-user"),
            ),
            has_main=False,
        ),
        build=f"{_CLI}:build_net",
        choose_mode=f"{_CLI}:choose_net_mode",
        vhost_user=f"{_CLI}:connect_net",
        workload=Workload(
            "tap=NAME[,create=on][,netns=NAME]...",
            "Measure a network device, on this tap: written as for `virtiopy run`.",
            unit="packet",
            count=10_000,
            directions={
                "send": Direction(
                    "sent", "net.mode=measure net.frames={count} net.depth={depth} net.receive=0"
                ),
                "receive": Direction(
                    "received",
                    "net.mode=measure net.frames={count} net.depth={depth} net.receive=1",
                    surroundings="virtiopy.exits.traffic:frames_for",
                ),
            },
            count_option="--packets",
        ),
        suite_driver=f"{_SUITE}.net:NetDriver",
        rigs={"net": f"{_RIGS}:build_net"},
        judge="virtiopy.check.net:NetJudge",
        linux_modules=("virtio_net", "af_packet"),
        linux_counter=LinuxCounter(
            "packet",
            "cd /sys/class/net/eth0/statistics && "
            "cat tx_packets rx_packets | awk '{ n += $1 } END { print n }'",
        ),
    ),
    DeviceEntry(
        name="ninep",
        device_id=DeviceId.NINE_P,
        kind="9P file system",
        device="virtiopy.devices.ninep:NineP",
        option=Option(
            "--share",
            "PATH,tag=NAME[,readonly=on][,mode=trapped|ioeventfd], or vhost-user=SOCKET",
            "Share a folder of the host's, which Linux mounts by its tag: "
            "mount -t 9p -o trans=virtio,version=9p2000.L NAME /mnt. Debian's diod serves it, "
            "where no path leads out of it. vhost-user=SOCKET attaches one that another process "
            "serves, with its tag.",
            keys=("tag", "readonly"),
        ),
        build=f"{_CLI}:build_share",
        vhost_user=f"{_CLI}:connect_share",
        workload=Workload(
            "PATH[,readonly=on]",
            "Measure a 9P device on this folder, by requests for its attributes.",
            unit="request",
            count=2_000,
            directions={
                "getattr": Direction(
                    "for attributes", "ninep.requests={count} ninep.depth={depth}"
                ),
            },
            adds={"tag": "files", "readonly": "on"},
            depth_max=64,
        ),
        feature_word="9P",
        suite_driver=f"{_SUITE}.ninep:NinePDriver",
        rigs={"ninep": f"{_RIGS}:build_ninep"},
        linux_modules=("9pnet_virtio", "9p"),
    ),
    DeviceEntry(
        name="fs",
        device_id=DeviceId.FILE_SYSTEM,
        kind="file system device",
        device="virtiopy.vhost.user.fs:VhostUserFs",
        option=Option(
            "--fs",
            "PATH,tag=NAME[,readonly=on], or vhost-user=SOCKET,tag=NAME",
            "Share a folder of the host's by virtio-fs, which Linux mounts by its tag: "
            "mount -t virtiofs NAME /mnt. QEMU's virtiofsd serves it, or the one that listens at "
            "SOCKET.",
            keys=("tag", "readonly"),
        ),
        build="virtiopy.cli.fs:build_fs",
        choose_mode="virtiopy.cli.fs:choose_fs_mode",
        vhost_user="virtiopy.cli.fs:connect_fs",
        # It is another process's from the start.
        served=False,
        in_process=False,
        served_by="virtiopy.cli.fs:ServedFs",
        workload=Workload(
            "PATH[,readonly=on]",
            "Measure a file system device on this folder, by requests for its attributes. "
            "virtiofsd works its rings.",
            unit="request",
            count=2_000,
            directions={
                "getattr": Direction("for attributes", "fs.requests={count} fs.depth={depth}"),
            },
            adds={"tag": "files", "readonly": "on"},
        ),
        suite_driver=f"{_SUITE}.fs:FsDriver",
        judge="virtiopy.check.fs:FsJudge",
        linux_modules=("virtiofs",),
    ),
    DeviceEntry(
        name="scsi",
        device_id=DeviceId.SCSI_HOST,
        kind="SCSI host device",
        device="virtiopy.devices.scsi.device:Scsi",
        option=Option(
            "--scsi",
            "{disk=PATH|cdrom=FILE}[,target=N][,lun=N][,readonly=on][,rotational=off]"
            "[,cache=writeback|writethrough|none][,serial=ID][,format=FORMAT][,reaches=PATH]..."
            "[,queues=N][,queue-size=N][,mode=trapped|ioeventfd|vhost], or vhost=WWPN[,queues=N], "
            "or vhost-user=SOCKET",
            "Attach a SCSI host device, with a logical unit for each image or block device that "
            "`disk` names, in any format that --disk takes, and for each image of a disc that "
            "`cdrom` names. What follows one is about it, up to the next; a unit without a `lun` "
            "has the first free one of its target. mode=vhost has the kernel's own target serve "
            "the disks, by /dev/vhost-scsi, and vhost=WWPN attaches a target that is there. "
            "vhost-user=SOCKET attaches one that another process serves.",
            keys=("queues", "queue-size", "vhost", "vhost-user"),
            repeatable=("reaches",),
            has_main=False,
            parts={
                "disk": (
                    *("target", "lun", "readonly", "rotational", "cache", "serial", "format"),
                    "reaches",
                ),
                "cdrom": ("target", "lun", "cache", "serial"),
            },
        ),
        build="virtiopy.cli.scsi:build_scsi",
        choose_mode="virtiopy.cli.scsi:choose_scsi_mode",
        built_in=("vhost",),
        build_served="virtiopy.cli.scsi:build_served_scsi",
        vhost_user="virtiopy.cli.scsi:connect_scsi",
        needs="virtiopy.cli.sandboxed:needs_of_units",
        workload=Workload(
            "disk=PATH[,cache=MODE]...",
            "Measure a SCSI host device with a disk on this image, by random reads of 4 KiB. "
            "Nothing on it changes.",
            unit="read",
            count=1_000,
            directions={
                "read": Direction("of 4 KiB", "scsi.requests={count} scsi.depth={depth}"),
            },
            depth_max=42,
        ),
        suite_driver=f"{_SUITE}.scsi:ScsiDriver",
        rigs={"scsi": f"{_RIGS}:build_scsi"},
        judge="virtiopy.check.scsi:ScsiJudge",
        linux_modules=("virtio_scsi", "sd_mod", "sr_mod", "isofs", "ext4", "crc32c_generic"),
        linux_counter=LinuxCounter(
            "request",
            "awk '{ print $1 + $5 + $12 + $16 }' /sys/block/sda/stat",
        ),
    ),
    DeviceEntry(
        name="vsock",
        device_id=DeviceId.SOCKET,
        kind="socket device",
        device="virtiopy.devices.vsock.device:Vsock",
        option=Option(
            "--vsock",
            "cid=N,path=SOCKET[,seqpacket=SOCKET][,socket-mode=MODE]"
            "[,mode=trapped|ioeventfd|vhost], or vhost-user=SOCKET",
            "Attach a socket device to a guest with this context ID. A guest that connects to port "
            "N of the host's gets the program that listens at the Unix socket SOCKET_N; a program "
            "that connects to SOCKET, and says CONNECT and a port, gets the guest's. Programs "
            "connect at `seqpacket` for sockets of that type. Both are their owner's alone, or "
            "what socket-mode=0660 says. mode=vhost has the kernel's vhost-vsock work the rings, "
            "and programs of the host's use AF_VSOCK: there is no path then. vhost-user=SOCKET "
            "attaches one that another process serves.",
            keys=("cid", "path", "seqpacket", "socket-mode", "vhost-user"),
            has_main=False,
        ),
        build=f"{_CLI}:build_vsock",
        choose_mode=f"{_CLI}:choose_vsock_mode",
        vhost_user=f"{_CLI}:connect_vsock",
        needs="virtiopy.cli.sandboxed:needs_of_vsock",
        workload=Workload(
            "cid=N,path=SOCKET",
            "Measure a socket device, by packets of 4 KiB to a program of the host's.",
            unit="packet",
            count=10_000,
            directions={
                "send": Direction(
                    "of 4 KiB sent",
                    f"vsock.sink={SINK_PORT} vsock.packets={{count}} vsock.depth={{depth}}",
                    surroundings="virtiopy.exits.programs:sink_for",
                ),
            },
            count_option="--packets",
            depth_max=16,
        ),
        suite_driver=f"{_SUITE}.vsock:VsockDriver",
        rigs={"vsock": f"{_RIGS}:build_vsock"},
        judge="virtiopy.check.vsock:VsockJudge",
        linux_modules=("vmw_vsock_virtio_transport",),
    ),
)

# In the order of help texts.
_entries: dict[str, DeviceEntry] = {entry.name: entry for entry in _OWN}


def entries() -> Sequence[DeviceEntry]:
    """Return every device's entry."""
    return list(_entries.values())


def names() -> Sequence[str]:
    """Return what the devices are called."""
    return list(_entries)


def entry_named(name: str) -> DeviceEntry:
    """Return the entry of a device; raises ConfigError for a name that is none."""
    try:
        return _entries[name]
    except KeyError:
        known = ", ".join(names())
        raise ConfigError(f"There is no device {name!r}: give one of {known}.") from None


def entry_of(device_id: DeviceId) -> DeviceEntry | None:
    """Return the entry of a device type; None for one that virtiopy does not have."""
    return next((entry for entry in entries() if entry.device_id is device_id), None)


def device_commands() -> Mapping[str, DeviceCommand]:
    """Return what users can have devices do (`VirtioDevice.commands`), by the commands' names."""
    found: dict[str, DeviceCommand] = {}
    for entry in entries():
        found.update(entry.device_class.commands)
    return found


@contextlib.contextmanager
def registered(entry: DeviceEntry) -> Iterator[DeviceEntry]:
    """Have one device more, meanwhile: one of a user's, or of a test's."""
    if entry.name in _entries or entry_of(entry.device_id) is not None:
        raise ValueError(f"there is a device {entry.name}, or of type {entry.device_id.name}")
    _entries[entry.name] = entry
    try:
        yield entry
    finally:
        del _entries[entry.name]

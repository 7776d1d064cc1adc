"""One boot of Linux with every device, which all tests of this folder share."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path

import pytest

from tests.guest.accelerators import has_unicorn
from tests.vm_linux.machine import Linux, Typist
from virtiopy.cache import cache_folder
from virtiopy.devices.balloon import Balloon
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.blk import Blk
from virtiopy.devices.console import Console
from virtiopy.devices.net import Net
from virtiopy.devices.ninep import NineP
from virtiopy.devices.rng import Rng
from virtiopy.devices.scsi import Address, Cdrom, Scsi, ScsiDisk
from virtiopy.devices.streams import Size
from virtiopy.devices.vsock import Vsock
from virtiopy.host.disk import DiskImage
from virtiopy.host.launcher import find_tool
from virtiopy.host.share import Share
from virtiopy.host.tap import Tap
from virtiopy.host.tapconfig import TapConfig, default_mac
from virtiopy.host.virtiofsd import FsDaemon, find_virtiofsd
from virtiopy.host.vsock import HybridSockets
from virtiopy.linux.kernels import NoKernelError, find_kernel
from virtiopy.linux.programs import find_program, libraries
from virtiopy.vhost.user.fs import VhostUserFs
from virtiopy.vm.slots import IoMode

DISK_SIZE = 64 << 20
HOST, GUEST = "192.0.2.1", "192.0.2.2"
MTU = 1400
PORT = "org.example.echo"
SERIAL = "scsi-0123456789"
CID = 3
#: SCSI commands, one a program.
SG3_UTILS = (
    *("sg_inq", "sg_vpd", "sg_readcap", "sg_luns", "sg_opcodes", "sg_unmap", "sg_write_same"),
    *("sg_modes", "sg_compare_and_write", "sg_persist", "sg_reset", "sg_start", "sg_verify"),
    *("sg_turs", "sg_sync", "sg_requests"),
)
#: Programs of the host's that the guest runs from a disk, by their Debian package.
PROGRAMS = {
    "fio": "fio",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "ethtool": "ethtool",
    "blkdiscard": "util-linux",
    "rngtest": "rng-tools5",
    "socat": "socat",
    **dict.fromkeys(SG3_UTILS, "sg3-utils"),
}
#: Mounts that disk, and makes `host` the command that runs a program of it.
MOUNT_PROGRAMS = """
mkdir /opt && mount -t ext4 -o ro /dev/vdc /opt
for folder in dev proc sys tmp; do mount --bind /$folder /opt/$folder; done
printf '#!/bin/sh\\nname=$1; shift; exec chroot /opt /usr/bin/$name "$@"\\n' >/bin/host
chmod +x /bin/host
"""


@dataclass(slots=True)
class Rig:
    """Linux, and the host's side of its devices."""

    linux: Linux
    folder: Path
    namespace: str
    console: Typist
    port: Typist
    balloon: Balloon
    net: Net
    scsi: Scsi
    vsock: Vsock
    #: What a bulk transfer carries, each way: bytes.
    bulk: int

    @property
    def disk(self) -> Path:
        return self.folder / "disk.img"


def needs(*tools: str) -> None:
    """Skip where a tool of the host's is missing, naming its package."""
    for tool in tools:
        if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            pytest.skip(f"{tool} is missing: apt-get install {PROGRAMS.get(tool, tool)}")


def make_disk_of_programs(image: Path, folder: Path) -> None:
    """Make an image with the programs, and the libraries that they need: too many for memory."""
    for name in ("dev", "proc", "sys", "tmp"):
        (folder / name).mkdir(parents=True)
    for program in map(find_program, PROGRAMS):
        copy_into(folder, program, folder / "usr" / "bin" / program.name)
        for library in libraries(program):
            copy_into(folder, library, folder / str(library).lstrip("/"))
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-d", folder, image, "160M"], check=True)


def make_scsi(folder: Path) -> Scsi:
    """Make a SCSI host with two disks and a disc."""
    (folder / "scsi.img").touch()
    os.truncate(folder / "scsi.img", DISK_SIZE)
    (folder / "fixed.img").write_bytes(bytes(8 << 20))
    (folder / "disc").mkdir()
    (folder / "disc" / "Some content").write_bytes(os.urandom(300_000))
    subprocess.run(
        ["genisoimage", "-quiet", "-R", "-J", "-o", folder / "disc.iso", folder / "disc"],
        check=True,
    )
    return Scsi(
        {
            Address(0, 0): ScsiDisk(
                DiskImage(folder / "scsi.img"), serial=SERIAL, rotational=False
            ),
            Address(0, 1): Cdrom(DiskImage(folder / "disc.iso", readonly=True)),
            Address(3, 300): ScsiDisk(DiskImage(folder / "fixed.img", readonly=True)),
        }
    )


def copy_into(folder: Path, source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


@dataclass(slots=True, frozen=True)
class RigOptions:
    """What Linux runs on: an accelerator, CPUs, and modes; the disk has twice as many queues.

    `net_mode` is the network device's mode, which has a pair of queues for each CPU. The kernel is
    told `words` besides.
    """

    accel: str = "tcg"
    cpus: int = 1
    mode: IoMode = IoMode.IOEVENTFD
    net_mode: IoMode = IoMode.IOEVENTFD
    words: str = ""
    bulk: int = 100 << 20


def skip_without_its_needs() -> None:
    """Skip where the rig is not to be had, saying what is missing."""
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip("a tap takes root and /dev/net/tun")
    needs("ip", "busybox", "genisoimage", *PROGRAMS)
    try:
        find_kernel(cache_folder())
    except NoKernelError as error:
        pytest.skip(str(error))


@contextlib.contextmanager
def make_rig(folder: Path, options: RigOptions) -> Iterator[Rig]:
    """Boot Linux with every device; files and sockets are in `folder`."""
    (folder / "disk.img").touch()
    os.truncate(folder / "disk.img", DISK_SIZE)
    (folder / "second.img").write_bytes(bytes(8 << 20))
    make_disk_of_programs(folder / "programs.img", folder / "programs")
    namespace = f"vm-linux-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        subprocess.run(["ip", "netns", "add", namespace], check=True)
        stack.callback(subprocess.run, ["ip", "netns", "del", namespace], check=True)
        tap = TapConfig(
            "tap0",
            create=True,
            address=ip_interface(f"{HOST}/24"),
            mtu=MTU,
            netns=namespace,
            queues=options.cpus,
        )
        console, port = Typist(Size(80, 24)), Typist()
        balloon = Balloon(statistics_interval=1)
        net = Net(Tap(tap), mac=default_mac(tap))
        scsi = make_scsi(folder)
        vsock = Vsock(CID, HybridSockets(folder / "vm.sock", seqpacket=folder / "vm.seq"))
        queues = 1 if options.cpus == 1 else 2 * options.cpus
        devices = {
            "blk0": Blk(DiskImage(folder / "disk.img"), serial="0123456789", num_queues=queues),
            "blk1": Blk(DiskImage(folder / "second.img", readonly=True)),
            "blk2": Blk(DiskImage(folder / "programs.img", readonly=True)),
            "net0": net,
            "console0": Console(console, {PORT: port}),
            "balloon0": balloon,
            "rng0": Rng(),
            "scsi0": scsi,
            "vsock0": vsock,
        }
        linux = stack.enter_context(
            Linux(
                devices,
                accel=options.accel,
                cpus=options.cpus,
                mode=options.mode,
                modes={"net0": options.net_mode},
                words=options.words,
            )
        )
        linux.sh(MOUNT_PROGRAMS)
        linux.sh(f"ip address add {GUEST}/24 dev eth0; ip link set eth0 up")
        yield Rig(linux, folder, namespace, console, port, balloon, net, scsi, vsock, options.bulk)


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    if not has_unicorn():
        pytest.skip("unicorn is not installed")
    skip_without_its_needs()
    with make_rig(tmp_path_factory.mktemp("linux"), RigOptions()) as made:
        yield made


@pytest.fixture
def linux(rig: Rig) -> Linux:
    return rig.linux


MOUNT_9P = "mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000"
SECRET = "not for the guest"


@dataclass(slots=True)
class Shared:
    """Linux, which has mounted folders of the host's.

    `folder` is at /mnt by 9P and `tree` at /tree by virtio-fs; `fixed` is at /fixed and /still,
    where it cannot be written. `small`, which is soon full, is at /places/small by 9P, and within
    `tree`. `outside` is a file beside them. `going` is at /going/9p and /going/fs.
    """

    linux: Linux
    folder: Path
    tree: Path
    fixed: Path
    small: Path
    outside: Path
    going: Path
    share: Share
    daemon: FsDaemon

    def mounted(self, way: str) -> tuple[str, Path]:
        """Where the guest has mounted a folder, and the folder."""
        return {"9p": ("/mnt", self.folder), "fs": ("/tree", self.tree)}[way]


def build_posix(program: Path) -> None:
    """Compile posix.c for a guest that has no libraries."""
    source = Path(__file__).with_name("posix.c")
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-static"]
    subprocess.run(["gcc", *flags, source, "-o", program], check=True)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    if not has_unicorn():
        pytest.skip("unicorn is not installed")
    if find_tool("diod") is None:
        pytest.skip("diod is missing: apt-get install diod")
    if find_virtiofsd() is None:
        pytest.skip("virtiofsd takes root: apt-get install qemu-system-common")
    needs("bwrap", "busybox")
    try:
        find_kernel(cache_folder())
    except NoKernelError as error:
        pytest.skip(str(error))
    base = tmp_path_factory.mktemp("share")
    folder, tree, fixed, outside = (base / name for name in ("folder", "tree", "fixed", "outside"))
    small = tree / "small"
    going = base / "going"
    for path in (folder, tree, fixed, going):
        path.mkdir()
        (path / "large").write_bytes(os.urandom(3 << 20))
    outside.write_text(SECRET)
    build_posix(folder / "posix")
    with contextlib.ExitStack() as stack:
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "small", small], check=True)
        stack.callback(subprocess.run, ["umount", str(small)], check=True)
        share = Share(folder)
        daemon, still, goes = (
            stack.enter_context(FsDaemon(path, readonly=path is fixed))
            for path in (tree, fixed, going)
        )
        devices: dict[str, VirtioDevice] = {
            "ninep0": NineP(share, "files"),
            "ninep1": NineP(Share(fixed, readonly=True), "fixed"),
            "ninep2": NineP(Share(small), "small"),
            "ninep3": NineP(Share(going), "going"),
            "fs0": VhostUserFs(daemon.connect(), daemon.connect, tag="tree", renews=True),
            "fs1": VhostUserFs(still.connect(), still.connect, tag="still", renews=True),
            "fs2": VhostUserFs(goes.connect(), goes.connect, tag="goes", renews=True),
        }
        linux = stack.enter_context(
            Linux(
                devices,
                modules=("9pnet_virtio", "9p", "virtiofs"),
                modes=dict.fromkeys(("fs0", "fs1", "fs2"), IoMode.VHOST_USER),
            )
        )
        linux.sh(
            f"mkdir -p /fixed /tree /still /places/small /going/9p /going/fs; "
            f"{MOUNT_9P} going /going/9p && mount -t virtiofs goes /going/fs && "
            f"{MOUNT_9P} files /mnt && {MOUNT_9P} fixed /fixed && "
            f"{MOUNT_9P} small /places/small && "
            "mount -t virtiofs tree /tree && mount -t virtiofs still /still"
        )
        yield Shared(linux, folder, tree, fixed, small, outside, going, share, daemon)

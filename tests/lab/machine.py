"""The lab: a stock kernel, booted by virtme-ng under software emulation, to run a command in.

Inside there are the host's files, read-only, and what the options ask for: by default nested KVM,
/dev/vhost-net and /dev/net/tun, all real. What runs there takes some 60 times as long as outside.
"""

import itertools
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab.kernel import LabMissingError, get_kernel
from virtiopy.closing import Closing
from virtiopy.linux.kernels import LinuxKernel

REPOSITORY = Path(__file__).parents[2]
#: Resolved, for a link there to a folder that several checkouts share.
CACHE = (REPOSITORY / "build" / "lab").resolve()

#: Set inside the lab, for those who have to know: the folder that both sides write to.
INSIDE = "VIRTIOPY_LAB"

#: What has to be installed, by its Debian package.
_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "modprobe": "kmod",
    "busybox": "busybox-static",
    "file": "file",
}

#: Kernel parameters against what costs emulated instructions and protects nothing here. The tick is
#: a periodic one: where each tick sets the timer for the next, one was lost now and then while a
#: guest with two CPUs spun in PAUSE, and the lab stood still.
_PARAMETERS = [
    *("mitigations=off", "no5lvl", "init_on_alloc=0", "apparmor=0", "audit=0"),
    *("highres=off", "nohz=off"),
]

#: Programs of the host's that virtme-ng starts where it finds them, and the lab is booted without.
#: udev would rename interfaces (whatever net.ifnames says, where the host is a container) and take
#: half a minute of each boot; what systemd-tmpfiles makes, in ten seconds, the lab does not need.
_HIDDEN = [
    Path("/usr/lib/systemd/systemd-udevd"),
    Path("/lib/systemd/systemd-udevd"),
    Path("/usr/bin/systemd-tmpfiles"),
    Path("/bin/systemd-tmpfiles"),
]


@dataclass(slots=True, frozen=True)
class LabOptions:
    """What a lab is made of: CPUs, MiB of memory, kernel modules, QEMU's own options."""

    #: With two, both lock up within some 50 runs of nested VMs (QEMU 7.2's emulation of SVM).
    cpus: int = 1
    memory: int = 3072
    modules: tuple[str, ...] = (
        *("kvm_amd", "vhost_net", "tun", "vhost_vsock", "vsock_loopback"),
        *("vhost_scsi", "target_core_mod", "target_core_file", "tcm_loop", "sg"),
    )
    qemu: tuple[str, ...] = ()


DEFAULTS = LabOptions()

_NUMBERS = itertools.count(1)


def vng() -> Path:
    """Return virtme-ng's command, which is installed beside this Python."""
    return Path(sys.executable).with_name("vng")


def check_tools() -> None:
    """Raise LabMissingError if anything is not there that the lab needs."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [package for tool, package in _TOOLS.items() if not shutil.which(tool, path=path)]
    if missing:
        raise LabMissingError(f"missing here: apt-get install {' '.join(missing)}")
    if not vng().exists():
        raise LabMissingError(f"virtme-ng is missing: {sys.executable} -m pip install virtme-ng")


class Lab(Closing):
    """A booted kernel that runs `command` in the repository's folder, with `environment`.

    `share` is the one folder that both sides write to. Raises LabMissingError.
    """

    def __init__(
        self,
        command: list[str],
        share: Path,
        environment: dict[str, str],
        options: LabOptions = DEFAULTS,
    ) -> None:
        check_tools()
        kernel = get_kernel(CACHE)
        self.share = share
        self._console = bytearray()
        share.mkdir(parents=True, exist_ok=True)
        _write_command(share / "command.sh", command, {INSIDE: str(share), **environment})
        # virtme-ng wants a terminal; QEMU wants its standard streams to be files it can reopen.
        self._terminal: int | None
        self._terminal, terminal = pty.openpty()
        try:
            self.process = subprocess.Popen(
                _boot_command(kernel, share, options),
                cwd=REPOSITORY,
                env=os.environ | {"PATH": _path()},
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
            )
        finally:
            os.close(terminal)
        self._reader = threading.Thread(
            target=self._read_console, args=[self._terminal], name="lab-console"
        )
        self._reader.start()

    def _read_console(self, terminal: int) -> None:
        with (self.share / "console.log").open("wb") as log:
            while True:
                try:
                    data = os.read(terminal, 1 << 16)
                except OSError:
                    # EIO: nobody has the terminal open any more.
                    return
                if not data:
                    return
                self._console += data
                log.write(data)
                log.flush()

    @property
    def console(self) -> str:
        """What kernel and command have printed so far."""
        return self._console.decode(errors="replace").replace("\r\n", "\n")

    def wait(self, seconds: float) -> bool:
        """Wait until the lab is gone, for so long at most; True when it is."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def fell_over(self, seconds: float) -> bool:
        """Wait until the command begins, so long at most; True where QEMU ended by itself first.

        That of Debian 12 does, once in hundreds of boots with several CPUs: by an assertion, while
        the kernel looks for devices on the PCI bus (hw/pci/msix.c).
        """
        deadline = time.monotonic() + seconds
        while not (self.share / "output.txt").exists():
            if self.process.poll() is not None:
                # All that it said has come.
                self._reader.join()
                return not (self.share / "output.txt").exists() and "Assertion" in self.console
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return False

    @property
    def status(self) -> int | None:
        """The command's exit status, None as long as it has not ended by itself."""
        try:
            return int((self.share / "status").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def close(self) -> None:
        """Switch the lab off."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            if not self.wait(5):
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self._reader.join()
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None


def _path() -> str:
    """Return the search path with virtme-ng's commands and the system's tools in it."""
    return os.pathsep.join([str(vng().parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _without_hidden() -> list[str]:
    """Return what to put before a command so that it does not find these programs of the host's."""
    programs = sorted({str(path.resolve()) for path in _HIDDEN if path.exists()})
    if not programs:
        return []
    hide = [f"mount --bind /dev/null {shlex.quote(program)}" for program in programs]
    rights = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = " && ".join([*hide, 'exec "$@"'])
    return ["unshare", "--mount", *rights, "sh", "-c", script, "sh"]


def _boot_command(kernel: LinuxKernel, share: Path, options: LabOptions) -> list[str]:
    # Not by its own path: virtme-ng hides some of the host's folders, as /var/tmp.
    shutil.copy(Path(__file__).with_name("inside.sh"), share)
    inside = ["sh", "/run/lab/inside.sh", "/run/lab", str(share), str(kernel.image.parent.parent)]
    inside += options.modules
    return [
        # With the terminal as its own, so that all of it goes when we do, however that is.
        *("setsid", "--ctty", *_without_hidden()),
        *(sys.executable, str(vng()), "--verbose", "--run", str(kernel.image)),
        *("--disable-kvm", "--force-9p", "--user", "root"),
        *("--cpus", str(options.cpus), "--memory", f"{options.memory}M"),
        *(word for parameter in _PARAMETERS for word in ("--append", parameter)),
        # The order says which tag each has: see inside.sh.
        *(f"--rwdir=/run/lab={share}", "--rodir=/mnt=/"),
        # A word of its own each: virtme-ng's shell takes this one apart.
        *([f"--qemu-opts={shlex.join(options.qemu)}"] if options.qemu else []),
        *("--", shlex.join(inside)),
    ]


def _write_command(path: Path, command: list[str], environment: dict[str, str]) -> None:
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    folder = shlex.quote(str(REPOSITORY))
    path.write_text("\n".join([*exports, f"cd {folder}", f"exec {shlex.join(command)}", ""]))


def new_share() -> Path:
    """Name a folder for one boot; those of the last few stay, to look at."""
    runs = CACHE / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for old in sorted(runs.iterdir())[:-8]:
        # Another checkout may share the cache, and be at it.
        if not Path("/proc", old.name.rpartition("-")[2]).exists():
            shutil.rmtree(old, ignore_errors=True)
    return runs / time.strftime(f"%Y%m%d-%H%M%S-{next(_NUMBERS)}-{os.getpid()}")

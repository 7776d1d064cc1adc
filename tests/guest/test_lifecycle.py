"""Starting and stopping machines leaves nothing behind, however they stop."""

import contextlib
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.accelerators import OWN_MODES
from tests.guest.support import ISOLATED, VIRTIOPY, make_image, needs_isolation, needs_kvm
from tests.patience import PATIENCE
from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.boot.elf import GuestImage
from virtiopy.boot.guests import guest_path
from virtiopy.control.server import ControlServer
from virtiopy.devices.balloon import Balloon
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.blk import Blk
from virtiopy.devices.console import Console
from virtiopy.devices.net import Net
from virtiopy.devices.rng import Rng
from virtiopy.host.disk import DiskImage
from virtiopy.host.stream import SocketStream
from virtiopy.host.tap import Tap
from virtiopy.host.tapconfig import TapConfig
from virtiopy.memory import GuestMemory
from virtiopy.virtqueue.queue import Chain, Virtqueue
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode

pytestmark = needs_kvm

#: How many machines come and go in `make test`, and in `make nightly`.
CYCLES, NIGHTLY_CYCLES = 60, 400

MODES = OWN_MODES
MAC = bytes.fromhex("020000000001")

#: One line a device: what makes it, in a folder of its own.
DEVICES: dict[str, Callable[[Path], VirtioDevice]] = {
    "blk": lambda folder: Blk(DiskImage(folder / "disk.img")),
    "rng": lambda folder: Rng(),
    "balloon": lambda folder: Balloon(statistics_interval=0.01),
    "console": lambda folder: Console(SocketStream(folder / "console.sock")),
    "net": lambda folder: Net(Tap(TapConfig(f"lc{os.getpid()}", create=True)), mac=MAC),
}


@dataclass(slots=True, frozen=True)
class Holdings:
    """What this process has of its host, and the names in its network namespace."""

    files: dict[str, str]
    threads: set[str]
    interfaces: list[str]
    namespaces: list[str]

    @classmethod
    def now(cls) -> "Holdings":
        netns = Path("/run/netns")
        return cls(
            files=open_files(),
            threads={thread.name for thread in threading.enumerate()},
            interfaces=sorted(name for _, name in socket.if_nameindex()),
            namespaces=sorted(path.name for path in netns.iterdir()) if netns.exists() else [],
        )


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Check that the body leaves as many files and threads as there were."""
    before = open_files(), threading.enumerate()
    yield
    # An exception and its frames hold each other, and the frames views of guest memory.
    gc.collect()
    assert (open_files(), threading.enumerate()) == before


def open_files() -> dict[str, str]:
    """The file descriptors of this process, but for the one that they are listed by."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[link.name] = str(link.readlink())
    return found


def mappings() -> int:
    """How many mappings this process has."""
    return len(Path("/proc/self/maps").read_text().splitlines())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_image(tmp_path / "disk.img", 1 << 20)
    return tmp_path


@contextmanager
def machine_of(
    folder: Path, mode: IoMode, guest: str, append: str = "", *more: VirtioDevice
) -> Iterator[Machine]:
    """A machine with one device of each kind and `more`, and a control socket, ready to run."""
    with ExitStack() as stack:
        memory = stack.enter_context(GuestMemory.allocate(32 << 20))
        accelerator = KvmAccelerator(memory)
        stack.callback(accelerator.close)
        machine = stack.enter_context(Machine(memory, accelerator, console=lambda data: None))
        for name, make in DEVICES.items():
            machine.add_device(make(folder), f"{name}0", mode)
        for number, device in enumerate(more):
            machine.add_device(device, f"more{number}", mode)
        stack.enter_context(ControlServer(machine, folder / "vm.sock"))
        machine.boot(GuestImage.open(guest_path(guest)), append)
        yield machine


def run_cycles(folder: Path, cycles: int) -> None:
    """Compare what there is before and after; the first cycle is for what Python keeps."""

    def cycle(number: int) -> None:
        # Every fifth guest sets the devices up, which takes it a tenth of a second.
        guest = "greet" if number % 5 else "probe"
        with machine_of(folder, MODES[number % len(MODES)], guest) as machine:
            assert machine.run(PATIENCE).status == 0

    cycle(0)
    before, mapped = Holdings.now(), mappings()
    for number in range(cycles):
        cycle(number)
    after = Holdings.now()
    assert after == before, f"{before} became {after}"
    assert mappings() < mapped + cycles // 2


@needs_isolation
@pytest.mark.parametrize(
    "cycles", [CYCLES, pytest.param(NIGHTLY_CYCLES, marks=pytest.mark.nightly)]
)
def test_cycles_leave_what_there_was_before_the_first(folder: Path, cycles: int) -> None:
    # Alone in a network namespace, and with names for such of its own: interfaces and namespaces
    # that come and go elsewhere on this host are not the machine's.
    script = 'mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && exec "$@"'
    command = [*ISOLATED, "sh", "-c", script, "sh"]
    command += [sys.executable, "-m", "tests.guest.test_lifecycle", str(folder), str(cycles)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("mode", MODES)
def test_a_machine_that_never_ran_leaves_nothing(folder: Path, mode: IoMode) -> None:
    with leaving_nothing(), machine_of(folder, mode, "probe"):
        pass


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.2, 0.4])
def test_a_guest_that_is_stopped_at_its_time_leaves_nothing(
    folder: Path, mode: IoMode, seconds: float
) -> None:
    """It is stopped before its first request, or in the middle of some."""

    def stop() -> None:
        with machine_of(folder, mode, "blk", "blk.hold=1") as machine:
            assert machine.run(seconds).status is None

    with leaving_nothing():
        stop()


class DefectError(Exception):
    """A device's own fault."""


class DefectiveRng(Rng):
    """An entropy device that fails when it serves."""

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        raise DefectError


class DefectiveReset(Rng):
    """An entropy device that fails when it is reset, on the CPU's thread."""

    def reset(self) -> None:
        if threading.current_thread().name == "cpu0":
            raise DefectError
        super().reset()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("device", [DefectiveRng, DefectiveReset])
def test_a_device_that_fails_ends_the_run_and_leaves_nothing(
    folder: Path, mode: IoMode, device: type[Rng]
) -> None:
    def fail() -> None:
        with machine_of(folder, mode, "rng", "", device()) as machine, pytest.raises(DefectError):
            machine.run(PATIENCE)

    with leaving_nothing():
        fail()


@pytest.mark.parametrize("where", ["soon", "timer", "worker"])
def test_a_callback_that_fails_ends_the_run_and_leaves_nothing(folder: Path, where: str) -> None:
    def fail() -> None:
        raise DefectError

    def run() -> None:
        with machine_of(folder, IoMode.IOEVENTFD, "misbehave", "misbehave=spin") as machine:
            if where == "soon":
                machine.loop.call_soon(fail, "test")
            elif where == "timer":
                machine.loop.call_later(0.05, fail, "test")
            else:
                machine.loop.run_blocking(fail, lambda: None, "test")
            with pytest.raises(DefectError):
                machine.run(PATIENCE)

    with leaving_nothing():
        run()


@contextmanager
def running(folder: Path, guest: str, append: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the command line with every device and a control socket, until the guest has begun."""
    command = [*VIRTIOPY, "run", "--guest", guest, "--append", append, "--timeout", "0"]
    command += ["--disk", str(folder / "disk.img"), "--rng", "--balloon", "stats=1"]
    command += ["--control", str(folder / "vm.sock")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "TAP version 13\n"
            yield process
        finally:
            process.kill()


def session_of(process: "subprocess.Popen[str]") -> list[int]:
    """The processes of a session: the command's, and any that it has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == process.pid:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("guest", "append"), [("blk", "blk.hold=1"), ("balloon", "balloon.mode=follow")]
)
def test_a_signal_ends_the_command_and_leaves_nothing(
    folder: Path, number: signal.Signals, guest: str, append: str
) -> None:
    with running(folder, guest, append) as process:
        assert (folder / "vm.sock").exists()
        assert session_of(process) == [process.pid]
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + number
        assert errors.strip() == "virtiopy: interrupted"
        assert session_of(process) == []
    assert os.listdir(folder) == ["disk.img"]


def test_a_guest_that_ends_leaves_nothing(folder: Path) -> None:
    with running(folder, "probe", "") as process:
        _, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (0, "")
        assert session_of(process) == []
    assert os.listdir(folder) == ["disk.img"]


if __name__ == "__main__":
    # A slow callback on a busy machine is a warning, and not what is looked for here.
    logging.basicConfig(level=logging.ERROR)
    run_cycles(Path(sys.argv[1]), int(sys.argv[2]))

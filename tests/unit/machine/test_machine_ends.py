"""How a machine's run ends."""

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.unit.machine.bench import (
    CONSOLE,
    FIRST,
    NOBODYS_PORT,
    Bench,
    FakeAccelerator,
    FakeDevice,
    ignore,
    io_read,
    io_write,
    mmio_write,
    quit_with,
)
from virtiopy.cpu.exits import Exit, ExitReason
from virtiopy.cpu.rare_exits import InternalErrorExit
from virtiopy.errors import GuestError, HostError
from virtiopy.memory import GuestMemory
from virtiopy.metrics.exitlog import ExitKind
from virtiopy.transport.registers import Register
from virtiopy.vm.bus import UnassignedAccessError
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode


def test_a_run_past_its_time_is_stopped_and_has_no_status(bench: Bench) -> None:
    bench.cpu.script = [io_write(CONSOLE, b"working")]
    result = bench.machine.run(timeout=0.01)
    assert (result.status, bench.cpu.stops) == (None, 1)


def test_a_run_that_ends_in_time_is_not_stopped(bench: Bench) -> None:
    bench.run()
    assert bench.cpu.stops == 0


def test_a_run_that_was_stopped_can_go_on(bench: Bench) -> None:
    assert bench.machine.run(timeout=0.01).status is None
    assert bench.run(io_write(CONSOLE, b"again")) == 0
    assert bench.output == b"again"


def test_the_cpu_runs_on_a_thread_of_its_own_that_ends_with_the_run(bench: Bench) -> None:
    threads: list[threading.Thread] = []

    def note() -> Exit:
        threads.append(threading.current_thread())
        return quit_with(0)

    bench.cpu.script = [note]
    bench.machine.run(PATIENCE)
    assert [(thread.name, thread.is_alive()) for thread in threads] == [("cpu0", False)]


def test_an_interrupt_window_does_not_end_the_run(bench: Bench) -> None:
    assert bench.counts(Exit(ExitReason.IRQ_WINDOW_OPEN)) == {ExitKind("IRQ_WINDOW_OPEN"): 1}


def test_a_triple_fault_is_the_guests_error_with_its_address(bench: Bench) -> None:
    with pytest.raises(GuestError, match=r"^The guest triple-faulted at rip 0x1234: look at what"):
        bench.run(Exit(ExitReason.SHUTDOWN))


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (Exit(ExitReason.HLT), "KVM_EXIT_HLT"),
        (
            InternalErrorExit(ExitReason.INTERNAL_ERROR, 1, (0x10,)),
            r"KVM_EXIT_INTERNAL_ERROR, suberror EMULATION, data \[0x10\]",
        ),
    ],
)
def test_any_other_exit_ends_the_run_is_described_and_counted(
    bench: Bench, exit_: Exit, words: str
) -> None:
    with pytest.raises(GuestError, match=rf"^The guest stopped at rip 0x1234 with {words}\.$"):
        bench.run(exit_)
    assert bench.machine.exits.counts == {ExitKind(exit_.reason.name): 1}


def test_what_the_cpu_raises_reaches_the_caller_of_run(bench: Bench) -> None:
    def fail() -> Exit:
        raise HostError("KVM_RUN fails: for the test.")

    with pytest.raises(HostError, match="for the test"):
        bench.run(fail)


def test_what_a_device_raises_reaches_the_caller_of_run(bench: Bench) -> None:
    device = FakeDevice()
    device.error = ZeroDivisionError("for the test")
    bench.machine.add_device(device, "rng0", IoMode.TRAPPED)
    with pytest.raises(ZeroDivisionError, match="for the test"):
        bench.run(mmio_write(FIRST + Register.Config, b"1"))


def test_what_the_console_raises_reaches_the_caller_of_run(memory: GuestMemory) -> None:
    def console(data: bytes) -> None:
        raise BrokenPipeError("for the test")

    accelerator = FakeAccelerator()
    accelerator.cpu.script = [io_write(CONSOLE, b"a")]
    with pytest.raises(BrokenPipeError, match="for the test"):
        Machine(memory, accelerator, console=console).run(PATIENCE)


def test_an_error_of_one_run_is_not_that_of_the_next(bench: Bench) -> None:
    with pytest.raises(UnassignedAccessError):
        bench.run(io_read(NOBODYS_PORT, 1))
    assert bench.run() == 0


def test_an_interrupt_from_the_keyboard_stops_the_cpu_and_reaches_the_caller(bench: Bench) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        bench.cpu.spin()

    bench.cpu.script = [interrupt]
    with pytest.raises(KeyboardInterrupt):
        bench.machine.run()
    assert bench.cpu.stops == 1


def test_an_interrupt_while_the_thread_starts_stops_the_cpu_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def start_and_interrupt(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "cpu0":
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.machine.run()
    # Stopped, or interrupted before it had begun: either way it does not run any more.
    assert not [thread for thread in threading.enumerate() if thread.name == "cpu0"]


def test_an_interrupt_before_the_thread_begins_leaves_it_without_a_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[threading.Thread] = []

    def interrupt_instead(thread: threading.Thread) -> None:
        if thread.name != "cpu0":
            start(thread)
            return
        started.append(thread)
        raise KeyboardInterrupt

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", interrupt_instead)
    with pytest.raises(KeyboardInterrupt):
        bench.machine.run()
    exits = bench.cpu.counters["exits"]
    # It begins after all, and finds that it is not wanted.
    start(started[0])
    started[0].join()
    assert bench.cpu.counters["exits"] == exits


def test_a_memory_file_that_another_program_cuts_ends_the_run_in_a_sentence(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ram"
    accelerator = FakeAccelerator()
    with (
        GuestMemory.allocate(2 << 20, path=path) as memory,
        Machine(memory, accelerator, console=ignore) as machine,
    ):
        memory.write(0x10_0000, b"was here")

        def use_what_is_gone() -> None:
            os.truncate(path, 0x8_0000)
            assert memory.read(0x10_0000, 8) == bytes(8)
            accelerator.cpu.spin()

        accelerator.cpu.script = [use_what_is_gone]
        with pytest.raises(HostError, match=rf"^The memory file {path} was made smaller while"):
            machine.run(PATIENCE)


def test_a_memory_file_that_stays_ends_no_run(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    accelerator = FakeAccelerator()
    with (
        GuestMemory.allocate(2 << 20, path=path) as memory,
        Machine(memory, accelerator, console=ignore) as machine,
    ):
        accelerator.cpu.script = [quit_with(0)]
        assert machine.run(PATIENCE).status == 0

"""The machine with several CPUs."""

import threading

import pytest

from tests.patience import PATIENCE
from tests.unit.machine.bench import CONSOLE, Bench, FakeAccelerator, io_read, io_write, quit_with
from virtiopy.cpu.exits import Exit, ExitReason
from virtiopy.errors import ConfigError, GuestError
from virtiopy.memory import GuestMemory
from virtiopy.metrics.exitlog import ExitKind
from virtiopy.vm.machine import Machine


@pytest.fixture
def pair(memory: GuestMemory) -> Bench:
    accelerator, output = FakeAccelerator(), bytearray()
    return Bench(Machine(memory, accelerator, console=output.extend, cpus=2), accelerator, output)


def test_each_cpu_runs_on_a_thread_of_its_own(pair: Bench) -> None:
    both = threading.Barrier(2, timeout=PATIENCE)
    names: list[str] = []

    def meet() -> Exit:
        names.append(threading.current_thread().name)
        both.wait()
        return io_write(CONSOLE, b".")

    first, second = pair.accelerator.cpus
    first.script = [meet, quit_with(0)]
    second.script = [meet]
    assert pair.machine.run(PATIENCE).status == 0
    assert sorted(names) == ["cpu0", "cpu1"]


def test_the_run_ends_when_any_cpu_writes_to_the_exit_port(pair: Bench) -> None:
    first, second = pair.accelerator.cpus
    second.script = [quit_with(3)]
    assert pair.machine.run(PATIENCE).status == 3
    # The other one ran on, and was stopped; the one that had ended was not.
    assert (first.stops, second.stops) == (1, 0)


def test_exits_are_counted_by_the_cpu_that_makes_them_and_added_up(pair: Bench) -> None:
    first, second = pair.accelerator.cpus
    written = threading.Event()

    def last() -> Exit:
        assert written.wait(PATIENCE)
        return quit_with(0)

    def write() -> Exit:
        written.set()
        return io_write(CONSOLE, b"c")

    first.script = [io_write(CONSOLE, b"a"), last]
    second.script = [io_write(CONSOLE, b"b"), io_read(CONSOLE, 1), write]
    exits = pair.machine.run(PATIENCE).exits
    console = [ExitKind("IO", "console port", "data", direction) for direction in ("read", "write")]
    mine, others = pair.machine.cpus
    assert mine.exits.counts == {
        console[1]: 1,
        ExitKind("IO", "exit port", "status", "write"): 1,
    }
    assert others.exits.counts == {console[0]: 1, console[1]: 2}
    assert [exits.counts[kind] for kind in console] == [1, 3]
    assert (exits.totals, exits.total) == ([2, 3], 5)
    assert exits.of("console port", "data") == 4


def test_the_kernels_counters_are_those_of_all_cpus(pair: Bench) -> None:
    first, second = pair.accelerator.cpus
    halted = threading.Event()

    def halt() -> Exit:
        second.counters["halt_exits"] += 2
        halted.set()
        return io_write(CONSOLE, b".")

    def last() -> Exit:
        assert halted.wait(PATIENCE)
        first.counters["halt_exits"] += 1
        return quit_with(0)

    first.script, second.script = [last], [halt]
    assert pair.machine.run(PATIENCE).kernel["halt_exits"] == 3


def test_a_fault_of_the_second_cpu_says_whose_it_is_and_stops_the_first(pair: Bench) -> None:
    first, second = pair.accelerator.cpus
    second.script = [Exit(ExitReason.SHUTDOWN)]
    with pytest.raises(GuestError, match=r"^CPU 1 of the guest triple-faulted at rip 0x1234: "):
        pair.machine.run(PATIENCE)
    assert first.stops == 1


def test_both_cpus_are_stopped_at_the_end_of_the_time(pair: Bench) -> None:
    assert pair.machine.run(timeout=0.01).status is None
    assert [cpu.stops for cpu in pair.accelerator.cpus] == [1, 1]


def test_another_thread_can_end_the_run(pair: Bench) -> None:
    timer = threading.Timer(0.01, pair.machine.end, [5])
    timer.start()
    assert pair.machine.run(PATIENCE).status == 5
    timer.join()


def test_a_second_cpu_that_cannot_be_made_leaves_nothing_open(memory: GuestMemory) -> None:
    accelerator = FakeAccelerator()
    accelerator.refused = 1
    with pytest.raises(ConfigError, match="for the test"):
        Machine(memory, accelerator, console=lambda data: None, cpus=2)
    assert accelerator.cpus[0].closed

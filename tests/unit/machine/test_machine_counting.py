"""The machine counts exits."""

from tests.patience import PATIENCE
from tests.unit.machine.bench import (
    CONSOLE,
    FIRST,
    SECOND,
    Bench,
    FakeDevice,
    io_read,
    io_write,
    mmio_read,
    mmio_write,
    quit_with,
)
from virtiopy.cpu.exits import Exit, ExitReason
from virtiopy.metrics.exitlog import ExitKind
from virtiopy.transport.registers import Register
from virtiopy.vm.slots import IoMode


def test_exits_are_counted_by_device_register_and_direction(bench: Bench) -> None:
    for name in ("rng0", "rng1"):
        bench.machine.add_device(FakeDevice(), name, IoMode.TRAPPED)
    counts = bench.counts(
        mmio_read(FIRST + Register.Status, 4),
        mmio_read(FIRST + Register.Status, 4),
        mmio_write(FIRST + Register.Status, b"\1\0\0\0"),
        mmio_read(SECOND + Register.Status, 4),
        mmio_read(SECOND + Register.Config + 5, 1),
        mmio_read(SECOND + 0x28, 4),
        io_read(CONSOLE, 1),
    )
    assert counts == {
        ExitKind("MMIO", "rng0", "Status", "read"): 2,
        ExitKind("MMIO", "rng0", "Status", "write"): 1,
        ExitKind("MMIO", "rng1", "Status", "read"): 1,
        ExitKind("MMIO", "rng1", "Config", "read"): 1,
        ExitKind("MMIO", "rng1", "undefined 0x028", "read"): 1,
        ExitKind("IO", "console port", "data", "read"): 1,
    }


def test_a_string_of_outs_is_one_exit(bench: Bench) -> None:
    counts = bench.counts(io_write(CONSOLE, b"Hello"))
    assert counts == {ExitKind("IO", "console port", "data", "write"): 1}


def test_the_log_adds_up_exits_of_a_register_and_of_all(bench: Bench) -> None:
    bench.machine.add_device(FakeDevice(), "rng0", IoMode.TRAPPED)
    bench.run(
        mmio_read(FIRST + Register.Status, 4),
        mmio_write(FIRST + Register.Status, bytes(4)),
        Exit(ExitReason.IRQ_WINDOW_OPEN),
    )
    exits = bench.machine.exits
    assert (exits.of("rng0", "Status"), exits.of("rng0", "QueueSel"), exits.total) == (2, 0, 4)


def test_the_result_has_the_kernels_counters_as_they_grew(bench: Bench) -> None:
    bench.cpu.script = [io_write(CONSOLE, b"a"), quit_with(0)]
    assert bench.machine.run(PATIENCE).kernel == {"exits": 2, "halt_exits": 0}


def test_a_counter_that_appears_during_the_run_grew_from_zero(bench: Bench) -> None:
    def appear() -> Exit:
        bench.cpu.counters["mmio_exits"] = 5
        return quit_with(0)

    bench.cpu.script = [appear]
    assert bench.machine.run(PATIENCE).kernel["mmio_exits"] == 5


def test_the_result_has_the_log_and_the_time(bench: Bench) -> None:
    bench.cpu.script = [quit_with(0)]
    result = bench.machine.run(PATIENCE)
    assert result.exits is bench.machine.exits
    assert 0 < result.seconds < PATIENCE

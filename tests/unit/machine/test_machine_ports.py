"""The machine's debug ports."""

import pytest

from tests.patience import PATIENCE
from tests.unit.machine.bench import CONSOLE, EXIT, Bench, io_read, io_write, quit_with


def test_bytes_written_to_the_console_port_are_output_in_order(bench: Bench) -> None:
    bench.run(io_write(CONSOLE, b"a"), io_write(CONSOLE, b"b"), io_write(CONSOLE, b"c"))
    assert bench.output == b"abc"


def test_a_string_written_to_the_console_port_is_output_whole(bench: Bench) -> None:
    bench.run(io_write(CONSOLE, b"Hello, World!\n"))
    assert bench.output == b"Hello, World!\n"


def test_the_console_port_reads_as_its_number(bench: Bench) -> None:
    read = io_read(CONSOLE, 1, count=3)
    bench.run(read)
    assert bytes(read.data) == b"\xe9\xe9\xe9"


@pytest.mark.parametrize("status", [0, 1, 255])
def test_a_write_to_the_exit_port_ends_the_run_with_its_status(bench: Bench, status: int) -> None:
    bench.cpu.script = [quit_with(status), io_write(CONSOLE, b"too late")]
    assert bench.machine.run(PATIENCE).status == status
    assert bench.output == b""


def test_the_status_is_the_low_byte_of_a_wide_write(bench: Bench) -> None:
    bench.cpu.script = [io_write(EXIT, b"\x07\xff\xff\xff", size=4)]
    assert bench.machine.run(PATIENCE).status == 7


def test_reading_the_exit_port_does_not_end_the_run(bench: Bench) -> None:
    read = io_read(EXIT, 1)
    assert bench.run(read, io_write(CONSOLE, b"still here")) == 0
    assert (bytes(read.data), bytes(bench.output)) == (b"\0", b"still here")

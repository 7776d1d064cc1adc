"""The machine's devices, their addresses, and accesses to addresses without a device."""

from collections.abc import Callable

import pytest

from tests.unit.machine.bench import (
    CONSOLE,
    EXIT,
    FIRST,
    NOBODYS_ADDRESS,
    NOBODYS_PORT,
    SECOND,
    Bench,
    FakeDevice,
    bench_of,
    io_read,
    io_write,
    mmio_read,
    mmio_write,
)
from virtiopy.cpu.exits import Exit
from virtiopy.errors import ConfigError
from virtiopy.memory import GuestMemory
from virtiopy.metrics.exitlog import ExitKind
from virtiopy.transport.registers import MAGIC_VALUE, Register
from virtiopy.vm.bus import UnassignedAccessError
from virtiopy.vm.slots import IoMode

# Devices and their addresses


def test_each_device_has_a_page_of_registers_and_an_interrupt_line(bench: Bench) -> None:
    slots = [bench.machine.add_device(FakeDevice(), f"rng{n}", IoMode.TRAPPED) for n in range(3)]
    assert [(slot.name, slot.placement.address, slot.placement.gsi) for slot in slots] == [
        ("rng0", 0xD000_0000, 16),
        ("rng1", 0xD000_1000, 17),
        ("rng2", 0xD000_2000, 18),
    ]


def test_a_device_too_many_is_refused_and_the_others_stay(bench: Bench) -> None:
    for number in range(32):
        bench.machine.add_device(FakeDevice(), f"rng{number}", IoMode.TRAPPED)
    with pytest.raises(ConfigError, match=r"^There are more than 32 devices: leave some out\.$"):
        bench.machine.add_device(FakeDevice(), "rng32", IoMode.TRAPPED)
    assert [slot.placement.gsi for slot in bench.machine.slots] == list(range(16, 24)) * 4


@pytest.mark.parametrize(
    ("first", "then"),
    [(IoMode.TRAPPED, IoMode.IOEVENTFD), (IoMode.IOEVENTFD, IoMode.TRAPPED)],
)
def test_a_level_and_a_pulse_share_no_line(bench: Bench, first: IoMode, then: IoMode) -> None:
    modes = [*[first] * 9, then, then, first]
    for number, mode in enumerate(modes):
        bench.machine.add_device(FakeDevice(), f"rng{number}", mode)
    assert [slot.placement.gsi for slot in bench.machine.slots] == [*range(16, 24), 16, 5, 5, 17]


def test_devices_on_one_line_have_one_irqfd(bench: Bench) -> None:
    for number in range(10):
        bench.machine.add_device(FakeDevice(), f"rng{number}", IoMode.IOEVENTFD)
    assert bench.accelerator.irqfds == list(range(16, 24))
    calls = [slot.transport.lifecycle.notifiers(0) for slot in bench.machine.slots]
    assert calls[0] is not None
    assert calls[8] is not None
    assert calls[0].call == calls[8].call


def test_a_line_is_high_while_any_of_its_devices_raises_it(bench: Bench) -> None:
    slots = [bench.machine.add_device(FakeDevice(), f"rng{n}", IoMode.TRAPPED) for n in range(9)]
    first, ninth = slots[0], slots[8]
    for slot in (first, ninth):
        slot.transport.lifecycle.status = 15
        slot.transport.lifecycle.config_changed()
    acknowledge = b"\2\0\0\0"
    # The second is an edge, too, for a driver that takes the line by its edges.
    assert bench.accelerator.lines == [(16, True), (16, False), (16, True)]
    bench.run(mmio_write(first.placement.address + Register.InterruptACK, acknowledge))
    assert bench.accelerator.lines[3:] == []
    bench.run(mmio_write(ninth.placement.address + Register.InterruptACK, acknowledge))
    assert bench.accelerator.lines[3:] == [(16, False)]


def test_a_device_that_is_refused_leaves_its_slot_to_the_next(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="cannot delegate its rings"):
        bench.machine.add_device(FakeDevice(), "rng0", IoMode.VHOST)
    # KVM takes no other eventfd for the same write (EEXIST).
    assert bench.accelerator.kicks == []
    assert bench.machine.add_device(FakeDevice(), "rng1").placement.address == FIRST
    bench.machine.close()
    assert bench.accelerator.kicks == []


def test_a_read_gets_the_register_of_the_device_at_its_address(bench: Bench) -> None:
    for name in ("rng0", "rng1"):
        bench.machine.add_device(FakeDevice(), name, IoMode.TRAPPED)
    reads = [mmio_read(base + Register.MagicValue, 4) for base in (FIRST, SECOND)]
    bench.run(*reads)
    assert [int.from_bytes(read.data, "little") for read in reads] == [MAGIC_VALUE] * 2


def test_a_write_reaches_the_device_at_its_address_and_no_other(bench: Bench) -> None:
    first, second = FakeDevice(), FakeDevice()
    bench.machine.add_device(first, "rng0", IoMode.TRAPPED)
    bench.machine.add_device(second, "rng1", IoMode.TRAPPED)
    bench.run(mmio_write(SECOND + Register.Config + 2, b"\xaa\xbb"))
    assert (first.config[2:4], second.config[2:4]) == (b"\3\4", b"\xaa\xbb")


def test_the_last_byte_of_a_page_is_the_devices(bench: Bench) -> None:
    bench.machine.add_device(FakeDevice(), "rng0", IoMode.TRAPPED)
    read = mmio_read(FIRST + 0xFFF, 1)
    assert bench.run(read) == 0
    assert bytes(read.data) == b"\0"


def test_an_interrupt_of_a_device_is_the_level_of_its_line(bench: Bench) -> None:
    bench.machine.add_device(FakeDevice(), "rng0", IoMode.TRAPPED)
    slot = bench.machine.add_device(FakeDevice(), "rng1", IoMode.TRAPPED)
    slot.transport.lifecycle.status = 15
    slot.transport.lifecycle.config_changed()
    bench.run(mmio_write(SECOND + Register.InterruptACK, b"\2\0\0\0"))
    assert bench.accelerator.lines == [(17, True), (17, False)]


# Accesses to addresses without a device


UNASSIGNED = [
    (mmio_write, NOBODYS_ADDRESS, b"1234", "wrote 4 bytes at guest physical address 0xc0000000"),
    (mmio_read, NOBODYS_ADDRESS, 8, "read 8 bytes at guest physical address 0xc0000000"),
    (mmio_read, SECOND, 1, "read 1 byte at guest physical address 0xd0001000"),
    (io_write, NOBODYS_PORT, b"1", "wrote 1 byte at port 0x5555"),
    (io_read, NOBODYS_PORT, 4, "read 4 bytes at port 0x5555"),
    (io_read, EXIT + 4, 1, "read 1 byte at port 0xf8"),
    (io_read, CONSOLE - 1, 2, "read 2 bytes at port 0xe8"),
]


@pytest.mark.parametrize(("make", "where", "what", "words"), UNASSIGNED)
def test_an_access_where_nobody_is_ends_the_run_and_says_what_it_was(
    memory: GuestMemory,
    make: Callable[[int, bytes | int], Exit],
    where: int,
    what: bytes | int,
    words: str,
) -> None:
    bench = bench_of(memory)
    bench.machine.add_device(FakeDevice(), "rng0", IoMode.TRAPPED)
    with pytest.raises(UnassignedAccessError, match=rf"^The guest {words}, where no device is: "):
        bench.run(make(where, what))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_reads_where_nobody_is_give_all_ones_if_they_may_pass(lenient: Bench, size: int) -> None:
    read = mmio_read(NOBODYS_ADDRESS, size)
    assert lenient.run(read) == 0
    assert read.data == b"\xff" * size


def test_a_string_read_where_nobody_is_gives_all_ones_to_its_end(lenient: Bench) -> None:
    read = io_read(NOBODYS_PORT, 2, count=5)
    assert lenient.run(read) == 0
    assert read.data == b"\xff" * 10


@pytest.mark.parametrize("step", [io_write(NOBODYS_PORT, b"1"), mmio_write(NOBODYS_ADDRESS, b"1")])
def test_writes_where_nobody_is_do_nothing_if_they_may_pass(lenient: Bench, step: Exit) -> None:
    assert lenient.run(step, io_write(CONSOLE, b"on")) == 0
    assert lenient.output == b"on"


def test_accesses_where_nobody_is_are_counted_by_address_if_they_may_pass(lenient: Bench) -> None:
    counts = lenient.counts(
        io_read(NOBODYS_PORT, 1, count=7),
        mmio_write(NOBODYS_ADDRESS, b"1"),
        mmio_write(NOBODYS_ADDRESS, b"2"),
    )
    assert counts == {
        ExitKind("IO", "unassigned", "0x5555", "read"): 1,
        ExitKind("MMIO", "unassigned", "0xc0000000", "write"): 2,
    }

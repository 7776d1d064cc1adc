"""The machine: who answers an exit, how it is counted, how a run ends. No guest code runs here."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from tests.patience import PATIENCE
from virtiopy._native import ffi
from virtiopy.boot import pvh
from virtiopy.boot.elf import GuestImage, LoadSegment
from virtiopy.cpu.activity import Activity
from virtiopy.cpu.exits import Answer, Exit, ExitReason, IoExit, MmioExit
from virtiopy.cpu.rare_exits import InternalErrorExit
from virtiopy.cpu.x86 import CR0_PE, Registers, SystemRegisters
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError, GuestError, HostError
from virtiopy.memory import GuestMemory
from virtiopy.metrics.exitlog import ExitKind
from virtiopy.spec import DeviceId
from virtiopy.transport.registers import MAGIC_VALUE, Interrupt, Register
from virtiopy.virtqueue.queue import Chain, Virtqueue
from virtiopy.vm.bus import UnassignedAccessError
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode

FIRST, SECOND = 0xD000_0000, 0xD000_1000
CONSOLE, EXIT = 0xE9, 0xF4
NOBODYS_PORT, NOBODYS_ADDRESS = 0x5555, 0xC000_0000


Step = Exit | Callable[[], Exit | None]


class FakeCpu:
    """Returns the exits that a test wrote down, and then runs on until it is stopped."""

    def __init__(self) -> None:
        self.script: list[Step] = []
        self.registers = Registers(rip=0x1234)
        self.system_registers = SystemRegisters()
        self.counters = {"exits": 100, "halt_exits": 3}
        self.stops = 0
        self.closed = False
        self._stopped = threading.Event()

    def run(self, answer: Answer) -> Exit | None:
        while self.script:
            self.counters["exits"] += 1
            step = self.script.pop(0)
            exit_ = step if isinstance(step, Exit) else step()
            if not isinstance(exit_, IoExit | MmioExit):
                return exit_
            if not answer(exit_):
                return None
        self.counters["exits"] += 1
        self.spin()
        return None

    def spin(self) -> None:
        assert self._stopped.wait(PATIENCE), "nobody stopped the CPU"
        self._stopped.clear()

    def stop(self) -> None:
        self.stops += 1
        self._stopped.set()

    def get_registers(self) -> Registers:
        return self.registers

    def set_registers(self, registers: Registers) -> None:
        self.registers = registers

    def get_system_registers(self) -> SystemRegisters:
        return self.system_registers

    def set_system_registers(self, state: SystemRegisters) -> None:
        self.system_registers = state

    def activity(self) -> Activity:
        return Activity.RUNNING

    def statistics(self) -> dict[str, int]:
        return dict(self.counters)

    def close(self) -> None:
        self.closed = True


class FakeAccelerator:
    """Makes the CPU of the test, and records the interrupt lines."""

    name = "fake"

    translates = False

    def __init__(self, *, has_read_only_memory: bool = False) -> None:
        self.has_read_only_memory = has_read_only_memory
        #: Host addresses of what is read only, by guest physical address.
        self.read_only: dict[int, int] = {}
        self.cpus = [FakeCpu()]
        self.lines: list[tuple[int, bool]] = []
        self.kicks: list[tuple[int, int]] = []
        self.irqfds: list[int] = []
        #: The CPU that cannot be made.
        self.refused: int | None = None

    @property
    def cpu(self) -> FakeCpu:
        return self.cpus[0]

    def code_written(self, address: int, length: int) -> None:
        pass

    def create_cpu(self, number: int = 0, count: int = 1) -> FakeCpu:
        if number == self.refused:
            raise ConfigError("for the test")
        while len(self.cpus) < count:
            self.cpus.append(FakeCpu())
        return self.cpus[number]

    def set_irq_line(self, gsi: int, level: bool) -> None:
        self.lines.append((gsi, level))

    def add_ioeventfd(self, address: int, value: int, eventfd: int) -> Callable[[], None]:
        self.kicks.append((address, value))
        return lambda: self.kicks.remove((address, value))

    def add_irqfd(self, gsi: int, eventfd: int) -> None:
        self.irqfds.append(gsi)

    def add_read_only_memory(
        self, guest_address: int, size: int, host_address: int
    ) -> Callable[[], None]:
        assert size == 0x1000
        self.read_only[guest_address] = host_address

        def remove() -> None:
            del self.read_only[guest_address]

        return remove

    def statistics(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """Free nothing."""


class FakeDevice(VirtioDevice):
    """A device with a queue and 8 bytes of configuration, which may fail when it is configured."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY

    def __init__(self) -> None:
        super().__init__()
        self.queue_sizes = [4]
        self.config = b"\1\2\3\4\5\6\7\x08"
        self.error: Exception | None = None
        self.ends: list[str] = []

    def config_space(self) -> bytes:
        return self.config

    def write_config(self, offset: int, data: bytes) -> bool:
        if self.error is not None:
            raise self.error
        self.config = self.config[:offset] + data + self.config[offset + len(data) :]
        return True

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        return 0

    def reset(self) -> None:
        super().reset()
        self.ends.append("reset")

    def close(self) -> None:
        self.ends.append("close")


def mmio_write(address: int, data: bytes) -> MmioExit:
    return MmioExit(ExitReason.MMIO, address, True, memoryview(bytearray(data)))


def mmio_read(address: int, size: int) -> MmioExit:
    return MmioExit(ExitReason.MMIO, address, False, memoryview(bytearray(size)))


def io_write(port: int, data: bytes, size: int = 1) -> IoExit:
    return IoExit(ExitReason.IO, port, size, len(data) // size, True, memoryview(bytearray(data)))


def io_read(port: int, size: int, count: int = 1) -> IoExit:
    return IoExit(ExitReason.IO, port, size, count, False, memoryview(bytearray(size * count)))


def quit_with(status: int) -> IoExit:
    return io_write(EXIT, bytes([status]))


@dataclass
class Bench:
    """A machine whose CPU does what `run` is given."""

    machine: Machine
    accelerator: FakeAccelerator
    output: bytearray = field(default_factory=bytearray)

    @property
    def cpu(self) -> FakeCpu:
        return self.accelerator.cpu

    def run(self, *steps: Step) -> int | None:
        """Run the steps and the exit port's status 0; returns the run's status."""
        self.cpu.script = [*steps, quit_with(0)]
        return self.machine.run(PATIENCE).status

    def counts(self, *steps: Step) -> dict[ExitKind, int]:
        """Run the steps and return what was counted for them."""
        self.run(*steps)
        counts = dict(self.machine.exits.counts)
        del counts[ExitKind("IO", "exit port", "status", "write")]
        return counts


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(2 << 20) as memory:
        yield memory


def bench_of(memory: GuestMemory, *, ignore_unassigned: bool = False) -> Bench:
    accelerator, output = FakeAccelerator(), bytearray()
    machine = Machine(
        memory, accelerator, console=output.extend, ignore_unassigned=ignore_unassigned
    )
    return Bench(machine, accelerator, output)


@pytest.fixture
def bench(memory: GuestMemory) -> Bench:
    return bench_of(memory)


@pytest.fixture
def lenient(memory: GuestMemory) -> Bench:
    return bench_of(memory, ignore_unassigned=True)


# The debug ports


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


# Accesses where nobody is


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


# Counting


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


# How a run ends


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


# Several CPUs


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


# Registers without exits


def ignore(data: bytes) -> None:
    """Take what the guest writes to the console."""


@pytest.mark.parametrize("exit_free", [True, None])
def test_registers_are_in_read_only_memory_until_the_machine_is_closed(
    memory: GuestMemory, exit_free: bool | None
) -> None:
    accelerator = FakeAccelerator(has_read_only_memory=True)
    with Machine(memory, accelerator, console=ignore, exit_free=exit_free) as machine:
        machine.add_device(FakeDevice(), "rng0", IoMode.IOEVENTFD)
        machine.add_device(FakeDevice(), "rng1", IoMode.TRAPPED)
        assert set(accelerator.read_only) == {FIRST, SECOND}
        magic = ffi.cast("uint32_t *", accelerator.read_only[FIRST])
        assert magic[0] == MAGIC_VALUE
    assert not accelerator.read_only


def test_the_kernel_takes_the_acknowledgements_of_used_buffers_where_interrupts_are_irqfds(
    memory: GuestMemory,
) -> None:
    accelerator = FakeAccelerator(has_read_only_memory=True)
    with Machine(memory, accelerator, console=ignore, exit_free=True) as machine:
        machine.add_device(FakeDevice(), "rng0", IoMode.IOEVENTFD)
        machine.add_device(FakeDevice(), "rng1", IoMode.TRAPPED)
        for slot in machine.slots:
            slot.transport.lifecycle.activate()
        acknowledgements = [
            (address, value)
            for address, value in accelerator.kicks
            if address & 0xFFF == Register.InterruptACK
        ]
    assert acknowledgements == [(FIRST + Register.InterruptACK, Interrupt.USED_BUFFER)]


@pytest.mark.parametrize("exit_free", [False, None])
def test_registers_are_left_to_exits_where_that_is_asked_for_or_nothing_else_can_be_had(
    memory: GuestMemory, exit_free: bool | None
) -> None:
    accelerator = FakeAccelerator(has_read_only_memory=exit_free is False)
    with Machine(memory, accelerator, console=ignore, exit_free=exit_free) as machine:
        machine.add_device(FakeDevice(), "rng0", IoMode.IOEVENTFD)
        assert not machine.exit_free
        assert not accelerator.read_only
        assert accelerator.kicks == [(FIRST + Register.QueueNotify, 0)]


def test_registers_without_exits_are_refused_where_they_cannot_be_had(memory: GuestMemory) -> None:
    with pytest.raises(HostError, match=r"no registers without exits on fake.* --accel kvm"):
        Machine(memory, FakeAccelerator(), console=ignore, exit_free=True)


# Boot and end


IMAGE = GuestImage(
    Path("guest.elf"), 0x10_0000, 0x10_0010, (LoadSegment(0x10_0000, b"\x90" * 32, 64),)
)


def _command_line(memory: GuestMemory) -> str:
    return memory.read(pvh.COMMAND_LINE, 0x200).split(b"\0")[0].decode()


def test_the_command_line_names_every_device_and_then_the_arguments(
    bench: Bench, memory: GuestMemory
) -> None:
    for name in ("rng0", "rng1"):
        bench.machine.add_device(FakeDevice(), name, IoMode.TRAPPED)
    bench.machine.boot(IMAGE, "blk.requests=7")
    assert _command_line(memory) == (
        "virtio_mmio.device=4K@0xd0000000:16 virtio_mmio.device=4K@0xd0001000:17 blk.requests=7"
    )


@pytest.mark.parametrize("arguments", ["", "quiet"])
def test_without_devices_the_command_line_is_the_arguments(
    bench: Bench, memory: GuestMemory, arguments: str
) -> None:
    bench.machine.boot(IMAGE, arguments)
    assert _command_line(memory) == arguments


def test_the_cpu_starts_at_the_pvh_entry_in_protected_mode(bench: Bench) -> None:
    bench.machine.boot(IMAGE)
    assert (bench.cpu.registers.rip, bench.cpu.registers.rbx) == (0x10_0010, pvh.START_INFO)
    assert bench.cpu.system_registers.cr0 & CR0_PE


def test_closing_the_machine_resets_and_closes_devices_and_cpu(memory: GuestMemory) -> None:
    bench, device = bench_of(memory), FakeDevice()
    with bench.machine:
        bench.machine.add_device(device, "rng0", IoMode.TRAPPED)
    assert (device.ends, bench.cpu.closed) == (["reset", "close"], True)

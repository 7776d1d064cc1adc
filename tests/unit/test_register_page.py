"""Registers that are read from memory are the registers that are read by exits, at every moment."""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.openfiles import open_files
from tests.unit.blk.bench import FakeDisk
from tests.unit.console.bench import FakeStream
from tests.unit.net.rig import MAC, FakeLink
from virtiopy.devices.balloon import Balloon
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.blk import Blk
from virtiopy.devices.console import Console
from virtiopy.devices.net import Net
from virtiopy.devices.net.control import Ack, ControlClass, MacCommand
from virtiopy.errors import HostError
from virtiopy.memory import PAGE_SIZE, GuestMemory
from virtiopy.spec import DeviceId, DeviceStatus
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registerpage import RegisterPage
from virtiopy.transport.registers import REGISTER_RANGE, Interrupt, Register
from virtiopy.virtqueue.driver import Allocator, Piece

CONFIG_END = 0x200


class Configured(VirtioDevice):
    """A device with two fields that are always the same, if they are read together."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY
    queue_sizes = (8, 4)

    def __init__(self) -> None:
        super().__init__()
        self.fields = 0

    def config_space(self) -> bytes:
        return self.fields.to_bytes(4, "little") * 2

    def write_config(self, offset: int, data: bytes) -> bool:
        self.fields = int.from_bytes(data, "little")
        return True

    def change(self) -> None:
        with self.lock:
            self.fields += 1
            self.host.config_changed()


@dataclass
class Bench:
    """A device whose registers are on a page too."""

    memory: GuestMemory
    device: VirtioDevice
    transport: MmioTransport
    page: RegisterPage
    #: The interrupt's level.
    line: list[bool]

    def on_the_page(self, offset: int, size: int = 4) -> int:
        return int.from_bytes(self.page.read()[offset : offset + size], "little")

    def by_exit(self, offset: int, size: int = 4) -> int:
        return int.from_bytes(self.transport.read(offset, size), "little")

    def check(self) -> None:
        """Read everything both ways."""
        names = {o: self.transport.register_name(o) for o in range(0, Register.Config, 4)}
        page = {name: self.on_the_page(offset) for offset, name in names.items()}
        assert page == {name: self.by_exit(offset) for offset, name in names.items()}
        for size in (1, 2, 4):
            for offset in range(Register.Config, CONFIG_END, size):
                assert self.on_the_page(offset, size) == self.by_exit(offset, size), offset
        assert not any(self.page.read()[CONFIG_END:])


def bench_of(memory: GuestMemory, device: VirtioDevice) -> Bench:
    line: list[bool] = []
    transport = MmioTransport(device, memory, LevelInterrupt(line.append))
    page = RegisterPage()
    transport.show_on(page)
    return Bench(memory, device, transport, page, line)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(1 << 20) as memory:
        yield memory


DEVICES: Mapping[str, Callable[[], VirtioDevice]] = {
    "blk": lambda: Blk(FakeDisk()),
    "net": lambda: Net(FakeLink(), mac=MAC),
    "console": lambda: Console(FakeStream()),
    "balloon": Balloon,
    "configured": Configured,
}

#: Writes to registers that mean something, and to any place with any value and width.
LIKELY = st.tuples(
    st.sampled_from([int(register) for register in Register if register != Register.Config]),
    st.sampled_from([0, 1, 2, 3, 4, 8, 0x0F, 0x80, 1 << 16, 0xFFFF_FFFF]),
    st.just(4),
)
UNLIKELY = st.tuples(
    st.integers(0, CONFIG_END - 1), st.integers(0, 0xFFFF_FFFF), st.sampled_from([1, 2, 4, 8])
)
LIVES = st.lists(
    st.one_of(
        LIKELY,
        LIKELY,
        UNLIKELY,
        st.sampled_from(["start", "interrupt", "config", "needs_reset", "lend", "take_back"]),
    ),
    min_size=1,
    max_size=30,
)


def live(bench: Bench, step: tuple[int, int, int] | str) -> None:
    transport, device = bench.transport, bench.device
    match step:
        case (int(offset), int(value), int(size)):
            transport.write(offset, value.to_bytes(8, "little")[:size])
        case "start":
            MmioDriver(transport, bench.memory, Allocator(0x1000, 1 << 20)).start()
        case "interrupt":
            for queue in device.queues.values():
                transport.lifecycle.used_buffer_notification(queue)
        case "config":
            with device.lock:
                transport.lifecycle.config_changed()
        case "needs_reset":
            with device.lock:
                transport.lifecycle.needs_reset("for the test")
        case "lend":
            transport.lifecycle.delegate_interrupt(0)
        case "take_back":
            transport.lifecycle.reclaim_interrupt(0)


@pytest.mark.parametrize("name", DEVICES)
@given(steps=LIVES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_the_page_is_what_the_registers_are_in_any_life(
    memory: GuestMemory, name: str, steps: list[tuple[int, int, int] | str]
) -> None:
    bench = bench_of(memory, DEVICES[name]())
    bench.check()
    for step in steps:
        live(bench, step)
        bench.check()
    bench.page.close()


@pytest.mark.parametrize("name", DEVICES)
def test_the_page_is_what_the_registers_are_at_each_step_of_an_ordinary_life(
    memory: GuestMemory, name: str
) -> None:
    bench = bench_of(memory, DEVICES[name]())
    seen = 0

    class Checked:
        def read(self, offset: int, size: int) -> bytes:
            return bench.page.read()[offset : offset + size]

        def write(self, offset: int, data: bytes) -> None:
            nonlocal seen
            bench.transport.write(offset, data)
            bench.check()
            seen += 1

    # The driver reads nothing but the page, and finds all that it needs there.
    driver = MmioDriver(Checked(), memory, Allocator(0x1000, 1 << 20))
    for _ in range(2):
        driver.start()
        assert driver.status & DeviceStatus.DRIVER_OK
        driver.kick(0)
        bench.check()
        driver.interrupts()
    driver.reset()
    assert bench.on_the_page(Register.Status) == 0
    assert seen > 40
    bench.page.close()


def test_an_address_that_the_driver_commands_is_in_the_configuration_space(
    memory: GuestMemory,
) -> None:
    bench = bench_of(memory, Net(FakeLink(), mac=MAC))
    allocator = Allocator(0x1000, 1 << 20)
    driver = MmioDriver(bench.transport, memory, allocator)
    driver.start()
    generation = bench.on_the_page(Register.ConfigGeneration)
    new = bytes.fromhex("02aabbccddee")
    command, ack = allocator.take(8), allocator.take(1)
    memory.write(command, bytes([ControlClass.MAC, MacCommand.ADDR_SET]) + new)
    driver.queues[2].add([Piece(command, 8), Piece(ack, 1, writable=True)])
    driver.collect(2)

    assert memory.read(ack, 1)[0] == Ack.OK
    assert bench.page.read()[Register.Config : Register.Config + 6] == new
    assert bench.on_the_page(Register.ConfigGeneration) != generation
    # The driver knows: it is not told.
    assert not bench.transport.interrupt.events & Interrupt.CONFIG_CHANGE
    bench.check()
    bench.page.close()


def test_a_configuration_space_that_is_longer_than_the_page_is_shown_as_far_as_it_goes(
    memory: GuestMemory,
) -> None:
    class Long(Configured):
        def config_space(self) -> bytes:
            return b"\x5a" * REGISTER_RANGE

    bench = bench_of(memory, Long())
    assert set(bench.page.read()[Register.Config :]) == {0x5A}
    bench.page.close()


# InterruptStatus


@pytest.fixture
def started(memory: GuestMemory) -> Iterator[Bench]:
    bench = bench_of(memory, Configured())
    MmioDriver(bench.transport, memory, Allocator(0x1000, 1 << 20)).start()
    yield bench
    bench.page.close()


def acknowledge(bench: Bench, events: int) -> None:
    bench.transport.write(Register.InterruptACK, events.to_bytes(4, "little"))


def test_used_buffers_are_in_interrupt_status_until_they_are_acknowledged(
    memory: GuestMemory,
) -> None:
    bench = bench_of(memory, Configured())
    MmioDriver(bench.transport, memory, Allocator(0x1000, 1 << 20)).start()
    assert bench.on_the_page(Register.InterruptStatus) == 0
    bench.transport.lifecycle.used_buffer_notification(bench.device.queues[0])
    assert bench.on_the_page(Register.InterruptStatus) == Interrupt.USED_BUFFER
    acknowledge(bench, Interrupt.USED_BUFFER)
    assert bench.on_the_page(Register.InterruptStatus) == 0
    bench.page.close()


def test_a_configuration_change_is_in_interrupt_status_until_it_is_acknowledged(
    started: Bench,
) -> None:
    device = started.device
    assert isinstance(device, Configured)
    device.change()
    assert started.on_the_page(Register.InterruptStatus) & Interrupt.CONFIG_CHANGE
    acknowledge(started, Interrupt.CONFIG_CHANGE)
    assert not started.on_the_page(Register.InterruptStatus) & Interrupt.CONFIG_CHANGE


# Consistency


def test_a_driver_that_finds_one_generation_has_read_one_configuration(started: Bench) -> None:
    device = started.device
    assert isinstance(device, Configured)
    done = threading.Event()
    read, torn = 0, []

    def drive() -> None:
        nonlocal read
        while not done.is_set():
            generation = started.on_the_page(Register.ConfigGeneration)
            first = started.on_the_page(Register.Config)
            second = started.on_the_page(Register.Config + 4)
            if started.on_the_page(Register.ConfigGeneration) == generation:
                read += 1
                if first != second:
                    torn.append((first, second))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    driver = threading.Thread(target=drive)
    driver.start()
    try:
        while read < 2000:
            device.change()
    finally:
        done.set()
        driver.join()
        sys.setswitchinterval(interval)
    assert not torn


def test_a_host_without_memory_for_it_is_told_and_nothing_stays_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "ftruncate", refuse)
    before = open_files()
    with pytest.raises(HostError, match=r"No space left.*--exit-free off"):
        RegisterPage()
    assert open_files() == before


def test_what_is_shown_later_is_shown_in_the_same_place() -> None:
    with RegisterPage() as page:
        address = page.host_address
        for byte in b"\1\2\3":
            page.show(bytes([byte]) * PAGE_SIZE)
            assert page.read() == bytes([byte]) * PAGE_SIZE
            page.set(8, 0x0A0B_0C0D)
            assert page.read()[8:12] == bytes.fromhex("0d0c0b0a")
        assert page.host_address == address
    assert PAGE_SIZE == REGISTER_RANGE

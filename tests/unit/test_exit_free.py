"""InterruptStatus says what took place, where the guest reads it from memory as well (4.2.2.1)."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from virtiopy.conformance.sessions.wires import SoftwareWires, WiredRegisters
from virtiopy.devices.base import VirtioDevice
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.exitfree import CLEAN, Trust
from virtiopy.transport.mmioplace import MmioPlacement
from virtiopy.transport.placement import Site
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue.driver import Allocator, Piece
from virtiopy.virtqueue.queue import Chain, Virtqueue

MEMORY = 1 << 20
ADDRESS, GSI = 0xD000_0000, 16
USED = Interrupt.USED_BUFFER


class Filler(VirtioDevice):
    """Uses every buffer."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY
    queue_sizes = (16, 16)

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        return 0


@dataclass
class Bench:
    """A device in a VM without a guest, which the test drives; the test turns the loop, too."""

    always: bool
    memory: GuestMemory = field(default_factory=lambda: GuestMemory.allocate(MEMORY))
    wires: SoftwareWires = field(default_factory=SoftwareWires)
    loop: EventLoop = field(default_factory=EventLoop)
    device: Filler = field(default_factory=Filler)

    def __post_init__(self) -> None:
        self.release = contextlib.ExitStack()
        self.release.enter_context(self.wires)
        placement, site = MmioPlacement(ADDRESS, GSI), Site(self.memory, self.loop, self.wires)
        self.transport = placement.plug(self.device, "x0", site, self.release, trapped=False)
        placement.leave_out_exits(self.transport, site, self.release, always=self.always)
        registers = WiredRegisters(self.wires, self.transport, ADDRESS)
        self.driver = MmioDriver(registers, self.memory, Allocator(0x1000, MEMORY))

    def close(self) -> None:
        self.transport.lifecycle.reset()
        self.release.close()
        self.loop.close()
        self.memory.close()

    @property
    def trust(self) -> Trust:
        watcher = self.transport.interrupt.watcher
        trust: Trust = watcher.trust  # type: ignore[attr-defined]
        return trust

    @property
    def reads_are_exits(self) -> bool:
        return ADDRESS not in self.wires.pages

    @property
    def acks_are_exits(self) -> bool:
        return (ADDRESS + Register.InterruptACK, int(USED)) not in self.wires.kicks

    @property
    def status(self) -> int:
        return self.driver.read(Register.InterruptStatus)

    def acknowledge(self, events: int) -> None:
        self.driver.write(Register.InterruptACK, events)

    def turn(self) -> None:
        """Do what the loop has to do now, and no more."""
        self.loop.call_soon(self.loop.stop, "stop")
        self.loop.start()
        self.loop.stop()
        assert self.loop.failure is None

    def interrupt(self, index: int = 0) -> None:
        """Have a buffer used, and the driver interrupted for it."""
        queue = self.driver.queues[index]
        queue.add([Piece(0x8_0000, 4, writable=True)])
        self.driver.kick(index)
        before = self.wires.take_interrupts(GSI)
        while not self.wires.take_interrupts(GSI):
            self.turn()
        assert before == 0
        assert len(queue.take_all_used()) == 1

    def handle_as_linux(self) -> int:
        """Handle an interrupt as 4.2.3.4.1 describes; returns what InterruptStatus was."""
        status = self.status
        self.acknowledge(status)
        return status

    def come_to_trust(self) -> None:
        self.driver.start([])
        for _ in range(CLEAN):
            self.interrupt()
            self.handle_as_linux()
        assert self.trust is Trust.TRUSTED


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(always=False)
    yield bench
    bench.close()


# A driver that drains: while (status) acknowledge


def drain(bench: Bench, most: int = 50) -> int:
    """Return how often InterruptStatus had a bit, `most` at most."""
    for count in range(most):
        if not (status := bench.status):
            return count
        bench.acknowledge(status)
    return most


def test_a_driver_that_drains_comes_to_an_end_with_each_interrupt(bench: Bench) -> None:
    bench.driver.start([])
    for _ in range(20):
        bench.interrupt()
        assert drain(bench) == 1
    assert bench.trust is Trust.TRIAL


def test_a_driver_that_polls_sees_no_interrupt_that_was_not(bench: Bench) -> None:
    bench.driver.start([])
    for _ in range(20):
        assert [bench.status for _ in range(3)] == [0, 0, 0]
        bench.interrupt()
        assert [bench.status for _ in range(3)] == [USED] * 3
        bench.acknowledge(USED)
    assert bench.trust is Trust.TRIAL


# A driver that handles interrupts as Linux does


def test_a_driver_like_linuxs_has_no_exits_after_its_first_interrupts(bench: Bench) -> None:
    assert not bench.reads_are_exits
    bench.driver.start([])
    assert bench.reads_are_exits
    for _ in range(CLEAN):
        assert bench.acks_are_exits
        bench.interrupt()
        assert bench.handle_as_linux() == USED
    for _ in range(20):
        assert not bench.reads_are_exits
        assert not bench.acks_are_exits
        bench.interrupt()
        assert bench.handle_as_linux() == USED


def test_one_interrupt_for_two_events_does_not_cost_a_driver_its_trust_for_good(
    bench: Bench,
) -> None:
    bench.driver.start([])
    bench.interrupt()
    bench.interrupt()
    # The interrupt controller has held one of them.
    assert bench.handle_as_linux() == USED
    assert bench.handle_as_linux() == 0
    for _ in range(CLEAN):
        bench.interrupt()
        bench.handle_as_linux()
    assert bench.trust is Trust.TRUSTED


def test_an_acknowledgement_that_no_exit_tells_of_clears_the_bit_soon(bench: Bench) -> None:
    bench.come_to_trust()
    bench.interrupt()
    assert bench.handle_as_linux() == USED
    bench.turn()
    assert bench.status == 0


def test_a_change_of_configuration_is_told_from_used_buffers(bench: Bench) -> None:
    bench.come_to_trust()
    bench.interrupt()
    bench.handle_as_linux()
    # Before the loop has looked.
    bench.transport.lifecycle.config_changed()
    assert bench.handle_as_linux() == Interrupt.CONFIG_CHANGE
    assert bench.status == 0


def test_a_trusted_driver_that_drains_has_its_exits_back_until_a_reset(bench: Bench) -> None:
    bench.come_to_trust()
    bench.turn()
    bench.interrupt()
    assert drain(bench) == 50
    while bench.trust is Trust.TRUSTED:
        bench.turn()
    assert bench.trust is Trust.REFUSED
    for _ in range(3):
        bench.interrupt()
        assert drain(bench) <= 1
    bench.driver.reset()
    bench.come_to_trust()


def test_each_driver_is_on_trial(bench: Bench) -> None:
    bench.come_to_trust()
    bench.driver.start([])
    assert bench.trust is Trust.TRIAL
    assert bench.acks_are_exits
    bench.interrupt()
    assert drain(bench) == 1


def test_an_acknowledgement_before_a_reset_is_none_after_it(bench: Bench) -> None:
    bench.come_to_trust()
    bench.interrupt()
    bench.handle_as_linux()
    bench.come_to_trust()
    bench.interrupt()
    assert bench.status == USED


# Queues that another worker has


class Worker:
    """What works a queue in the device's place, and interrupts the driver itself."""

    def __init__(self, bench: Bench, index: int) -> None:
        self.bench, self.index = bench, index
        notifiers = bench.transport.lifecycle.notifiers(index)
        assert notifiers is not None
        self.notifiers = notifiers
        notifiers.delegate()

    def interrupt(self) -> None:
        self.bench.driver.queues[self.index].used.idx += 1
        assert self.notifiers.call is not None
        os.eventfd_write(self.notifiers.call, 1)
        assert self.bench.wires.take_interrupts(GSI) == 1


def test_a_worker_of_a_queue_does_not_keep_a_driver_from_draining(bench: Bench) -> None:
    bench.driver.start([])
    worker = Worker(bench, 1)
    for _ in range(20):
        assert bench.status == 0
        worker.interrupt()
        assert drain(bench) == 1
    assert bench.trust is Trust.TRIAL


def test_a_driver_like_linuxs_is_trusted_with_a_worker_too(bench: Bench) -> None:
    bench.driver.start([])
    worker = Worker(bench, 1)
    for _ in range(CLEAN):
        worker.interrupt()
        assert bench.handle_as_linux() == USED
    assert bench.trust is Trust.TRUSTED
    for _ in range(30):
        worker.interrupt()
        assert bench.handle_as_linux() == USED
        bench.turn()
    assert bench.trust is Trust.TRUSTED


def test_a_trusted_driver_that_drains_what_a_worker_used_comes_to_an_end(bench: Bench) -> None:
    bench.driver.start([])
    worker = Worker(bench, 1)
    for _ in range(CLEAN):
        worker.interrupt()
        bench.handle_as_linux()
    worker.interrupt()
    assert drain(bench) == 50
    while bench.trust is Trust.TRUSTED:
        bench.turn()
    assert drain(bench) <= 1
    assert bench.status == 0


# Where the user has chosen it


def test_chosen_for_all_drivers_there_is_never_an_exit() -> None:
    bench = Bench(always=True)
    bench.driver.start([])
    for _ in range(3):
        assert not bench.reads_are_exits
        assert not bench.acks_are_exits
        bench.interrupt()
        assert bench.status == USED
        drain(bench)
        # The driver is not kept for ever.
        while bench.status:
            bench.turn()
    assert bench.trust is Trust.TRUSTED
    bench.close()


def test_what_is_wired_is_taken_away_at_the_end(bench: Bench) -> None:
    other = Bench(always=False)
    other.come_to_trust()
    other.close()
    assert other.wires.pages == {}
    assert other.wires.kicks == {}

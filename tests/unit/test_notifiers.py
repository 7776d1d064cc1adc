"""Who has a virtqueue's eventfds: the event loop, or somebody whom they are lent to."""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from tests.patience import PATIENCE
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.delegation import Notifiers
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.notifiers import EventfdNotifiers
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue.driver import Allocator
from virtiopy.virtqueue.queue import Virtqueue

MEMORY = 1 << 20


class SeenLock:
    """A lock that tells when somebody is about to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.wanted = threading.Event()

    def __enter__(self) -> None:
        self.wanted.set()
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


class Lender(VirtioDevice):
    """A device that works no queue of its own accord, and lends its notifiers when told to."""

    device_id: ClassVar[DeviceId] = DeviceId.NETWORK
    queue_sizes = (8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.lock = SeenLock()  # type: ignore[assignment]
        self.kicks: list[int] = []
        self.halts = 0

    def handle(self, queue: Virtqueue) -> None:
        self.kicks.append(queue.index)

    def halt(self) -> None:
        self.halts += 1
        for index in range(2):
            notifiers = self.host.notifiers(index)
            if isinstance(notifiers, EventfdNotifiers) and notifiers.delegated:
                notifiers.reclaim()


@dataclass
class Bench:
    """A device whose queues have eventfds, and its loop, which a test turns itself."""

    memory: GuestMemory
    loop: EventLoop = field(default_factory=EventLoop)
    device: Lender = field(default_factory=Lender)
    levels: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.transport = MmioTransport(
            self.device,
            self.memory,
            LevelInterrupt(self.levels.append),
            loop=self.loop,
            may_block=False,
        )
        self.driver = MmioDriver(self.transport, self.memory, Allocator(0x1000, MEMORY))
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.notifiers = {
            index: EventfdNotifiers(
                self.transport.lifecycle, self.loop, index, kick=kick, call=self.call, name="queue"
            )
            for index, kick in enumerate(self.kicks)
        }
        self.transport.lifecycle.notify_by(self.notifiers)

    def close(self) -> None:
        for notifiers in self.notifiers.values():
            notifiers.close()
        self.loop.close()
        for fd in (self.call, *self.kicks):
            os.close(fd)

    def run_loop(self) -> None:
        """Do what the loop has to do now, and no more."""
        self.loop.call_soon(self.loop.stop, "stop")
        self.loop.start()
        self.loop.stop()
        assert self.loop.failure is None


@pytest.fixture
def bench() -> Iterator[Bench]:
    with GuestMemory.allocate(MEMORY) as memory:
        bench = Bench(memory)
        bench.driver.start()
        yield bench
        bench.close()


def test_the_loop_takes_kicks_to_the_device(bench: Bench) -> None:
    os.eventfd_write(bench.kicks[1], 3)
    bench.run_loop()
    assert bench.device.kicks == [1]


def test_in_trapped_mode_there_are_none() -> None:
    with GuestMemory.allocate(MEMORY) as memory:
        transport = MmioTransport(Lender(), memory, LevelInterrupt(lambda level: None))
        assert transport.lifecycle.notifiers(0) is None


def test_a_device_finds_them_by_its_host(bench: Bench) -> None:
    notifiers: Notifiers | None = bench.device.host.notifiers(1)
    assert notifiers is not None
    assert (notifiers.kick, notifiers.call) == (bench.kicks[1], bench.call)
    assert bench.device.host.notifiers(2) is None


def test_a_lent_kick_is_left_to_the_other(bench: Bench) -> None:
    bench.notifiers[0].delegate()
    os.eventfd_write(bench.kicks[0], 3)
    os.eventfd_write(bench.kicks[1], 1)
    bench.run_loop()
    assert bench.device.kicks == [1]
    assert os.eventfd_read(bench.kicks[0]) == 3


def test_a_kick_that_comes_while_the_queue_is_being_lent_is_left_to_the_other(
    bench: Bench,
) -> None:
    lock = bench.device.lock
    assert isinstance(lock, SeenLock)
    with lock:
        lock.wanted.clear()
        os.eventfd_write(bench.kicks[0], 1)
        bench.loop.start()
        # The loop has seen the kick, and waits to take it.
        assert lock.wanted.wait(PATIENCE)
        bench.notifiers[0].delegate()
    bench.loop.stop()
    assert bench.loop.failure is None
    assert bench.device.kicks == []
    assert os.eventfd_read(bench.kicks[0]) == 1


def test_what_is_taken_back_is_kicked_once(bench: Bench) -> None:
    bench.notifiers[0].delegate()
    bench.notifiers[0].reclaim()
    bench.run_loop()
    bench.run_loop()
    assert bench.device.kicks == [0]


def test_a_kick_counter_that_is_full_is_taken_back_too(bench: Bench) -> None:
    bench.notifiers[0].delegate()
    os.eventfd_write(bench.kicks[0], (1 << 64) - 2)
    bench.notifiers[0].reclaim()
    bench.run_loop()
    assert bench.device.kicks == [0]


def test_what_a_worker_has_used_is_in_interrupt_status_until_it_is_acknowledged(
    bench: Bench,
) -> None:
    assert bench.driver.interrupts() == 0
    bench.notifiers[0].delegate()
    bench.notifiers[1].delegate()
    assert bench.driver.interrupts() == 0
    for index in (0, 1, 1):
        bench.driver.queues[index].used.idx += 1
        assert bench.driver.interrupts() == Interrupt.USED_BUFFER
        assert bench.driver.interrupts() == 0
    bench.notifiers[0].reclaim()
    bench.driver.interrupts()
    bench.driver.queues[1].used.idx += 1
    assert bench.driver.interrupts() == Interrupt.USED_BUFFER


def test_a_last_notification_is_not_lost_when_the_interrupt_is_taken_back(bench: Bench) -> None:
    bench.notifiers[0].delegate()
    os.eventfd_write(bench.call, 1)
    bench.notifiers[0].reclaim()
    assert bench.levels[-1]
    assert bench.driver.interrupts() == Interrupt.USED_BUFFER
    assert bench.driver.interrupts() == 0


def test_other_interrupts_are_told_apart_while_it_is_lent(bench: Bench) -> None:
    bench.notifiers[0].delegate()
    bench.device.host.config_changed()
    assert bench.driver.interrupts() == Interrupt.CONFIG_CHANGE
    bench.driver.queues[0].used.idx += 1
    assert bench.driver.interrupts() == Interrupt.USED_BUFFER


def test_a_device_that_needs_a_reset_is_halted(bench: Bench) -> None:
    bench.notifiers[0].delegate()
    bench.device.host.needs_reset("for the test")
    assert bench.device.halts == 1
    assert bench.driver.interrupts() == Interrupt.USED_BUFFER | Interrupt.CONFIG_CHANGE
    bench.run_loop()
    assert bench.device.kicks == []


def test_a_reset_interrupts_nobody(bench: Bench) -> None:
    bench.notifiers[0].delegate()
    bench.device.reset = bench.notifiers[0].reclaim  # type: ignore[method-assign]
    bench.driver.write(Register.Status, 0)
    assert True not in bench.levels
    assert bench.driver.interrupts() == 0


def test_a_queue_that_cannot_be_starts_no_other(bench: Bench) -> None:
    """With DEVICE_NEEDS_RESET no queue is worked, by whomever (2.1.2)."""
    bench.driver.reset()
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, 8)
    bench.driver.write(Register.QueueSel, 1)
    bench.driver.write(Register.QueueDescHigh, 0x100)
    bench.driver.write(Register.QueueReady, 1)
    bench.driver.write(Register.Status, bench.driver.status | 4)
    assert bench.driver.status & 64
    assert bench.device.queues == {}

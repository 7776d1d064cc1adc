"""Sessions with a device behind MMIO registers, in this process, with no VM."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar, TypeVar

from virtiopy.closing import Closing
from virtiopy.conformance.clauses.definitions import RESET
from virtiopy.conformance.problems import (
    BrokenError,
    DiedError,
    NoAnswerError,
    NotApplicableError,
    WedgedError,
    raised,
    words_of,
)
from virtiopy.conformance.sessions.base import FeatureLike, Session
from virtiopy.conformance.sessions.queue import SessionQueue
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.sessions.wires import SoftwareWires, WiredRegisters
from virtiopy.conformance.targets.builders import Rig
from virtiopy.conformance.targets.loops import raise_failure, turns
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature
from virtiopy.trace.words import register_name, register_value
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.mmioplace import MmioPlacement
from virtiopy.transport.placement import Site
from virtiopy.transport.registers import Interrupt, Register

#: How many 32-bit words of feature bits are read.
FEATURE_WORDS = 4

#: Where the device stands: no guest is there to mind.
ADDRESS = 0xD000_0000
GSI = 16

#: What SHMLen reads as for a region that is not there (4.2.2).
NO_REGION = (1 << 64) - 1

_Result = TypeVar("_Result")

#: What threads of wedged devices still read and write, for as long as this process lives.
_LEFT_BEHIND: list[GuestMemory] = []


class Cpu(Closing):
    """The thread that accesses registers, as a vCPU's does: the test does not hang with it."""

    def __init__(self, patience: float) -> None:
        self.stuck = False
        #: What a device raised, where that came this way.
        self.failure: str | None = None
        self._patience = patience
        #: When the access began that is being made; None between two of them.
        self._since: float | None = None
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="cpu", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def access(self, access: Callable[[], _Result]) -> _Result:
        """Have the device do something, there, and wait for it; raises WedgedError and DiedError.

        Whatever comes out of this but a result is the device's end.
        """
        if threading.current_thread() is not self._thread:
            return self.run(lambda: self.access(access))
        self._since = time.monotonic()
        try:
            return access()
        except Exception as error:
            self.failure = raised(error)
            raise DiedError(self.failure) from error
        finally:
            self._since = None

    def run(self, work: Callable[[], _Result]) -> _Result:
        """Have a driver do something with several accesses, there: what it raises is its own.

        It saves the way there and back for each access. Raises WedgedError where one of them does
        not come back.
        """
        if threading.current_thread() is self._thread:
            return work()
        if self.stuck:
            raise WedgedError("the device still does not come back from a register access")
        answers: queue.SimpleQueue[tuple[_Result] | BaseException] = queue.SimpleQueue()

        def answer() -> None:
            try:
                answers.put((work(),))
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                answers.put(error)

        self._work.put(answer)
        came = self._wait(answers)
        if isinstance(came, BaseException):
            raise came
        return came[0]

    def _wait(self, answers: "queue.SimpleQueue[_Result]") -> _Result:
        left = self._patience
        while True:
            try:
                return answers.get(timeout=left)
            except queue.Empty:
                since = self._since
            now = time.monotonic()
            left = self._patience - (now - since) if since is not None else self._patience
            if left <= 0:
                self.stuck = True
                raise WedgedError(
                    f"a register access has not come back for {self._patience:g} s"
                ) from None

    def close(self) -> None:
        """End the thread; one that is stuck is left behind."""
        self._work.put(None)
        if not self.stuck:
            self._thread.join()


class TracedRegisters:
    """A device's registers, accessed by the CPU, every access traced."""

    def __init__(self, registers: WiredRegisters, cpu: Cpu, trace: Trace) -> None:
        self._registers = registers
        self._cpu = cpu
        self._trace = trace

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes at `offset`."""
        value = self._registers.peek(offset, size)
        if value is None:
            value = self._cpu.access(lambda: self._registers.read(offset, size))
        self._trace.note(f"read {register_name(offset, size)} = {register_value(offset, value)}")
        return value

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`."""
        name = register_name(offset, len(data))
        self._trace.note(f"write {name} = {register_value(offset, data)}")
        if not self._registers.signal(offset, data):
            self._cpu.access(lambda: self._registers.write(offset, data))


class MmioSession(Session):
    """A session with `rig`'s device behind the registers of `transport`.

    It is wired as in a VM whose kicks are not exits: kicks and interrupts are eventfds, what the
    device does it does on an event loop of its own, and registers are read from memory where they
    are in such a VM.
    """

    transport: ClassVar[str] = "mmio"

    def __init__(
        self,
        rig: Rig,
        trace: Trace,
        patience: float,
        *,
        transport: type[MmioTransport] = MmioTransport,
    ) -> None:
        super().__init__(rig.device.device_id, rig.host, trace, patience)
        self.device = rig.device
        self._raised = 0
        self._seen = 0
        self._config_change = False
        self._loop = EventLoop("device")
        self._cpu = Cpu(patience)
        self._wires = SoftwareWires()
        self._release = contextlib.ExitStack()
        self._release.enter_context(self._wires)
        placement = MmioPlacement(ADDRESS, GSI, transport)
        site = Site(self.memory, self._loop, self._wires)
        self._transport = placement.plug(
            rig.device, "the device", site, self._release, trapped=False
        )
        if transport is MmioTransport:
            # What another one answers for itself is not on a page.
            placement.leave_out_exits(self._transport, site, self._release, always=False)
        self._loop.start(daemon=True)
        wired = WiredRegisters(self._wires, self._transport, ADDRESS)
        registers = TracedRegisters(wired, self._cpu, trace)
        self._driver = MmioDriver(registers, self.memory, self.allocator)

    def close(self) -> None:
        """Give the device up; one that is wedged is left behind, with the memory that it is at."""
        if not self._cpu.stuck and turns(self._loop, self.patience):
            with contextlib.suppress(DiedError, WedgedError):
                self._cpu.access(self._transport.lifecycle.reset)
            if not self._cpu.stuck:
                self._loop.stop()
                self._release.close()
                with contextlib.suppress(DiedError, WedgedError):
                    self._cpu.access(self.device.close)
                self._loop.close()
        self._cpu.close()
        self.host.close()
        if self._loop.running or self._cpu.stuck:
            _LEFT_BEHIND.append(self.memory)
        else:
            super().close()

    # Interrupts

    def _look_at_the_line(self) -> None:
        if pulses := self._wires.take_interrupts(GSI):
            self._raised += pulses
            self.trace.note("interrupt" if pulses == 1 else f"{pulses} interrupts")

    def _acknowledge(self, event: Interrupt) -> bool:
        with self.trace.quiet():
            pending = self._driver.read(Register.InterruptStatus) & event
        if pending:
            self.trace.note(f"InterruptStatus has {event.name}")
            self._driver.write(Register.InterruptACK, event)
        return bool(pending)

    def take_notifications(self, index: int) -> int:
        """Return how many used buffer notifications of any queue came since the last call."""
        self._look_at_the_line()
        count = self._raised - self._seen
        if count == 0:
            return 0
        if self._acknowledge(Interrupt.USED_BUFFER):
            self._seen += count
            return count
        if not self.interrupt_pending:
            # An acknowledgement came between the bit and its interrupt, and was for both.
            self._seen += count
        return 0

    @property
    def interrupt_pending(self) -> bool:
        """Whether InterruptStatus has any bit."""
        return bool(self._driver.read(Register.InterruptStatus))

    def take_config_change(self) -> bool:
        """Say whether a configuration change notification came since the last call."""
        if not self._acknowledge(Interrupt.CONFIG_CHANGE):
            return False
        self._look_at_the_line()
        # Its interrupt may have been taken for a used buffer's, or be still to come.
        self._seen = min(self._seen + 1, self._raised)
        return True

    # Features and life

    @property
    def registers(self) -> MmioDriver:
        """The MMIO registers."""
        return self._driver

    @property
    def offered(self) -> int:
        """Read the feature bits that the device offers."""
        return self._cpu.run(self._read_features)

    def _read_features(self) -> int:
        features = 0
        for word in range(FEATURE_WORDS):
            self._driver.write(Register.DeviceFeaturesSel, word)
            features |= self._driver.read(Register.DeviceFeatures) << 32 * word
        return features

    def _write_features(self, features: int) -> None:
        for word in range(FEATURE_WORDS):
            self._driver.write(Register.DriverFeaturesSel, word)
            self._driver.write(Register.DriverFeatures, features >> 32 * word & 0xFFFF_FFFF)

    def accepts(self, features: int) -> bool:
        """Reset, and ask for just these feature bits; say whether the device takes them."""
        driver = self._driver
        self.reset()

        def ask() -> bool:
            driver.set_status(DeviceStatus.ACKNOWLEDGE)
            driver.set_status(DeviceStatus.DRIVER)
            self._write_features(features)
            driver.set_status(DeviceStatus.FEATURES_OK)
            return bool(driver.status & DeviceStatus.FEATURES_OK)

        if not self._cpu.run(ask):
            return False
        self.features = driver.features = features
        return True

    @property
    def queue_count(self) -> int:
        """How many virtqueues there are, those without gaps."""
        return self._cpu.run(self._count_queues)

    def _count_queues(self) -> int:
        count = 0
        while self.queue_size_max(count):
            count += 1
        return count

    def queue_size_max(self, index: int) -> int:
        """Read QueueSizeMax."""
        return self._cpu.run(lambda: self._driver.queue_size_max(index))

    def announce_queue(self, queue: SessionQueue) -> None:
        """Write a virtqueue's registers, QueueReady last."""
        self._cpu.run(lambda: self._driver.announce_queue(queue.index, queue))
        self.queues[queue.index] = queue

    def start(
        self,
        features: Iterable[FeatureLike] | None = None,
        *,
        without: Iterable[FeatureLike] = (),
        queue_size: int | None = None,
        choose: Callable[[int], Iterable[int]] = range,
    ) -> None:
        """Go through all of 3.1.1, with every queue that there is, or those of them chosen."""
        start = partial(super().start, features, without=without)
        self._cpu.run(partial(start, queue_size=queue_size, choose=choose))

    def driver_ok(self) -> None:
        """Set DRIVER_OK."""
        self._cpu.run(lambda: self._driver.set_status(DeviceStatus.DRIVER_OK))

    def require_status(self) -> None:
        """Do nothing: the driver writes Status."""

    def write_status(self, status: int) -> None:
        """Write Status."""
        self._driver.write(Register.Status, status)

    def write_features(self, features: int) -> None:
        """Write DriverFeatures, all words of it."""
        self._cpu.run(lambda: self._write_features(features))

    @property
    def status(self) -> int:
        """The device status field."""
        return self._driver.status

    @property
    def needs_reset(self) -> bool:
        """Whether DEVICE_NEEDS_RESET is set."""
        with self.trace.quiet():
            needs = bool(self._driver.status & DeviceStatus.DEVICE_NEEDS_RESET)
        if needs:
            self.trace.note("DEVICE_NEEDS_RESET is set")
        return needs

    def reset(self) -> None:
        """Write 0 to Status, and wait until it reads as 0 (2.4.2)."""
        self._driver.reset()
        try:
            self.wait("Status 0 after a reset", lambda: self._driver.status == 0)
        except NoAnswerError as error:
            raise BrokenError(words_of(error), RESET) from error
        self.features = 0
        self.queues = {}
        self._look_at_the_line()
        self._seen = self._raised

    def reset_queue(self, index: int) -> int:
        """Reset one virtqueue (2.6.1), and wait until that is done; no register tells the count."""
        if not self.has(Feature.VIRTIO_F_RING_RESET):
            raise NotApplicableError("VIRTIO_F_RING_RESET was not negotiated")
        self._driver.write(Register.QueueSel, index)
        self._driver.write(Register.QueueReset, 1)
        self.wait("QueueReset 0", lambda: self._driver.read(Register.QueueReset) == 0)
        self.queues.pop(index, None)
        return 0

    def raise_failure(self) -> None:
        """Raise the DeviceError that is known of."""
        if self._cpu.failure is not None:
            raise DiedError(self._cpu.failure)
        raise_failure(self._loop)

    def check_alive(self) -> None:
        """See that registers can be read, and that the event loop goes on."""
        self.raise_failure()
        if not turns(self._loop, self.patience):
            raise WedgedError(f"the device has kept its event loop for {self.patience:g} s")
        _ = self._driver.status

    # Operation

    def kick(self, index: int) -> None:
        """Write QueueNotify."""
        self._driver.kick(index)

    # Configuration space and shared memory

    def shared_memory(self, region: int) -> int | None:
        """Read SHMLen of a region: all bits are set where there is none (4.2.2)."""
        driver = self._driver
        driver.write(Register.SHMSel, region)
        length = driver.read(Register.SHMLenLow) | driver.read(Register.SHMLenHigh) << 32
        return length if length != NO_REGION else None

    def read_config(self, offset: int, size: int) -> bytes:
        """Read bytes of the configuration space, each aligned as it can be (4.2.2.2)."""
        driver = self._driver

        def attempt() -> bytes | None:
            generation = driver.read(Register.ConfigGeneration)
            data = b"".join(
                driver.registers.read(Register.Config + start, width)
                for start, width in _accesses(offset, size)
            )
            return data if driver.read(Register.ConfigGeneration) == generation else None

        if not size:
            return b""
        return self.wait("a ConfigGeneration that stays", lambda: self._cpu.run(attempt))

    def write_config(self, offset: int, data: bytes) -> None:
        """Write a field of the configuration space, each part aligned as it can be."""
        for start, width in _accesses(offset, len(data)):
            part = data[start - offset : start - offset + width]
            self._driver.registers.write(Register.Config + start, part)


def _accesses(offset: int, size: int) -> list[tuple[int, int]]:
    """Cut a range into accesses of 1, 2 or 4 bytes, aligned: (offset, width) each."""
    accesses = []
    end = offset + size
    while offset < end:
        width = next(w for w in (4, 2, 1) if offset % w == 0 and w <= end - offset)
        accesses.append((offset, width))
        offset += width
    return accesses

"""The test VM: memory, one CPU, virtio-mmio devices, a debug console and an exit port."""

import contextlib
import enum
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from virtiopy.accel.base import Accelerator
from virtiopy.boot import pvh
from virtiopy.boot.elf import GuestImage
from virtiopy.closing import Closing
from virtiopy.cpu.exits import Exit, ExitReason, IoExit, MmioExit
from virtiopy.devices.base import OpenWorker, VirtioDevice
from virtiopy.errors import ConfigError, GuestError, HostError
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.metrics.exitlog import ExitKind, ExitLog
from virtiopy.metrics.measurement import MEASUREMENT_PORT, PORT_NAME, Measurement, MeasurementPort
from virtiopy.spec import DeviceId
from virtiopy.transport.mmioplace import MmioPlacement
from virtiopy.transport.placement import Placement, Site, Transport
from virtiopy.transport.registers import REGISTER_RANGE
from virtiopy.vhost.handoff import VhostPair
from virtiopy.vm.bus import Bus, Place

#: Guest physical address of the first device's registers; the next ones follow it.
MMIO_BASE = 0xD000_0000

#: Interrupt lines of the devices: pins that only the IOAPIC has, so that the 8259 is no matter.
FIRST_GSI = 16
GSI_COUNT = 8

#: How long a signal may wait for its handler, seconds.
SIGNAL_LATENCY = 0.2

#: QEMU's isa-debugcon and isa-debug-exit.
CONSOLE_PORT = 0xE9
EXIT_PORT = 0xF4


class IoMode(enum.StrEnum):
    """Who works a device's rings, and how kicks and interrupts travel."""

    #: A kick is an exit, and the CPU's thread works the ring; interrupts by KVM_IRQ_LINE.
    TRAPPED = "trapped"
    #: A kick is an eventfd, and the event loop works the ring; interrupts by an irqfd.
    IOEVENTFD = "ioeventfd"
    #: The same eventfd and irqfd, given to the kernel's vhost with the rings.
    VHOST = "vhost"
    #: The same, given to another process over a socket.
    VHOST_USER = "vhost-user"


#: The modes that a device has from its start to its end, or not at all.
_LIFELONG = {IoMode.TRAPPED, IoMode.VHOST_USER}


@dataclass(slots=True)
class Slot:
    """A device in the VM: where its driver finds it, and what to let go of at the end."""

    name: str
    device: VirtioDevice
    transport: Transport
    placement: Placement
    release: contextlib.ExitStack
    _mode: IoMode
    _workers: Mapping[IoMode, OpenWorker]

    @property
    def mode(self) -> IoMode:
        """Who works the device's rings, or will when its driver has set them up."""
        with self.device.lock:
            return self._mode if self.device.refusal is None else IoMode.IOEVENTFD

    def handoff(self, mode: IoMode | str) -> None:
        """Have the device's rings worked in another mode from now on, while frames flow or not.

        Where the driver has not set them up the mode is remembered until it does. From any
        thread. Raises ConfigError or HostError, with the reason, where it cannot be done: the
        mode stays what it was.
        """
        try:
            mode = IoMode(mode)
        except ValueError as error:
            raise ConfigError(
                f"There is no mode {mode!r}: use one of {', '.join(IoMode)}."
            ) from error
        with self.device.lock:
            if mode is self._mode and self.device.refusal is None:
                return
            if {mode, self._mode} & _LIFELONG:
                lifelong = mode if mode in _LIFELONG else self._mode
                raise ConfigError(
                    f"{self.name} is in {self._mode} mode, and {lifelong} mode is for a device's "
                    f"whole life: start it in {mode} mode."
                )
            try:
                self.device.hand_over(self._workers.get(mode))
            except (ConfigError, HostError) as error:
                raise type(error)(f"{self.name} stays in {self.mode} mode: {error}") from error
            self._mode = mode


@dataclass(slots=True, frozen=True)
class RunResult:
    """How a run ended.

    `status` is what the guest wrote to the exit port, or None when it was stopped at its time;
    `seconds` is how long it ran. `kernel` holds the accelerator's own counters of the CPU, as
    they grew during the run. `measurements` are the parts that the guest marked.
    """

    status: int | None
    seconds: float
    exits: ExitLog
    kernel: dict[str, int]
    measurements: list[Measurement]


class _ConsolePort:
    """Port 0xE9: every byte is output; reading 0xE9 says that it is there."""

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output

    def register_name(self, offset: int) -> str:
        return "data"

    def read(self, offset: int, size: int) -> bytes:
        return bytes([CONSOLE_PORT] * size)

    def write(self, offset: int, data: bytes) -> None:
        self._output(data)


class _ExitPort:
    """Port 0xF4: a write ends the run."""

    def __init__(self) -> None:
        self.status: int | None = None

    def register_name(self, offset: int) -> str:
        return "status"

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        self.status = data[0]


class Machine(Closing):
    """A VM with one CPU, and an event loop for its devices.

    `console` is given what the guest writes to port 0xE9, on the CPU's thread.

    With `ignore_unassigned`, accesses to addresses where no device is read as all ones and write
    nothing, as on a PC; else they end the run.

    `exit_free` has the guest read its devices' registers from memory, and the kernel take its
    acknowledgements of used buffers where interrupts are irqfds: None where the accelerator can.
    Raises HostError where it is asked for and cannot be had.
    """

    def __init__(
        self,
        memory: GuestMemory,
        accelerator: Accelerator,
        *,
        console: Callable[[bytes], None],
        ignore_unassigned: bool = False,
        exit_free: bool | None = None,
    ) -> None:
        self.memory = memory
        self.accelerator = accelerator
        self.exit_free = accelerator.has_read_only_memory if exit_free is None else exit_free
        if self.exit_free and not accelerator.has_read_only_memory:
            raise HostError(
                f"There are no registers without exits on {accelerator.name}, which has no "
                "read-only memory: leave them out, or use --accel kvm on a kernel that has "
                "KVM_CAP_READONLY_MEM."
            )
        self.cpu = accelerator.create_cpu()
        self.loop = EventLoop("devices")
        self.slots: list[Slot] = []
        self.exits = ExitLog()
        self._ignore_unassigned = ignore_unassigned
        self._exit_port = _ExitPort()
        self._mmio = Bus("guest physical address")
        self._ports = Bus("port")
        self._ports.add(Place(CONSOLE_PORT, 1, "console port", _ConsolePort(console)))
        self.measurement_port = MeasurementPort(
            self.exits, self.cpu.statistics, loop=self.loop.name
        )
        self._ports.add(Place(MEASUREMENT_PORT, 1, PORT_NAME, self.measurement_port))
        self._ports.add(Place(EXIT_PORT, 4, "exit port", self._exit_port))
        self._failure: BaseException | None = None
        self._workers: Mapping[IoMode, OpenWorker] = {IoMode.VHOST: partial(VhostPair, memory)}

    def close(self) -> None:
        """Free the CPU and the devices; the memory and the accelerator are the caller's."""
        self.loop.stop()
        for slot in self.slots:
            slot.release.close()
        self.loop.close()
        self.cpu.close()

    @property
    def net(self) -> Sequence[Slot]:
        """The network devices, in the order of their slots."""
        return [slot for slot in self.slots if slot.device.device_id is DeviceId.NETWORK]

    def add_device(
        self,
        device: VirtioDevice,
        name: str,
        mode: IoMode = IoMode.IOEVENTFD,
        *,
        refused: Callable[[str], None] | None = None,
    ) -> Slot:
        """Put a device into the next slot.

        With `refused`, a device whose queues nobody else can work is in ioeventfd mode, and
        `refused` is told why.

        Raises ConfigError when all slots are taken; ConfigError or HostError for a mode that
        cannot be had. From here on the device is the machine's to close.
        """
        with contextlib.ExitStack() as release:
            release.callback(device.close)
            index = len(self.slots)
            if index == GSI_COUNT:
                raise ConfigError(f"There are more than {GSI_COUNT} devices: leave some out.")
            placement = MmioPlacement(MMIO_BASE + index * REGISTER_RANGE, FIRST_GSI + index)
            site = Site(self.memory, self.loop, self.accelerator)
            trapped = mode is IoMode.TRAPPED
            transport = placement.plug(device, name, site, release, trapped=trapped)
            if mode in self._workers:
                try:
                    device.hand_over(self._workers[mode])
                except (ConfigError, HostError) as error:
                    if refused is None:
                        raise
                    mode = IoMode.IOEVENTFD
                    refused(f"{name} is in {mode} mode: {error}")
            if self.exit_free:
                placement.leave_out_exits(transport, site, release)
            self._mmio.add(Place(placement.address, placement.size, name, transport))
            release.callback(_reset, device)
            slot = Slot(name, device, transport, placement, release.pop_all(), mode, self._workers)
        self.slots.append(slot)
        return slot

    def boot(self, image: GuestImage, arguments: str = "") -> None:
        """Load a PVH image; its command line names the devices, then come `arguments`.

        Raises ConfigError for an image that cannot be booted.
        """
        words = [slot.placement.command_line for slot in self.slots]
        pvh.prepare(self.memory, self.cpu, image, " ".join(filter(None, [*words, arguments])))

    def run(self, timeout: float | None = None) -> RunResult:
        """Run the guest until it writes to the exit port, for at most `timeout` seconds.

        Raises GuestError when it fails in a way that no driver may, and whatever the CPU's
        thread raised.
        """
        self._failure = None
        before = self.cpu.statistics()
        start = time.monotonic()
        self.loop.on_failure = self.cpu.stop
        turn = _Turn()
        thread = threading.Thread(target=self._run_cpu, args=(turn,), name="cpu0")
        try:
            self.loop.start()
            thread.start()
            turn.wait(timeout)
        finally:
            # Ctrl-C may come anywhere above, while the thread is started as well.
            if turn.cancel():
                if not turn.done.is_set():
                    self.cpu.stop()
                # A join() that Ctrl-C interrupts takes the thread for dead (Python 3.11).
                turn.done.wait()
                thread.join()
            self.loop.stop()
        seconds = time.monotonic() - start
        failure = self._failure or self.loop.failure
        if failure is not None:
            raise failure
        after = self.cpu.statistics()
        kernel = {name: value - before.get(name, 0) for name, value in after.items()}
        return RunResult(
            self._exit_port.status,
            seconds,
            self.exits,
            kernel,
            self.measurement_port.measurements,
        )

    def _run_cpu(self, turn: "_Turn") -> None:
        """Run the CPU, on its own thread, unless the turn was cancelled before."""
        if not turn.begin():
            return
        try:
            while (exit_ := self.cpu.run(self._answer)) is not None:
                self._handle(exit_)
        except BaseException as error:  # noqa: BLE001 - raised again by run(), on the caller's thread
            self._failure = error
        finally:
            turn.done.set()

    def _handle(self, exit_: Exit) -> None:
        self.exits.count(ExitKind(exit_.reason.name))
        if exit_.reason is not ExitReason.IRQ_WINDOW_OPEN:
            raise self._explain(exit_)

    def _answer(self, exit_: IoExit | MmioExit) -> bool:
        """Let a device answer the guest's access; False when it was the one to the exit port."""
        if isinstance(exit_, MmioExit):
            self._access(self._mmio, exit_.address, exit_.is_write, exit_.data)
        else:
            for start in range(0, exit_.size * exit_.count, exit_.size):
                item = exit_.data[start : start + exit_.size]
                self._access(self._ports, exit_.port, exit_.is_write, item, log=start == 0)
        return self._exit_port.status is None

    def _access(
        self, bus: Bus, address: int, is_write: bool, data: memoryview, *, log: bool = True
    ) -> None:
        """Let the device at `address` answer; `log` is off for the rest of one exit's accesses."""
        reason = "MMIO" if bus is self._mmio else "IO"
        direction = "write" if is_write else "read"
        place = bus.find(address)
        if place is None:
            if not self._ignore_unassigned:
                raise bus.refuse(address, len(data), is_write)
            if log:
                self.exits.count(ExitKind(reason, "unassigned", f"{address:#x}", direction))
            if not is_write:
                data[:] = b"\xff" * len(data)
            return
        offset = address - place.start
        if log:
            register = place.device.register_name(offset)
            self.exits.count(ExitKind(reason, place.name, register, direction))
        if is_write:
            place.device.write(offset, bytes(data))
        else:
            data[:] = place.device.read(offset, len(data))

    def _explain(self, exit_: Exit) -> GuestError:
        rip = self.cpu.get_registers().rip
        if exit_.reason is ExitReason.SHUTDOWN:
            return GuestError(
                f"The guest triple-faulted at rip {rip:#x}: look at what it does there, "
                "for instance with objdump -d."
            )
        return GuestError(f"The guest stopped at rip {rip:#x} with {exit_.describe()}.")


def _reset(device: VirtioDevice) -> None:
    with device.lock:
        device.reset()


class _Turn:
    """One turn of a thread: begun or cancelled, whichever comes first."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self._lock = threading.Lock()
        self._begun = self._cancelled = False

    def begin(self) -> bool:
        """Say, on the thread, whether the turn is to be taken."""
        with self._lock:
            self._begun = not self._cancelled
            return self._begun

    def wait(self, timeout: float | None) -> None:
        """Wait for its end, at most `timeout` seconds, and run signal handlers meanwhile.

        A signal that comes just before a wait does not end that wait, so no wait is long.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while end is None or time.monotonic() < end:
            left = SIGNAL_LATENCY if end is None else min(SIGNAL_LATENCY, end - time.monotonic())
            if self.done.wait(max(0.0, left)):
                return

    def cancel(self) -> bool:
        """Say whether the turn was begun; if not, it never is."""
        with self._lock:
            self._cancelled = True
            return self._begun

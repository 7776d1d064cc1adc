"""The test VM: memory, CPUs, virtio-mmio devices, a debug console and an exit port."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from virtiopy.accel.base import Accelerator
from virtiopy.boot import pvh
from virtiopy.boot.elf import GuestImage
from virtiopy.boot.parameters import BootParameters
from virtiopy.closing import Closing
from virtiopy.cpu.exits import IoExit, MmioExit
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import HostError
from virtiopy.eventloop import READABLE, EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.metrics.exitlog import ExitLog, MergedExits, add_up
from virtiopy.metrics.measurement import MEASUREMENT_PORT, PORT_NAME, Measurement, MeasurementPort
from virtiopy.vm.bus import Place
from virtiopy.vm.cputhread import CpuThread
from virtiopy.vm.dispatch import ExitDispatch
from virtiopy.vm.ports import CONSOLE_PORT, EXIT_PORT, ConsolePort, ExitPort
from virtiopy.vm.slots import IoMode, Slot, Slots, WatchTransport
from virtiopy.vm.standing import NameCode, Standing, stand_of_cpu, stand_of_device

#: How long a signal may wait for its handler, seconds.
SIGNAL_LATENCY = 0.2


@dataclass(slots=True, frozen=True)
class RunResult:
    """How a run ended.

    `status` is what the guest wrote to the exit port, or None when it was stopped at its time;
    `seconds` is how long it ran. `kernel` holds the accelerator's own counters of the CPUs, as
    they grew during the run, added up. `measurements` are the parts that the guest marked.
    """

    status: int | None
    seconds: float
    exits: MergedExits
    kernel: dict[str, int]
    measurements: list[Measurement]


class Machine(Closing):
    """A VM, with an event loop for its devices.

    `console` is given what the guest writes to port 0xE9, on the thread of the CPU that writes.
    The first of the `cpus` boots; the others wait for the guest to start them (INIT and SIPI).
    Raises ConfigError or HostError for more CPUs than the accelerator has.

    With `ignore_unassigned`, accesses to addresses where no device is read as all ones and write
    nothing, as on a PC; else they end the run.

    `exit_free` has the guest read its devices' registers from memory, and the kernel take its
    acknowledgements of used buffers where interrupts are irqfds. None does so where the
    accelerator can, for drivers that cannot tell (transport.exitfree); True for all, or raises
    HostError.
    """

    def __init__(
        self,
        memory: GuestMemory,
        accelerator: Accelerator,
        *,
        console: Callable[[bytes], None],
        cpus: int = 1,
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
        self.cpus = self._create_cpus(cpus)
        self.exits = MergedExits([cpu.exits for cpu in self.cpus])
        self.loop = EventLoop("devices")
        self.dispatch = ExitDispatch(ignore_unassigned=ignore_unassigned)
        self._slots = Slots(
            memory,
            accelerator,
            self.loop,
            self.dispatch.mmio,
            exit_free=self.exit_free,
            always=exit_free is True,
        )
        self.measurement_port = MeasurementPort(self.cpus, loop=self.loop.name)
        for place in (
            Place(CONSOLE_PORT, 1, "console port", ConsolePort(console)),
            Place(MEASUREMENT_PORT, 1, PORT_NAME, self.measurement_port),
            Place(EXIT_PORT, 4, "exit port", ExitPort(self.end)),
        ):
            self.dispatch.ports.add(place)
        #: Called when a run is to end, before the CPUs' threads are waited for: what one of them
        #: may be stuck in lets go of it.
        self.on_stop: list[Callable[[], None]] = []
        #: What the last run came to, however it ended.
        self.result: RunResult | None = None
        self._status: int | None = None
        self._ended = threading.Event()
        if memory.shrunk is not None:
            self.loop.watch(memory.shrunk, READABLE, self._memory_lost, "memory file")

    def _create_cpus(self, count: int) -> list[CpuThread]:
        threads: list[CpuThread] = []
        try:
            for number in range(count):
                who = "The guest" if count == 1 else f"CPU {number} of the guest"
                cpu = self.accelerator.create_cpu(number, count)
                threads.append(CpuThread(number, cpu, self._answer, who=who))
        except BaseException:
            for thread in threads:
                thread.cpu.close()
            raise
        return threads

    def close(self) -> None:
        """Free the CPUs and the devices; the memory and the accelerator are the caller's."""
        self.loop.stop()
        self._slots.close()
        self.loop.close()
        for cpu in self.cpus:
            cpu.cpu.close()

    @property
    def slots(self) -> Sequence[Slot]:
        """The devices, in the order of their addresses."""
        return self._slots.all

    def add_device(
        self,
        device: VirtioDevice,
        name: str,
        mode: IoMode = IoMode.IOEVENTFD,
        *,
        refused: Callable[[str], None] | None = None,
        watch: WatchTransport | None = None,
    ) -> Slot:
        """Put a device into the next slot: see `Slots.add`."""
        return self._slots.add(device, name, mode, refused=refused, watch=watch)

    def boot(self, image: GuestImage, arguments: str = "") -> None:
        """Load a PVH image; its command line names the devices, then come `arguments`.

        Raises ConfigError for an image that cannot be booted.
        """
        words = [slot.placement.command_line for slot in self.slots]
        command_line = " ".join(filter(None, [*words, arguments]))
        pvh.prepare(self.memory, self.cpus[0].cpu, image, BootParameters(command_line))

    def end(self, status: int) -> None:
        """End the run with this status, unless it has one; from any thread."""
        if self._status is None:
            self._status = status
        # A CPU's own turn ends when it has its answer.
        if threading.current_thread() not in [cpu.thread for cpu in self.cpus]:
            self._ended.set()

    def run(self, timeout: float | None = None) -> RunResult:
        """Run the guest until it writes to the exit port, for at most `timeout` seconds.

        Raises GuestError when it fails in a way that no driver may, and whatever a CPU's thread
        raised.
        """
        self.result = None
        before = self._statistics()
        start = time.monotonic()
        self._ended.clear()
        self.loop.on_failure = self._ended.set
        for cpu in self.cpus:
            cpu.prepare()
        try:
            self.loop.start()
            for cpu in self.cpus:
                cpu.begin(self._ended)
            self._wait(timeout)
        finally:
            # Ctrl-C may come anywhere above, while a thread is started as well.
            self._stop()
            seconds = time.monotonic() - start
            after = self._statistics()
            self.result = result = RunResult(
                self._status,
                seconds,
                self.exits,
                {name: value - before.get(name, 0) for name, value in after.items()},
                self.measurement_port.measurements,
            )
        # Before what a CPU raised, which may be no more than what follows from it.
        self.memory.check_file()
        for failure in [*(cpu.failure for cpu in self.cpus), self.loop.failure]:
            if failure is not None:
                raise failure
        return result

    def _memory_lost(self, events: int) -> None:
        """End the run: what the guest reads now is not what it wrote."""
        assert self.memory.shrunk is not None
        os.eventfd_read(self.memory.shrunk)
        self._ended.set()

    def standing(self, name_code: NameCode = lambda address: None) -> Standing:
        """Say where the guest stands after a run; it cannot go on afterwards.

        `name_code` names the code at an address. See `stand_of_cpu`.
        """
        return Standing(
            [stand_of_cpu(cpu, name_code) for cpu in self.cpus],
            [stand_of_device(slot.transport.lifecycle, slot.driver) for slot in self.slots],
        )

    def _stop(self) -> None:
        for callback in self.on_stop:
            callback()
        for cpu in self.cpus:
            cpu.stop()
        for cpu in self.cpus:
            cpu.join()
        self.loop.stop()

    def _wait(self, timeout: float | None) -> None:
        """Wait for the end of the first CPU's turn, at most `timeout` seconds.

        Signal handlers run meanwhile. A signal that comes just before a wait does not end that
        wait, so no wait is long.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while end is None or time.monotonic() < end:
            left = SIGNAL_LATENCY if end is None else min(SIGNAL_LATENCY, end - time.monotonic())
            if self._ended.wait(max(0.0, left)):
                return

    def _answer(self, exit_: IoExit | MmioExit, log: ExitLog) -> bool:
        """Let a device answer a CPU's access; False when the run has ended."""
        self.dispatch.answer(exit_, log)
        return self._status is None

    def _statistics(self) -> dict[str, int]:
        """Add up the accelerator's counters of all CPUs."""
        return add_up(cpu.statistics() for cpu in self.cpus)

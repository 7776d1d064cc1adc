"""What a kernel expects of a PC besides devices: ACPI tables, a serial port, a clock."""

from collections.abc import Callable
from functools import partial

from virtiopy.boot.acpi import DeviceNode, write_tables
from virtiopy.boot.kernel import Kernel
from virtiopy.boot.parameters import BIOS_AREA_END, BootParameters, Initrd
from virtiopy.closing import Closing
from virtiopy.devices.streams import Stream
from virtiopy.errors import ConfigError
from virtiopy.vm.bus import Place
from virtiopy.vm.machine import Machine
from virtiopy.vm.power import POWER_PORT, POWER_PORTS, PowerEvent, PowerRegisters
from virtiopy.vm.rtc import RTC_PORT, RTC_PORTS, RealTimeClock
from virtiopy.vm.serial import SERIAL_GSI, SERIAL_PORT, SERIAL_PORTS, SerialPort

#: How a run ends that the guest ended by switching off, and by a reset.
STATUS_OFF, STATUS_RESET = 0, 1


class Pc(Closing):
    """The rest of a PC around a machine: make it before the machine runs, and close it first.

    `output` is given what the guest writes to the serial port, and `stream` is the port's host's
    side, if it has one besides.
    """

    def __init__(
        self, machine: Machine, output: Callable[[bytes], None], stream: Stream | None = None
    ) -> None:
        self.machine = machine
        #: What the guest asked for, in the end.
        self.power: PowerEvent | None = None
        self.serial = SerialPort(
            partial(machine.accelerator.set_irq_line, SERIAL_GSI), output, stream
        )
        self.serial.attach(machine.loop)
        registers = PowerRegisters(self._switch)
        for start, size, name, device in (
            (SERIAL_PORT, SERIAL_PORTS, "serial port", self.serial),
            (RTC_PORT, RTC_PORTS, "clock", RealTimeClock()),
            (POWER_PORT, POWER_PORTS, "power registers", registers),
        ):
            machine.dispatch.ports.add(Place(start, size, name, device))

    def _switch(self, event: PowerEvent) -> None:
        self.power = event
        self.machine.end(STATUS_OFF if event is PowerEvent.OFF else STATUS_RESET)

    def close(self) -> None:
        """Close the serial port's stream."""
        self.serial.close()

    def boot(self, kernel: Kernel, command_line: str, initrd: Initrd | None = None) -> None:
        """Load a kernel, and tell it of the machine by ACPI tables.

        With acpi=off among its words the devices are in the command line. Raises ConfigError.
        """
        machine = self.machine
        if machine.memory.size <= BIOS_AREA_END:
            raise ConfigError(
                f"The guest has {machine.memory.size >> 10} KiB of memory, and a kernel needs more "
                "than 1 MiB: give it more with --memory."
            )
        words = command_line.split()
        rsdp = 0
        if "acpi=off" in words:
            words += [slot.placement.command_line for slot in machine.slots]
        else:
            places = [slot.placement for slot in machine.slots]
            nodes = [
                DeviceNode(place.hid, place.address, place.size, place.gsi)
                for place in places
                if place.hid is not None
            ]
            rsdp = write_tables(machine.memory, nodes, cpus=len(machine.cpus))
        parameters = BootParameters(" ".join(words), initrd, rsdp)
        kernel.prepare(machine.memory, machine.cpus[0].cpu, parameters)

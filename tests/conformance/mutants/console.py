"""Console devices with a fault."""

from tests.conformance.mutants import mutants
from virtiopy.conformance.targets.builders import build_console
from virtiopy.devices.console import Console, ControlEvent


class TakesEmergencyWritesOnlyWhenItRuns(Console):
    def write_config(self, offset: int, data: bytes) -> bool:
        return self.running and super().write_config(offset, data)


class PrintsTheUpperByte(Console):
    def write_config(self, offset: int, data: bytes) -> bool:
        return super().write_config(offset, data[1:] + data[:1])


class LosesEmergencyWrites(Console):
    def write_config(self, offset: int, data: bytes) -> bool:
        return True


class AddsPortsAgain(Console):
    """Adds all ports whenever the driver says that it is ready."""

    def _device_ready(self, value: int) -> None:
        self._driver_ready = False
        super()._device_ready(value)


class AddsAPortTooMany(Console):
    def _device_ready(self, value: int) -> None:
        super()._device_ready(value)
        self._send(self.max_nr_ports, ControlEvent.DEVICE_ADD)


class RemovesPortsThatItNeverAdded(Console):
    """Says that a port is gone, though the driver was not told that it was there."""

    def remove_port(self, number: int) -> None:
        super().remove_port(number)
        self._send(number, ControlEvent.DEVICE_REMOVE)


MUTANTS = [
    *mutants(
        build_console,
        [
            ("5.3.5.1:1", TakesEmergencyWritesOnlyWhenItRuns),
            ("5.3.5.1:2", PrintsTheUpperByte),
            ("5.3.5.1:2", LosesEmergencyWrites),
            ("5.3.6.2.1:1", AddsPortsAgain),
            ("5.3.6.2.1:1", AddsAPortTooMany),
            ("5.3.6.2.1:2", RemovesPortsThatItNeverAdded),
        ],
    )
]

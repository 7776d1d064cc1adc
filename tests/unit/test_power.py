import pytest

from virtiopy.boot.acpi import RESET_VALUE
from virtiopy.vm.power import PowerEvent, PowerRegisters

CONTROL, STATUS, RESET = range(3)


@pytest.mark.parametrize(
    ("offset", "value", "asked"),
    [
        (CONTROL, 5 << 2 | 1 << 5, [PowerEvent.OFF]),
        (RESET, RESET_VALUE, [PowerEvent.RESET]),
        (CONTROL, 5 << 2, []),
        (CONTROL, 3 << 2 | 1 << 5, []),
        (STATUS, 0xFF, []),
        (RESET, 0xFF, []),
    ],
)
def test_only_what_means_something_does_something(
    offset: int, value: int, asked: list[PowerEvent]
) -> None:
    happened: list[PowerEvent] = []
    registers = PowerRegisters(happened.append)
    registers.write(offset, bytes([value]))
    assert happened == asked
    assert registers.read(offset, 4) == bytes(4)

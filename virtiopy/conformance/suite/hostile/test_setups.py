"""Status, features, queues and registers as no driver may use them (2.1, 2.5, 3.1, 4.2)."""

import pytest

from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.hostile.setups import (
    ALL_RINGS,
    STATUSES,
    Rings,
    Steps,
    announce,
)
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.suite.hostile.cases import each
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.registers import REGISTER_RANGE, Register

#: Accesses that 4.2.2.2 forbids to control registers are among them, and 8 bytes to all.
WIDTHS = (1, 2, 3, 4, 8)

#: How far the configuration space is looked at: beyond the end of any.
CONFIG_END = 0x80


@each("steps", STATUSES)
def test_what_no_driver_may_do_to_the_status(steps: Steps, session: Session, judge: Judge) -> None:
    session.require_status()

    def act() -> None:
        steps.do(session)
        session.reset()

    judge.check(act)


@each("rings", ALL_RINGS)
def test_a_virtqueue_that_no_driver_may_announce(
    rings: Rings, session: Session, driver: DeviceDriver, judge: Judge
) -> None:
    session.require_status()
    for index in range(session.queue_count):
        judge.check(lambda index=index: announce(rings, session, driver, index), queue=index)  # type: ignore[misc]


@pytest.mark.parametrize("width", WIDTHS)
def test_reads_of_any_width_anywhere(
    session: Session, registers: MmioDriver, judge: Judge, width: int
) -> None:
    def act() -> None:
        for offset in [*range(Register.Config + CONFIG_END), REGISTER_RANGE - width]:
            assert len(registers.registers.read(offset, width)) == width

    judge.check(act)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("filling", [b"\x00", b"\xff"], ids=["zeroes", "ones"])
def test_writes_of_any_width_to_any_register(
    session: Session, registers: MmioDriver, judge: Judge, width: int, filling: bytes
) -> None:
    def act() -> None:
        for offset in range(Register.Config):
            registers.registers.write(offset, filling * width)
        session.reset()

    judge.check(act)


@pytest.mark.parametrize("filling", [b"\x00", b"\xff"], ids=["zeroes", "ones"])
def test_writes_of_any_width_to_the_configuration_space(
    session: Session, registers: MmioDriver, judge: Judge, filling: bytes
) -> None:
    def act() -> None:
        for width in WIDTHS:
            for offset in [*range(CONFIG_END), REGISTER_RANGE - Register.Config - width]:
                registers.registers.write(Register.Config + offset, filling * width)
        session.reset()

    judge.check(act)


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 256), (1, 7), (255, 1), (200, 100), (1 << 20, 4), (0, 0)]
)
def test_accesses_beyond_the_configuration_space(
    session: Session, judge: Judge, offset: int, size: int
) -> None:
    if session.transport == "mmio":
        offset, size = min(offset, 0xEC0), min(size, 64)
    judge.check(lambda: read_and_write(session, offset, size))


def read_and_write(session: Session, offset: int, size: int) -> None:
    session.read_config(offset, size)
    session.write_config(offset, bytes(size))

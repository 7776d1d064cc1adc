import calendar

import pytest

from virtiopy.vm.rtc import RealTimeClock, Register

#: Tuesday, 9 November 2038, 21:43:58 UTC.
NOW = calendar.timegm((2038, 11, 9, 21, 43, 58))


def read(clock: RealTimeClock, register: int) -> int:
    clock.write(0, bytes([register]))
    return clock.read(1, 1)[0]


def write(clock: RealTimeClock, register: int, value: int) -> None:
    clock.write(0, bytes([register]))
    clock.write(1, bytes([value]))


def test_the_time_is_the_hosts_in_bcd() -> None:
    clock = RealTimeClock(lambda: NOW)
    names = ("CENTURY", "YEAR", "MONTH", "DAY_OF_MONTH", "HOURS", "MINUTES", "SECONDS")
    digits = "".join(f"{read(clock, Register[name]):02x}" for name in names)
    assert digits == "20381109214358"
    assert read(clock, Register.DAY_OF_WEEK) == 3


def test_the_time_is_binary_where_the_driver_asks() -> None:
    clock = RealTimeClock(lambda: NOW)
    write(clock, Register.B, 0x06)
    assert read(clock, Register.HOURS) == 21
    assert read(clock, Register.SECONDS) == 58


@pytest.mark.parametrize(("hour", "told"), [(0, 0x12), (1, 0x01), (12, 0x92), (21, 0x89)])
def test_hours_are_those_of_a_clock_face_where_the_driver_asks(hour: int, told: int) -> None:
    clock = RealTimeClock(lambda: calendar.timegm((2026, 1, 1, hour, 0, 0)))
    write(clock, Register.B, 0x00)
    assert read(clock, Register.HOURS) == told


def test_the_clock_runs_and_has_power() -> None:
    clock = RealTimeClock()
    assert read(clock, Register.A) & 0x80 == 0
    assert read(clock, Register.D) == 0x80


def test_the_rest_is_memory_and_the_time_cannot_be_set() -> None:
    clock = RealTimeClock(lambda: NOW)
    write(clock, 0x60, 0x99)
    write(clock, Register.SECONDS, 0x00)
    assert read(clock, 0x60) == 0x99
    assert read(clock, Register.SECONDS) == 0x58
    # The highest bit is another register's: it masks NMIs.
    assert read(clock, 0x80 | Register.SECONDS) == 0x58

"""A guest or a peer that does wrong without end makes no flood of lines."""

import logging
from collections.abc import Callable

import pytest

from virtiopy.cli.logs import RateLimit
from virtiopy.complaints import BURST, Complaints


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def say_by_complaints(clock: Clock) -> Callable[[str], None]:
    return Complaints(logging.getLogger("test"), clock).say


def say_by_log(clock: Clock) -> Callable[[str], None]:
    log = logging.Logger("test")
    log.parent = logging.getLogger()
    log.addFilter(RateLimit(clock))
    return lambda text: log.warning("%s", text)


@pytest.mark.parametrize("say_by", [say_by_complaints, say_by_log])
def test_what_is_left_out_is_counted_in_the_next_line(
    caplog: pytest.LogCaptureFixture, say_by: Callable[[Clock], Callable[[str], None]]
) -> None:
    clock = Clock()
    say = say_by(clock)
    for number in range(BURST + 10):
        say(f"complaint {number}")
    assert [record.getMessage() for record in caplog.records] == [
        f"complaint {number}" for number in range(BURST)
    ]
    clock.now = 2.0
    for word in ("next", "last", "too much"):
        say(word)
    assert [record.getMessage() for record in caplog.records[BURST:]] == [
        "next (10 more like this were left out)",
        "last",
    ]


def test_one_kind_of_message_does_not_use_up_anothers_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logging.Logger("test", logging.INFO)
    log.parent = logging.getLogger()
    log.addFilter(RateLimit(Clock()))
    for number in range(BURST + 10):
        log.warning("complaint %d", number)
        log.info("detail %d", number)
    log.error("another")
    kinds = [record.levelname for record in caplog.records]
    assert kinds.count("WARNING") == BURST
    assert kinds.count("INFO") == 0 or kinds.count("INFO") == BURST + 10
    assert kinds[-1] == "ERROR"

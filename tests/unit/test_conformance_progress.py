"""How long the suite waits for a device that did not answer before."""

import pytest

from virtiopy.conformance.problems import NoAnswerError, WedgedError
from virtiopy.conformance.progress import Ending, Progress

#: Seconds that the user asked for.
ASKED_FOR = 5.0


def stalled(times: int, *, slowest: float = 0) -> Progress:
    progress = Progress()
    for _ in range(times):
        progress.take(Ending.by(NoAnswerError("nothing came"), served=True, slowest=slowest))
    return progress


def test_one_test_that_waited_in_vain_hurries_no_other() -> None:
    assert stalled(1).patience(ASKED_FOR) == ASKED_FOR


def test_tests_after_several_that_waited_in_vain_wait_less() -> None:
    assert stalled(3).patience(ASKED_FOR) == pytest.approx(1)


@pytest.mark.parametrize(("slowest", "patience"), [(0.01, 1), (0.5, 2), (4, ASKED_FOR)])
def test_a_slow_device_is_waited_for_as_long_as_it_was_seen_to_take(
    slowest: float, patience: float
) -> None:
    assert stalled(3, slowest=slowest).patience(ASKED_FOR) == pytest.approx(patience)


def test_no_test_waits_longer_than_the_user_asked_for() -> None:
    assert stalled(3).patience(0.2) == 0.2


def test_a_device_that_never_served_is_given_up() -> None:
    progress = Progress()
    for _ in range(3):
        assert not progress.hopeless
        progress.take(Ending.by(WedgedError("it does not come back"), served=False))
    assert "it does not come back" in progress.hopeless

"""The search for a walk that a device does not stand, and the shortest of its kind: hypothesis."""

import time
from collections.abc import Callable, Sequence

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from virtiopy.conformance.problems import DeviceError
from virtiopy.conformance.walks.steps import (
    Bad,
    Kick,
    ReadConfig,
    Reconnect,
    Reset,
    ResetQueue,
    Send,
    Start,
    Step,
    Wait,
    WriteConfig,
)
from virtiopy.conformance.walks.walk import ACTS, FRAMINGS

#: How long a walk that fails is made shorter, seconds.
SHRINK_TIME = 30.0

#: How long is waited for what has to come, at most, while that goes on.
SHRINK_PATIENCE = 0.5

#: How many steps a walk has at most.
STEPS_MAX = 15

_NUMBERS = st.integers(0, 7)
_SIZES = st.sampled_from([4, 8, 16, 64])


def walks(features: Sequence[str]) -> st.SearchStrategy[list[Step]]:
    """Return walks on a device that offers these features."""
    without = (
        st.lists(st.sampled_from(features), unique=True, max_size=3) if features else st.just([])
    )
    send = st.builds(Send, _NUMBERS, st.integers(1, 8), st.sampled_from(FRAMINGS), st.booleans())
    wait = st.builds(Wait, _NUMBERS)
    bad = st.builds(Bad, _NUMBERS, st.sampled_from(list(ACTS)))
    others = (
        st.just(Reset()),
        st.builds(ResetQueue, _NUMBERS, _SIZES),
        st.builds(Start, _SIZES, without.map(tuple)),
        st.builds(Kick, _NUMBERS),
        st.just(Reconnect()),
        st.builds(ReadConfig, st.integers(0, 64), st.integers(1, 8)),
        st.builds(WriteConfig, st.integers(0, 64), st.sampled_from([1, 2, 4])),
    )
    # Those that there are most of come more than once, and the simplest come first.
    step = st.one_of(send, wait, send, *others, bad, bad)
    return st.lists(step, min_size=1, max_size=STEPS_MAX)


class Search:
    """A search by `go`, which walks, with so much patience, and raises what a walk failed with.

    The walks are the same in each run, and others for each `number`, if there is one.
    """

    def __init__(
        self,
        go: Callable[[Sequence[Step], float], None],
        patience: float,
        number: int | None = None,
    ) -> None:
        self._go = go
        self._patience = patience
        self._number = number
        #: What the last walk that failed has failed with.
        self.failure: AssertionError | DeviceError | None = None
        self._failing: list[list[Step]] = []
        self._end = float("inf")

    def run(self, features: Sequence[str], count: int) -> Sequence[Step] | None:
        """Try `count` walks; return the shortest that fails, or None."""

        @settings(
            max_examples=count,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )
        @given(walks(features))
        def each(steps: list[Step]) -> None:
            self._try(steps)

        if self._number is not None:
            seed(self._number)(each)
        try:
            each()
        except (AssertionError, DeviceError, Flaky):
            # The last that failed is the shortest, and the first is sure to.
            for steps in (self._shortened(self._failing[-1]), self._failing[-1]):
                if self._fails(steps, self._patience):
                    return steps
            return self._failing[0]
        return None

    def _shortened(self, steps: list[Step]) -> list[Step]:
        """Leave out every step that makes no difference: hypothesis may have kept some."""
        for position in reversed(range(len(steps))):
            shorter = steps[:position] + steps[position + 1 :]
            if shorter and self._fails(shorter, min(self._patience, SHRINK_PATIENCE)):
                steps = shorter
        return steps

    def _try(self, steps: list[Step]) -> None:
        if time.monotonic() > self._end and steps not in self._failing:
            return
        patience = min(self._patience, SHRINK_PATIENCE) if self._failing else self._patience
        try:
            self._go(steps, patience)
        except (AssertionError, DeviceError) as error:
            self.failure = error
            if not self._failing:
                self._end = time.monotonic() + SHRINK_TIME
            self._failing.append(steps)
            raise

    def _fails(self, steps: list[Step], patience: float) -> bool:
        try:
            self._go(steps, patience)
        except (AssertionError, DeviceError) as error:
            self.failure = error
            return True
        return False

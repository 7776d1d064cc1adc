"""How a run goes: how long tests wait for a device, and when the run gives it up.

A device that answers nothing costs the whole patience in each test, and says nothing new by that.
So after some tests that waited in vain the others wait less, and are hurried: long enough for what
the device was seen to take, and where that is too little, they are blocked and accuse it of
nothing.
"""

from dataclasses import dataclass, field

from virtiopy.conformance.problems import (
    DeviceError,
    DiedError,
    NoAnswerError,
    StepError,
    WedgedError,
    words_of,
)

#: How many tests may wait in vain before the others are hurried.
_UNHURRIED = 2

#: How long those wait: a part of the patience, and at least this, in seconds.
_PART, _LEAST = 0.2, 0.5

#: And at least so many times as long as the slowest answer so far took.
_SLOWEST_TIMES = 4

#: After so many tests in which no request was ever served there is nothing to test.
_HOPELESS = 3

#: After so many tests that waited in vain the others are not run.
STALLS_MAX = 25


@dataclass(slots=True, frozen=True)
class Ending:
    """What the end of a test says of the device: data alone, which goes from process to process."""

    #: Whether the test waited for what did not come.
    stalled: bool
    #: What the device failed with, in a line; "" where it was the device's end in no way.
    fault: str
    #: Whether the device served a request in the test.
    served: bool
    #: The longest that was waited for what did come, in seconds.
    slowest: float = 0

    @classmethod
    def by(cls, error: BaseException | None, *, served: bool, slowest: float = 0) -> "Ending":
        """Return the end by what a test failed with, None if it did not."""
        fault = ""
        if isinstance(error, (DeviceError, StepError)):
            kind = "it died" if isinstance(error, DiedError) else "it served no request"
            fault = f"{kind}: {words_of(error).splitlines()[0]}"
        return cls(waited_in_vain(error), fault, served, slowest)


@dataclass(slots=True)
class Progress:
    """What became of the tests of one target so far."""

    #: Tests that waited for what did not come.
    stalls: int = 0
    #: Whether the device ever served a request.
    served: bool = False
    #: The longest that was waited for what did come, in seconds.
    slowest: float = 0
    _vain: list[str] = field(default_factory=list)

    def patience(self, asked_for: float) -> float:
        """Return how long the next test is to wait, of the seconds that the user asked for."""
        if self.stalls < _UNHURRIED:
            return asked_for
        return min(asked_for, max(_LEAST, _PART * asked_for, _SLOWEST_TIMES * self.slowest))

    def take(self, ending: Ending) -> None:
        """Take how a test ended."""
        self.served |= ending.served
        self.slowest = max(self.slowest, ending.slowest)
        self.stalls += ending.stalled
        if ending.fault and not self.served:
            self._vain.append(ending.fault)

    @property
    def hopeless(self) -> str:
        """Why there is nothing to test; "" while there may be."""
        if self.served or len(self._vain) < _HOPELESS:
            return ""
        return f"In {len(self._vain)} tests, one after the other, {self._vain[0]}"

    @property
    def cut_short(self) -> str:
        """Why the tests that are left are not run; "" while they are."""
        if self.stalls < STALLS_MAX:
            return ""
        return f"{self.stalls} tests waited for what did not come: the others were not run."


def waited_in_vain(error: BaseException | None) -> bool:
    """Say whether a test ended because of what did not come in time."""
    return isinstance(error, (NoAnswerError, WedgedError))

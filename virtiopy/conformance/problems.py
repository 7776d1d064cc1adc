"""How a test can come to an end, besides passing, and what statement that is about."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from virtiopy.errors import PeerError

#: What the finding is called of a backend that does not work with a frontend: it is no statement's.
WORKS_WITH = "works with"


class NotApplicableError(Exception):
    """The test says nothing about this target; the text says why, and that was checked."""


class BlockedError(Exception):
    """The test can say nothing, because the device breaks `statement`, which it stands on."""

    def __init__(self, statement: str) -> None:
        super().__init__(f"{statement} is broken")
        self.statement = statement


class BrokenError(AssertionError):
    """The device breaks `clause`, and nothing else that the test does has a part in it."""

    def __init__(self, words: str, clause: str) -> None:
        super().__init__(words)
        self.clause = clause


class StepError(AssertionError):
    """A step that many tests have in common failed: `clause` is what asks for the step.

    Where tests of `clause` itself fail, that is what this test could not get past. Where they pass,
    what this test does around the step is to blame.
    """

    def __init__(self, words: str, clause: str | None = None) -> None:
        super().__init__(words)
        self.clause = clause


class NoAnswerError(StepError):
    """What has to come did not, in time."""


class DeviceError(Exception):
    """What became of a device that could not be worked with any more."""


class DiedError(DeviceError):
    """The device raised an exception, or its process is gone."""


class WedgedError(DeviceError):
    """The device, or the process that serves it, does not come back from what it was asked."""


class LeftError(DeviceError):
    """The backend ended the connection, or refused a message: it may be connected to again."""


def raised(error: BaseException) -> str:
    """Say what a device raised and where: in a line, and then with all frames."""
    what = traceback.format_exception_only(error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"the device raised {what}{where}\n{''.join(traceback.format_exception(error))}"


@contextlib.contextmanager
def about(clause: str) -> Iterator[None]:
    """Have what fails in here be about one statement of those that the test is marked with."""
    try:
        yield
    except (BrokenError, StepError):
        raise
    except AssertionError as error:
        raise BrokenError(words_of(error), clause) from error


@contextlib.contextmanager
def blaming(clause: str) -> Iterator[None]:
    """Have whatever goes wrong in here be about one statement: a backend that leaves, too."""
    try:
        yield
    except DiedError:
        raise
    except (AssertionError, DeviceError, PeerError) as error:
        raise BrokenError(words_of(error), clause) from error


@contextlib.contextmanager
def works_with(frontend: str) -> Iterator[None]:
    """Have whatever goes wrong in here be that the backend does not work with a frontend."""
    try:
        yield
    except (AssertionError, DeviceError, PeerError) as error:
        raise BrokenError(f"as {frontend}: {words_of(error)}", WORKS_WITH) from error


def words_of(error: BaseException) -> str:
    """Return what an exception says, without what pytest adds to an assertion."""
    return str(error).partition("\nassert ")[0] or type(error).__name__

"""How a test can come to an end, besides passing."""

import traceback


class NotApplicableError(Exception):
    """The test says nothing about this target; the text says why, and that was checked."""


class DeviceError(Exception):
    """What became of a device that could not be worked with any more."""


class DiedError(DeviceError):
    """The device raised an exception, or its process is gone."""


def raised(error: BaseException) -> str:
    """Say what a device raised: in a line, and then from where."""
    what = traceback.format_exception_only(error)[-1].strip()
    return f"the device raised {what}\n{''.join(traceback.format_exception(error))}"


class WedgedError(DeviceError):
    """The device, or the process that serves it, does not come back from what it was asked."""


class LeftError(DeviceError):
    """The backend ended the connection, or refused a message: it may be connected to again."""


class NoAnswerError(AssertionError):
    """A buffer that has to be used was not, in time."""

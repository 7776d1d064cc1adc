"""The signals that end the program, as exceptions."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType


class SignalError(KeyboardInterrupt):
    """A signal asked for the end of the program, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = signal.Signals(number)


def signal_of(error: BaseException) -> "signal.Signals":
    """Return the signal that ended the program, from the exception that left the command line."""
    # click makes an Abort of a KeyboardInterrupt.
    for each in (error, error.__cause__):
        if isinstance(each, SignalError):
            return each.number
    return signal.SIGINT


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the run as Ctrl-C does: threads joined, files closed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise SignalError(number)

    # What is ignored stays so: SIGHUP under nohup(1).
    ending = (signal.SIGTERM, signal.SIGHUP)
    numbers = [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        sys.stdout.flush()


def signals_as_file(stack: contextlib.ExitStack) -> int:
    """Make SIGTERM and SIGINT readable in a file, so that what is in flight is not interrupted."""
    import socket

    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
        stack.callback(end.close)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    stack.callback(signal.set_wakeup_fd, before)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))
    return reader.fileno()

"""Event loops that devices under test are worked on: they may end, or be kept for ever."""

import threading

from virtiopy.conformance.problems import DiedError, raised
from virtiopy.eventloop import EventLoop


def turns(loop: EventLoop, seconds: float) -> bool:
    """Say whether a loop goes on, or has ended, rather than being kept by a callback."""
    if not loop.running:
        return True
    turned = threading.Event()
    loop.call_soon(turned.set, "a look")
    return turned.wait(seconds) or not loop.running


def raise_failure(loop: EventLoop) -> None:
    """Raise DiedError where an exception of the device's has ended its loop."""
    if loop.failure is not None:
        raise DiedError(raised(loop.failure))

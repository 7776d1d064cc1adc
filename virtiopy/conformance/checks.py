"""What tests find, said in words: an assertion about values that shows them as a reader knows them.

pytest explains an assertion by its expression, which says a lot of the suite and little of the
device.
"""

from virtiopy.conformance.problems import BrokenError
from virtiopy.conformance.report.difference import difference
from virtiopy.conformance.sessions.queue import SessionQueue
from virtiopy.virtqueue.layout import INDEX_MODULUS


def same(found: object, expected: object, what: str) -> None:
    """See that `what` is what it has to be; raises AssertionError with both values."""
    if isinstance(found, bytes) and isinstance(expected, bytes):
        wrong = difference(found, expected)
        assert not wrong, f"{what}: {wrong}"
    else:
        assert found == expected, f"{what} is {shown(found)}, and should be {shown(expected)}"


def stopped_idle(queue: SessionQueue, in_flight: int) -> None:
    """See that a ring was stopped with nothing in flight; what the driver did in it was all right.

    `in_flight` are the requests that the backend says it has taken, less those that it has used.
    What comes of them is a matter of time: the ring is the driver's again.
    """
    available = (queue.next_available - queue.used_idx) % INDEX_MODULUS
    if in_flight > available:
        raise BrokenError(
            f"queue {queue.index} is stopped {in_flight - available} entries beyond what was made "
            "available",
            "GET_VRING_BASE:1",
        )
    if in_flight:
        raise BrokenError(
            f"queue {queue.index} is stopped with {in_flight} requests in flight",
            "GET_VRING_BASE:2",
        )


def shown(value: object) -> str:
    """Return a value as a reader of a report knows it."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        name = getattr(value, "name", None)
        return f"{name} ({int(value)})" if name else str(value)
    if isinstance(value, bytes):
        return value[:32].hex(" ", 4) + (" ..." if len(value) > 32 else "")
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(one) for one in value) or "nothing"
    return str(value)

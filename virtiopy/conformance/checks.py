"""What tests find, said in words: an assertion about values that shows them as a reader knows them.

pytest explains an assertion by its expression, which says a lot of the suite and little of the
device.
"""

from virtiopy.conformance.report.difference import difference


def same(found: object, expected: object, what: str) -> None:
    """See that `what` is what it has to be; raises AssertionError with both values."""
    if isinstance(found, bytes) and isinstance(expected, bytes):
        wrong = difference(found, expected)
        assert not wrong, f"{what}: {wrong}"
    else:
        assert found == expected, f"{what} is {shown(found)}, and should be {shown(expected)}"


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

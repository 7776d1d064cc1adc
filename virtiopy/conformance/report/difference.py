"""How two strings of bytes differ, in a line.

pytest explains two unequal ones by all their lines, compared each with each, where it runs in CI:
for a page of memory that takes minutes.
"""

#: How many bytes are shown from the first difference on.
_SHOWN = 16


def difference(found: bytes, expected: bytes) -> str:
    """Say where the bytes begin to differ; "" where they are the same."""
    if found == expected:
        return ""
    shorter = min(len(found), len(expected))
    start = next((at for at in range(shorter) if found[at] != expected[at]), shorter)
    end = start + _SHOWN
    lengths = "" if len(found) == len(expected) else f" of {len(found)} and {len(expected)} bytes"
    return (
        f"at offset {start}{lengths}: found {found[start:end].hex(' ', 4) or 'the end'}, "
        f"expected {expected[start:end].hex(' ', 4) or 'the end'}"
    )

"""A small fuzzer: inputs that lead to calls that no other led to are kept, and changed further.

What an input leads to is the set of calls of the package, each by the line that makes it and the
function that is called, in all threads.
"""

import faulthandler
import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import CodeType, FrameType

import virtiopy

#: The longest input that is made, bytes.
LENGTH = 512

#: Seconds that an input may take: for longer it is a hang, and the process ends.
PATIENCE = 300.0

_OURS = str(Path(virtiopy.__file__).parent)

#: Numbers that drivers and frontends are wrong by.
_NUMBERS = [0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x1_0000, 0x7FFF_FFFF, 0xFFFF_FFFF]

Call = tuple[CodeType, int, CodeType]


@dataclass(slots=True, frozen=True)
class Outcome:
    """What a time of fuzzing came to."""

    inputs: int
    calls: int
    kept: int

    def __str__(self) -> str:
        return f"{self.inputs} inputs, {self.calls} calls, {self.kept} inputs kept"


class Calls:
    """The calls of the package, while it is entered."""

    def __init__(self) -> None:
        self.seen: set[Call] = set()

    def _trace(self, frame: FrameType, event: str, argument: object) -> None:
        caller = frame.f_back
        if caller is not None and frame.f_code.co_filename.startswith(_OURS):
            self.seen.add((caller.f_code, caller.f_lineno, frame.f_code))
        # No line of it is traced.

    def __enter__(self) -> None:
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    def __exit__(self, *reason: object) -> None:
        sys.settrace(None)
        threading.settrace(None)


def _change(random: Random, inputs: Sequence[bytes]) -> bytes:
    """Make an input of one or two others."""
    data = bytearray(random.choice(inputs))
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, len(data))
        match random.randrange(6):
            case 0 if data:
                data[at % len(data)] = random.randrange(256)
            case 1:
                data[at:at] = random.randbytes(random.randint(1, 8))
            case 2:
                del data[at : at + random.randint(1, 16)]
            case 3:
                number = random.choice(_NUMBERS).to_bytes(4, "little")
                size = random.randint(1, 4)
                data[at : at + size] = number[:size]
            case 4:
                other = random.choice(inputs)
                start = random.randint(0, len(other))
                data[at:] = other[start:]
            case _:
                # Once more: what was done twice is often what a device does not expect.
                data[at:at] = data[at : at + random.randint(1, 32)]
    return bytes(data[:LENGTH])


def _name(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def stored(folders: Iterable[Path]) -> list[bytes]:
    """Return the inputs of some folders."""
    return [path.read_bytes() for folder in folders for path in sorted(folder.glob("*"))]


def fuzz(
    target: Callable[[bytes], object],
    corpus: Sequence[Path],
    found: Path,
    seconds: float,
    seed: int | None = None,
) -> Outcome:
    """Try the inputs of `corpus`, then others for so many seconds.

    What leads to new calls is written to `found`, and so is what breaks the target, as crash-NAME:
    the exception is raised again. An input that does not end ends the process.
    """
    random = Random(seed)
    calls = Calls()
    inputs: list[bytes] = []
    known = stored(corpus)
    count = kept = 0
    until = time.monotonic() + seconds
    while count < len(known) or time.monotonic() < until:
        is_known = count < len(known)
        data = known[count] if is_known else _change(random, inputs or [b""])
        count += 1
        before = len(calls.seen)
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        try:
            with calls:
                target(data)
        except BaseException:
            (found / f"crash-{_name(data)}").write_bytes(data)
            raise
        if len(calls.seen) > before:
            inputs.append(data)
            if not is_known:
                (found / _name(data)).write_bytes(data)
                kept += 1
    faulthandler.cancel_dump_traceback_later()
    return Outcome(count, len(calls.seen), kept)

"""A disk as it has to be: what every sector may hold, whatever is in flight (5.2.6).

Each write has a number, and stamps it into every 16 bytes of its sectors, with the sector and the
place in it. So what is found in the wrong place says where it is from.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from virtiopy.conformance.report.difference import difference

SECTOR = 512

#: Bytes of a stamp: the write's number, the sector, the place in the sector, and a mark.
_STAMP = 16
_MARK = b"\xd5\x1a"

_PLACES = [place.to_bytes(2, "little") for place in range(SECTOR // _STAMP)]

ZEROES = bytes(SECTOR)


def stamped(number: int, sector: int) -> bytes:
    """Return what the write with this number puts into a sector."""
    head = number.to_bytes(4, "little") + sector.to_bytes(8, "little") + _MARK
    return head + head.join(_PLACES)


@dataclass(slots=True, eq=False)
class Write:
    """A write, or what else changes sectors: `contents` are its sectors', None for anything."""

    name: str
    sector: int
    contents: Sequence[bytes | None]

    @property
    def sectors(self) -> range:
        """The sectors that it changes."""
        return range(self.sector, self.sector + len(self.contents))


@dataclass(slots=True, eq=False)
class Read:
    """A read, and what each of its sectors may come with; None for anything.

    `touched` are the sectors that a write was in flight to meanwhile.
    """

    sector: int
    count: int
    allowed: dict[int, list[bytes] | None]
    touched: set[int]

    @property
    def sectors(self) -> range:
        """The sectors that it is of."""
        return range(self.sector, self.sector + self.count)


@dataclass(slots=True, frozen=True)
class Mismatch:
    """A sector that a read came with, and should not have: in words, and what it should have."""

    words: str
    wanted: bytes


@dataclass(slots=True)
class _Contention:
    """Writes of a sector that were in flight together."""

    running: int = 0
    contents: list[bytes | None] = field(default_factory=list)
    met: bool = False


class ModelDisk:
    """What the driver knows of a disk: nothing at first, and then what it wrote and read.

    Sectors that were never written are learned when they are read, and have to stay.
    """

    def __init__(self) -> None:
        # What a sector may hold, by sector: one content, or several after writes that met. A
        # sector that is not here may hold anything.
        self._sectors: dict[int, list[bytes]] = {}
        self._running: defaultdict[int, _Contention] = defaultdict(_Contention)
        self._reads: list[Read] = []
        self._writes: list[Write] = []
        self._numbers = 0
        # What was written, by number: the first sector, and how many.
        self._names: dict[int, str] = {}

    # Writes

    def write(self, sector: int, count: int) -> Write:
        """Make up the contents of a write; it is not in flight yet."""
        self._numbers += 1
        name = f"write {self._numbers}"
        self._names[self._numbers] = name
        contents = [stamped(self._numbers, sector + offset) for offset in range(count)]
        return Write(name, sector, contents)

    def zeroes(self, sector: int, count: int) -> Write:
        """Return what write zeroes come to."""
        return Write("write zeroes", sector, [ZEROES] * count)

    def discard(self, sector: int, count: int) -> Write:
        """Return what a discard comes to: anything."""
        return Write("discard", sector, [None] * count)

    def begin(self, write: Write) -> None:
        """Put a write in flight: from now on a read may see it."""
        self._writes.append(write)
        for sector, content in zip(write.sectors, write.contents, strict=True):
            contention = self._running[sector]
            contention.met |= contention.running > 0
            contention.running += 1
            contention.contents.append(content)
            for read in self._reads:
                if sector in read.allowed:
                    read.allowed[sector] = _also(read.allowed[sector], content)
                    read.touched.add(sector)

    def end(self, write: Write) -> None:
        """Take a write that was completed: its sectors hold what it wrote."""
        self._leave(write, done=True)

    def fail(self, write: Write) -> None:
        """Take a write that failed, or was cut off by a reset: it was done, in part, or not."""
        self._leave(write, done=False)

    def _leave(self, write: Write, *, done: bool) -> None:
        self._writes.remove(write)
        for sector, content in zip(write.sectors, write.contents, strict=True):
            contention = self._running[sector]
            contention.running -= 1
            if contention.met or not done:
                known = self._sectors.get(sector)
                before = [] if done else [known] if known is None else known
                self._put(sector, [*before, *contention.contents])
                # What was in flight beside it and is still may come after it.
                contention.met |= not done
            else:
                self._put(sector, [content])
            if not contention.running:
                del self._running[sector]

    def _put(self, sector: int, contents: Iterable[bytes | None]) -> None:
        known = [content for content in dict.fromkeys(contents) if content is not None]
        if None in contents or not known:
            self._sectors.pop(sector, None)
        else:
            self._sectors[sector] = known

    def cut_off(self) -> None:
        """Take every write in flight for one that a reset has cut off; reads are forgotten."""
        for write in list(self._writes):
            self.fail(write)
        self._reads.clear()

    # Reads

    def read(self, sector: int, count: int) -> Read:
        """Put a read in flight."""
        sectors = range(sector, sector + count)
        allowed: dict[int, list[bytes] | None] = {one: self._sectors.get(one) for one in sectors}
        touched = {one for one in sectors if one in self._running}
        for one in touched:
            for content in self._running[one].contents:
                allowed[one] = _also(allowed[one], content)
        read = Read(sector, count, allowed, touched)
        self._reads.append(read)
        return read

    def complete(self, read: Read, data: bytes) -> Mismatch | None:
        """Look at what a read came with; returns the first thing that is wrong with it."""
        self._reads.remove(read)
        wrong = self._wrong(read, data)
        if wrong is None:
            # What was not known is now; of several contents only this one is left.
            for number, sector in enumerate(read.sectors):
                if sector not in read.touched:
                    self._sectors[sector] = [data[number * SECTOR : (number + 1) * SECTOR]]
        return wrong

    def _wrong(self, read: Read, data: bytes) -> Mismatch | None:
        for number, sector in enumerate(read.sectors):
            found = data[number * SECTOR : (number + 1) * SECTOR]
            allowed = read.allowed[sector]
            if allowed is None or found in allowed:
                continue
            if len(allowed) > 1 and _is_mixed(found, allowed):
                continue
            has, wanted = self._named(found, sector), self._named(allowed[-1], sector)
            return Mismatch(f"sector {sector} has {has}, and should have {wanted}", allowed[-1])
        return None

    def _named(self, content: bytes, sector: int) -> str:
        """Say what a sector's content is."""
        if content == ZEROES:
            return "zeroes"
        if len(set(content)) == 1:
            return f"{content[0]:#04x} all over"
        stamp = _origin(content)
        if stamp is None:
            return f"{content[:16].hex(' ', 4)} ..."
        number, origin = stamp
        name = self._names.get(number, f"write {number}")
        where = "" if origin == sector else f" to sector {origin}"
        rest = stamped(number, origin)
        tail = "" if content == rest else f" ({difference(content, rest)})"
        return f"what {name} wrote{where}{tail}"


def _also(allowed: list[bytes] | None, content: bytes | None) -> list[bytes] | None:
    if allowed is None or content is None:
        return None
    return [*allowed, content]


def _is_mixed(found: bytes, allowed: Sequence[bytes]) -> bool:
    """Say whether each part of a sector is of one of several contents: no disk promises more."""
    return all(
        any(found[at : at + _STAMP] == content[at : at + _STAMP] for content in allowed)
        for at in range(0, SECTOR, _STAMP)
    )


def _origin(content: bytes) -> tuple[int, int] | None:
    """Return the number of the write, and the sector, that a content's first stamp is of."""
    if content[12:14] != _MARK:
        return None
    return int.from_bytes(content[:4], "little"), int.from_bytes(content[4:12], "little")

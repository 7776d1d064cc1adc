"""Descriptor chains that no driver may make (2.7.4.2, 2.7.5): one list for all tests and tools.

Each is malformed whatever is in memory, so that a device has to reject it and can go on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from virtiopy.virtqueue.layout import DESCRIPTOR_SIZE, DescriptorFlag

NEXT, WRITE, INDIRECT = (int(flag) for flag in DescriptorFlag)

#: Bytes of a buffer that is sound, and the most that `len` can say.
BUFFER = 64
MAX_LENGTH = 0xFFFF_FFFF
TOP = 1 << 64

#: A descriptor: address, length, flags, next.
Entry: TypeAlias = tuple[int, int, int, int]


@dataclass(slots=True, frozen=True)
class Ground:
    """What a malformed chain is made of: entries of a queue, and guest physical addresses.

    `indexes` are the descriptors that are written, the head first, of a queue of `size` entries.
    At `buffer` are BUFFER bytes of memory, at `table` is room for `size` + 1 descriptors. Memory
    ends before `end`, and before `hole`.
    """

    indexes: Sequence[int]
    size: int
    buffer: int
    table: int
    end: int
    hole: int

    def sound(self, flags: int = 0, following: int = 0) -> Entry:
        """Return a descriptor of a sound buffer."""
        return self.buffer, BUFFER, flags, following

    def refer(self, entries: int, flags: int = INDIRECT) -> Entry:
        """Return a descriptor that refers to the table, of so many entries."""
        return self.table, DESCRIPTOR_SIZE * entries, flags, 0


#: What is written: to the queue's descriptors, and to the table.
Written: TypeAlias = tuple[Sequence[Entry], Sequence[Entry]]


@dataclass(slots=True, frozen=True)
class Malformed:
    """A chain of so many `descriptors` that breaks `section`; `write` says what is in it."""

    name: str
    section: str
    descriptors: int
    write: Callable[[Ground], Written]

    @property
    def indirect(self) -> bool:
        """Whether it is about indirect tables."""
        return "table" in self.name


def _one(name: str, section: str, entry: Callable[[Ground], Entry]) -> Malformed:
    """Return a chain of one descriptor."""
    return Malformed(name, section, 1, lambda ground: ([entry(ground)], []))


def _second(name: str, section: str, entry: Callable[[Ground], Entry]) -> Malformed:
    """Return a chain whose second descriptor is the bad one."""
    return Malformed(
        name,
        section,
        2,
        lambda ground: ([ground.sound(NEXT, ground.indexes[1]), entry(ground)], []),
    )


def _flags(name: str, section: str, *flags: int) -> Malformed:
    """Return a chain of sound buffers with these flags; NEXT is added to them."""

    def write(ground: Ground) -> Written:
        following = [*ground.indexes[1 : len(flags)], 0]
        entries = [
            ground.sound(word | (NEXT if index + 1 < len(flags) else 0), following[index])
            for index, word in enumerate(flags)
        ]
        return entries, []

    return Malformed(name, section, len(flags), write)


def _loop(name: str, count: int, back_to: int, flags: int = 0, length: int = BUFFER) -> Malformed:
    """Return `count` descriptors of which the last leads back to one of them."""

    def write(ground: Ground) -> Written:
        following = [*ground.indexes[1:count], ground.indexes[:count][back_to]]
        return [(ground.buffer, length, NEXT | flags, to) for to in following], []

    return Malformed(name, "2.7.5.3.1", count, write)


def _table(
    name: str,
    section: str,
    entries: Callable[[Ground], Sequence[Entry]],
    *,
    length: int | None = None,
    flags: int = INDIRECT,
) -> Malformed:
    """Return a reference to a table with these entries, that claims to have `length` bytes."""

    def write(ground: Ground) -> Written:
        table = entries(ground)
        size = DESCRIPTOR_SIZE * len(table) if length is None else length
        return [(ground.table, size, flags, 0)], table

    return Malformed(name, section, 1, write)


def _long(ground: Ground, count: int) -> Sequence[Entry]:
    return [ground.sound(NEXT if n + 1 < count else 0, (n + 1) % count) for n in range(count)]


def _direct_then_table(ground: Ground, flags: int, table: Sequence[Entry]) -> Written:
    return [ground.sound(flags | NEXT, ground.indexes[1]), ground.refer(len(table))], table


CHAINS = (
    _one("address-behind-memory", "2.7.5", lambda g: (g.end, BUFFER, 0, 0)),
    _second("address-behind-memory-writable", "2.7.5", lambda g: (g.end, BUFFER, WRITE, 0)),
    _one("address-in-hole", "2.7.5", lambda g: (g.hole + 0x100, BUFFER, 0, 0)),
    _one("address-in-hole-writable", "2.7.5", lambda g: (g.hole + 0x100, BUFFER, WRITE, 0)),
    _one("buffer-into-hole", "2.7.5", lambda g: (g.hole - 16, BUFFER, WRITE, 0)),
    _second("buffer-past-end", "2.7.5", lambda g: (g.end - 16, BUFFER, 0, 0)),
    _one("one-byte-past-end", "2.7.5", lambda g: (g.end - 1, 2, WRITE, 0)),
    _one("buffer-wraps-2-to-64", "2.7.5", lambda g: (TOP - 16, BUFFER, 0, 0)),
    _one("buffer-wraps-into-memory", "2.7.5", lambda g: (TOP - 8, 0x1000, WRITE, 0)),
    _one("last-byte-of-2-to-64", "2.7.5", lambda g: (TOP - 1, 1, WRITE, 0)),
    _one("address-with-sign-bit", "2.7.5", lambda g: (1 << 63, MAX_LENGTH, 0, 0)),
    _one("length-ffffffff", "2.7.5", lambda g: (g.buffer, MAX_LENGTH, 0, 0)),
    _second(
        "length-ffffffff-at-top", "2.7.5.2", lambda g: (TOP - MAX_LENGTH, MAX_LENGTH, WRITE, 0)
    ),
    _flags("readable-after-writable", "2.7.4.2", WRITE, 0),
    _flags("readable-between-writable", "2.7.4.2", 0, WRITE, 0, WRITE),
    _loop("loop-of-one", 1, 0),
    _loop("loop-of-two", 2, 0),
    _loop("loop-of-two-writable", 2, 0, WRITE),
    _loop("loop-of-four", 4, 0),
    _loop("loop-at-the-end", 4, -1, WRITE),
    _loop("loop-without-a-byte", 2, 0, length=0),
    _one("next-is-queue-size", "2.7.5", lambda g: g.sound(NEXT, g.size)),
    _one("next-is-ffff", "2.7.5", lambda g: g.sound(NEXT, 0xFFFF)),
)

TABLES = (
    _table("table-in-itself", "2.7.5.3.1", lambda g: [g.refer(1)]),
    _table(
        "table-at-the-end-of-a-table",
        "2.7.5.3.1",
        lambda g: [g.sound(NEXT, 1), (g.buffer, DESCRIPTOR_SIZE, INDIRECT, 0)],
    ),
    _table("table-in-a-table", "2.7.5.3.1", lambda g: [(g.buffer, DESCRIPTOR_SIZE, INDIRECT, 0)]),
    _table("table-and-next", "2.7.5.3.1", lambda g: [g.sound()], flags=INDIRECT | NEXT),
    Malformed(
        "second-has-table-and-next",
        "2.7.5.3.1",
        2,
        lambda g: ([g.sound(NEXT, g.indexes[1]), g.refer(1, INDIRECT | NEXT)], [g.sound()]),
    ),
    _table("table-of-0-bytes", "2.7.5.3", lambda g: [g.sound()], length=0),
    _table("table-of-8-bytes", "2.7.5.3", lambda g: [g.sound()], length=8),
    _table("table-of-17-bytes", "2.7.5.3", lambda g: [g.sound()], length=17),
    _table("table-of-24-bytes", "2.7.5.3", lambda g: _long(g, 2), length=24),
    _table("table-of-ffffffff-bytes", "2.7.5.3", lambda g: [g.sound()], length=MAX_LENGTH),
    _table("table-of-4-gib", "2.7.5", lambda g: [g.sound()], length=MAX_LENGTH - 15),
    _one("table-behind-memory", "2.7.5", lambda g: (g.end, 64, INDIRECT, 0)),
    _one("table-past-end", "2.7.5", lambda g: (g.end - 16, 32, INDIRECT, 0)),
    _one("table-in-hole", "2.7.5", lambda g: (g.hole, 64, INDIRECT, 0)),
    _one("table-into-hole", "2.7.5", lambda g: (g.hole - 32, 64, INDIRECT, 0)),
    _one("table-wraps-2-to-64", "2.7.5", lambda g: (TOP - 32, 64, INDIRECT, 0)),
    _table("table-longer-than-queue", "2.7.5.3.1", lambda g: _long(g, g.size + 1)),
    Malformed(
        "table-behind-a-descriptor-longer-than-queue",
        "2.7.5.3.1",
        2,
        lambda g: _direct_then_table(g, 0, _long(g, g.size)),
    ),
    _table("loop-in-table", "2.7.5.3.1", lambda g: [g.sound(NEXT, 1), g.sound(NEXT, 0)]),
    _table("next-behind-table", "2.7.5", lambda g: [g.sound(NEXT, 1)]),
    _table("next-in-the-queue-and-not-in-table", "2.7.5", lambda g: [g.sound(NEXT, g.size - 1)]),
    _table("next-in-table-is-ffff", "2.7.5", lambda g: [g.sound(NEXT, 0xFFFF)]),
    _table(
        "readable-after-writable-in-table",
        "2.7.4.2",
        lambda g: [g.sound(WRITE | NEXT, 1), g.sound()],
    ),
    Malformed(
        "readable-in-table-after-writable",
        "2.7.4.2",
        2,
        lambda g: _direct_then_table(g, WRITE, [g.sound()]),
    ),
    _table("address-in-table-in-hole", "2.7.5", lambda g: [(g.hole, 8, 0, 0)]),
    _table("buffer-in-table-wraps-2-to-64", "2.7.5", lambda g: [(TOP - 8, 16, WRITE, 0)]),
)

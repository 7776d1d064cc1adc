"""Descriptor chains that no driver may make: what is in them, and where they lead (2.7.5)."""

from collections.abc import Callable

from virtiopy.conformance.hostile.acts import BUFFER, Act, Stage
from virtiopy.conformance.hostile.malformed import MALFORMED_CHAINS
from virtiopy.conformance.sessions.memory import END, HOLE
from virtiopy.virtqueue.malformed import NEXT, WRITE

#: Bits of `flags` that mean nothing in a split virtqueue (2.7.5).
UNKNOWN_FLAGS = 0xFFF8


def one(address: int, length: int, flags: int = 0) -> Callable[[Stage], None]:
    """Return what submits a descriptor like this, by itself."""

    def do(stage: Stage) -> None:
        [head] = stage.descriptors(1)
        stage.queue.corrupt_descriptor(head, address, length, flags, 0)
        stage.submit(head)

    return do


def flagged(*flags: int, length: int = BUFFER) -> Callable[[Stage], None]:
    """Return what submits a chain whose descriptors have these flags; NEXT is added to them."""

    def do(stage: Stage) -> None:
        indexes = stage.descriptors(len(flags))
        for index, following, word in zip(indexes, [*indexes[1:], 0], flags, strict=True):
            more = NEXT if index != indexes[-1] else 0
            stage.queue.corrupt_descriptor(index, stage.buffer(), length, word | more, following)
        stage.submit(indexes[0])

    return do


def loop(count: int, back_to: int, flags: int = 0) -> Callable[[Stage], None]:
    """Return what submits `count` descriptors, the last of which leads back to one of them."""

    def do(stage: Stage) -> None:
        indexes = stage.descriptors(count)
        for index, following in zip(indexes, [*indexes[1:], indexes[back_to]], strict=True):
            stage.queue.corrupt_descriptor(index, stage.buffer(), BUFFER, flags | NEXT, following)
        stage.submit(indexes[0])

    return do


def to_a_free_descriptor(stage: Stage) -> None:
    """Submit a chain whose end says that it goes on."""
    [head] = stage.descriptors(1)
    stage.queue.corrupt_descriptor(head, stage.buffer(), BUFFER, NEXT, stage.queue.free_indexes[0])
    stage.submit(head)


def into_another_chain(stage: Stage) -> None:
    """Submit two chains that have their end in common."""
    first, second, shared = stage.descriptors(3)
    for head in (first, second):
        stage.queue.corrupt_descriptor(head, stage.buffer(), BUFFER, NEXT, shared)
    stage.queue.corrupt_descriptor(shared, stage.buffer(), BUFFER, WRITE, 0)
    stage.submit(first, second)


def same_memory(stage: Stage) -> None:
    """Submit a chain that has the device read and write the same bytes, and write them twice."""
    read, write, again = stage.descriptors(3)
    address = stage.buffer()
    stage.queue.corrupt_descriptor(read, address, BUFFER, NEXT, write)
    stage.queue.corrupt_descriptor(write, address, BUFFER, NEXT | WRITE, again)
    stage.queue.corrupt_descriptor(again, address + 7, BUFFER - 7, WRITE, 0)
    stage.submit(read)


def twice(stage: Stage) -> None:
    """Submit a chain that is in flight already."""
    [head] = stage.descriptors(1)
    stage.queue.corrupt_descriptor(head, stage.buffer(), BUFFER, WRITE, 0)
    stage.submit(head, head)


def all_descriptors(stage: Stage) -> None:
    """Submit every descriptor that is free, as one chain."""
    stage.submit(stage.descriptors(stage.queue.free)[0])


def in_area(area: str, flags: int) -> Callable[[Stage], None]:
    """Return what submits a buffer that is one of the queue's own parts."""

    def do(stage: Stage) -> None:
        [head] = stage.descriptors(1)
        address = getattr(stage.queue.areas, area)
        stage.queue.corrupt_descriptor(head, address, BUFFER, flags, 0)
        stage.submit(head)

    return do


def head(value: int | None) -> Callable[[Stage], None]:
    """Return what makes a head available that is none; None is the queue's size."""
    return lambda stage: stage.submit(stage.queue.size if value is None else value)


CHAINS = (
    *MALFORMED_CHAINS,
    Act("head-is-queue-size", "2.7.6", head(None)),
    Act("head-is-ffff", "2.7.6", head(0xFFFF)),
    Act("zero-length", "2.7.5", flagged(0, length=0)),
    Act("zero-length-writable", "2.7.5", flagged(WRITE, length=0)),
    Act("zero-length-outside-memory", "2.7.5", one(END + 0x1000, 0)),
    Act("zero-lengths", "2.7.5", flagged(0, 0, WRITE, WRITE, length=0)),
    Act("half-written", "2.7.5", one(0, 0)),
    Act("unknown-flags", "2.7.5", flagged(UNKNOWN_FLAGS, UNKNOWN_FLAGS | WRITE)),
    Act("only-readable", "2.7.4", flagged(0, 0)),
    Act("only-writable", "2.7.4", flagged(WRITE, WRITE)),
    Act("a-byte-readable", "2.7.4", flagged(0, length=1)),
    Act("a-byte-writable", "2.7.4", flagged(WRITE, length=1)),
    Act("loop-of-sixteen", "2.7.5.2", loop(16, 0)),
    Act("next-in-the-last", "2.7.5", to_a_free_descriptor),
    Act("chains-share-a-descriptor", "2.7.5", into_another_chain),
    Act("buffers-overlap", "2.7.5", same_memory),
    Act("chain-in-flight-twice", "2.7.13", twice),
    Act("chain-of-all-descriptors", "2.7.5.3.1", all_descriptors),
    Act("reads-the-descriptor-table", "2.7.5", in_area("descriptor", 0)),
    Act("writes-the-descriptor-table", "2.7.5", in_area("descriptor", WRITE), ruinous=True),
    Act("writes-the-available-ring", "2.7.6", in_area("driver", WRITE), ruinous=True),
    Act("writes-the-used-ring", "2.7.8", in_area("device", WRITE), ruinous=True),
    Act("reads-the-rings", "2.7.5", one(0x1000, 0x1000), ruinous=True),
    Act("writes-all-memory", "2.7.5", one(0, HOLE, WRITE), ruinous=True),
)

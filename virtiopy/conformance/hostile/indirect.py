"""What no driver may do with indirect tables (2.7.5.3.1)."""

from collections.abc import Callable, Sequence

from virtiopy._native import ffi
from virtiopy.conformance.hostile.acts import BUFFER, Act, Stage
from virtiopy.conformance.hostile.malformed import INDIRECT_FEATURE, MALFORMED_TABLES
from virtiopy.virtqueue.layout import DESCRIPTOR_SIZE
from virtiopy.virtqueue.malformed import INDIRECT, NEXT, WRITE, Entry


def table(stage: Stage, entries: Sequence[Entry]) -> int:
    """Put an indirect table into memory; returns its address."""
    array = ffi.new("struct vring_desc[]", list(entries))
    stage.session.trace.note(f"indirect table = {list(entries)}")
    return stage.session.place(bytes(ffi.buffer(array)), DESCRIPTOR_SIZE).address


def refer(address: int, length: int) -> Callable[[Stage], None]:
    """Return what submits a reference to a table, wherever that is."""

    def do(stage: Stage) -> None:
        [head] = stage.descriptors(1)
        stage.queue.corrupt_descriptor(head, address, length, INDIRECT, 0)
        stage.submit(head)

    return do


def entries(*of: Entry) -> Callable[[Stage], None]:
    """Return what submits a table with these entries."""

    def do(stage: Stage) -> None:
        stage.buffer()
        address = table(stage, of)
        refer(address, len(of) * DESCRIPTOR_SIZE)(stage)

    return do


def long_table(count: int) -> Callable[[Stage], None]:
    """Return what submits a table of `count` entries, all chained."""

    def do(stage: Stage) -> None:
        buffer = stage.buffer()
        chained = [(buffer, 1, NEXT if i + 1 < count else 0, i + 1) for i in range(count)]
        array = ffi.new("struct vring_desc[]", chained)
        address = stage.session.place(bytes(ffi.buffer(array)), DESCRIPTOR_SIZE).address
        refer(address, count * DESCRIPTOR_SIZE)(stage)

    return do


def and_next(stage: Stage) -> None:
    """Submit a reference to a table that is not the last of its chain."""
    head, last = stage.descriptors(2)
    address = table(stage, [(stage.buffer(), BUFFER, 0, 0)])
    stage.queue.corrupt_descriptor(head, address, DESCRIPTOR_SIZE, INDIRECT | NEXT, last)
    stage.queue.corrupt_descriptor(last, stage.buffer(), BUFFER, WRITE, 0)
    stage.submit(head)


def the_queues_own(stage: Stage) -> None:
    """Submit a reference to the queue's descriptor table, which refers to itself so."""
    [head] = stage.descriptors(1)
    parts = stage.queue.areas
    length = stage.queue.size * DESCRIPTOR_SIZE
    stage.queue.corrupt_descriptor(head, parts.descriptor, length, INDIRECT, 0)
    stage.submit(head)


GOOD: Entry = (0x800, BUFFER, WRITE, 0)

TABLES = (
    *MALFORMED_TABLES,
    Act("table-is-the-queue's", "2.7.5.3.1", the_queues_own, INDIRECT_FEATURE),
    Act("table-of-20000-entries", "2.7.5.3.1", long_table(20000), INDIRECT_FEATURE),
)

#: Without the feature the flag means nothing that a driver may use.
WITHOUT_FEATURE = (
    Act("table-without-the-feature", "2.7.5.3.1", entries(GOOD)),
    Act("table-and-next-without-the-feature", "2.7.5.3.1", and_next),
)

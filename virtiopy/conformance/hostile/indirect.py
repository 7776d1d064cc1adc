"""What no driver may do with indirect tables (2.7.5.3.1)."""

from collections.abc import Callable, Sequence

from virtiopy._native import ffi
from virtiopy.conformance.hostile.acts import BUFFER, Act, Stage
from virtiopy.conformance.hostile.chains import INDIRECT, MAX_LENGTH, NEXT, TOP, WRITE
from virtiopy.conformance.sessions.memory import END, HOLE
from virtiopy.virtqueue.layout import DESCRIPTOR_SIZE

FEATURE = ("VIRTIO_F_INDIRECT_DESC",)

#: A descriptor: address, length, flags, next.
Entry = tuple[int, int, int, int]


def table(stage: Stage, entries: Sequence[Entry]) -> int:
    """Put an indirect table into memory; returns its address."""
    array = ffi.new("struct vring_desc[]", list(entries))
    stage.session.trace.note(f"indirect table = {list(entries)}")
    return stage.session.place(bytes(ffi.buffer(array)), DESCRIPTOR_SIZE).address


def refer(address: int, length: int, flags: int = INDIRECT) -> Callable[[Stage], None]:
    """Return what submits a reference to a table, wherever that is."""

    def do(stage: Stage) -> None:
        [head] = stage.descriptors(1)
        stage.queue.corrupt_descriptor(head, address, length, flags, 0)
        stage.submit(head)

    return do


def entries(*of: Entry, length: int | None = None) -> Callable[[Stage], None]:
    """Return what submits a table with these entries, that claims to have `length` bytes."""

    def do(stage: Stage) -> None:
        stage.buffer()
        address = table(stage, of)
        size = len(of) * DESCRIPTOR_SIZE if length is None else length
        refer(address, size)(stage)

    return do


def long_table(count: int | None) -> Callable[[Stage], None]:
    """Return what submits a table of `count` entries, all chained; None is one more than fits."""

    def do(stage: Stage) -> None:
        size = stage.queue.size + 1 if count is None else count
        buffer = stage.buffer()
        chained = [(buffer, 1, NEXT if i + 1 < size else 0, i + 1) for i in range(size)]
        array = ffi.new("struct vring_desc[]", chained)
        address = stage.session.place(bytes(ffi.buffer(array)), DESCRIPTOR_SIZE).address
        refer(address, size * DESCRIPTOR_SIZE)(stage)

    return do


def nested(stage: Stage) -> None:
    """Submit a table whose entry refers to another."""
    inner = table(stage, [(stage.buffer(), BUFFER, WRITE, 0)])
    outer = table(stage, [(inner, DESCRIPTOR_SIZE, INDIRECT, 0)])
    refer(outer, DESCRIPTOR_SIZE)(stage)


def of_itself(stage: Stage) -> None:
    """Submit a table whose entry refers to the table."""
    address = stage.session.allocator.take(DESCRIPTOR_SIZE, DESCRIPTOR_SIZE)
    array = ffi.new("struct vring_desc[]", [(address, DESCRIPTOR_SIZE, INDIRECT, 0)])
    stage.session.memory.write(address, bytes(ffi.buffer(array)))
    refer(address, DESCRIPTOR_SIZE)(stage)


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
    Act("table-in-a-table", "2.7.5.3.1", nested, FEATURE),
    Act("table-in-itself", "2.7.5.3.1", of_itself, FEATURE),
    Act("table-and-next", "2.7.5.3.1", and_next, FEATURE),
    Act("table-is-the-queue's", "2.7.5.3.1", the_queues_own, FEATURE),
    Act("table-of-0-bytes", "2.7.5.3", entries(GOOD, length=0), FEATURE),
    Act("table-of-8-bytes", "2.7.5.3", entries(GOOD, length=8), FEATURE),
    Act("table-of-24-bytes", "2.7.5.3", entries(GOOD, GOOD, length=24), FEATURE),
    Act("table-of-4-gib", "2.7.5.3", refer(0x2000, MAX_LENGTH - 15), FEATURE),
    Act("table-behind-memory", "2.7.5.3", refer(END + 0x1000, 64), FEATURE),
    Act("table-in-hole", "2.7.5.3", refer(HOLE, 64), FEATURE),
    Act("table-into-hole", "2.7.5.3", refer(HOLE - 32, 64), FEATURE),
    Act("table-wraps-2-to-64", "2.7.5.3", refer(TOP - 32, 64), FEATURE),
    Act("table-longer-than-queue", "2.7.5.3.1", long_table(None), FEATURE),
    Act("table-of-20000-entries", "2.7.5.3.1", long_table(20000), FEATURE),
    Act("loop-in-table", "2.7.5.2", entries((0x800, 8, NEXT, 1), (0x800, 8, NEXT, 0)), FEATURE),
    Act("next-behind-table", "2.7.5", entries((0x800, 8, NEXT, 1)), FEATURE),
    Act("next-in-table-is-ffff", "2.7.5", entries((0x800, 8, NEXT, 0xFFFF)), FEATURE),
    Act(
        "readable-after-writable-in-table",
        "2.7.4.2",
        entries((0x800, 8, WRITE | NEXT, 1), (0x800, 8, 0, 0)),
        FEATURE,
    ),
    Act("address-in-table-in-hole", "2.7.5", entries((HOLE, 8, 0, 0)), FEATURE),
)

#: Without the feature the flag means nothing that a driver may use.
WITHOUT_FEATURE = (
    Act("table-without-the-feature", "2.7.5.3.1", entries(GOOD)),
    Act("table-and-next-without-the-feature", "2.7.5.3.1", and_next),
)

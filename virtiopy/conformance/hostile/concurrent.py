"""Chains that change while the device works them: every field that it reads twice is a trap."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence

from virtiopy._native import ffi
from virtiopy.conformance.hostile.acts import BUFFER, Act, Stage
from virtiopy.conformance.hostile.indirect import table
from virtiopy.conformance.hostile.malformed import INDIRECT_FEATURE
from virtiopy.conformance.sessions.memory import END, HOLE
from virtiopy.virtqueue.layout import DESCRIPTOR_SIZE
from virtiopy.virtqueue.malformed import INDIRECT, MAX_LENGTH, NEXT, TOP, WRITE, Entry

#: How often a chain is made available while it changes.
ROUNDS = 16

#: How many values are written one after the other by one system call, which nothing of Python's
#: comes between; no more than IOV_MAX.
WRITES = 1000


@contextlib.contextmanager
def changing(stage: Stage, address: int, values: Sequence[bytes]) -> Iterator[None]:
    """Write these values (of equal size) to guest memory, over and over, on another thread.

    It is the kernel that writes, out of a file, so that the device's thread goes on meanwhile.
    """
    stage.session.trace.note(f"another thread writes {len(values)} values to {address:#x}, in turn")
    data = b"".join(values[turn % len(values)] for turn in range(WRITES))
    [view] = stage.session.memory.views(address, len(values[0]))
    over = threading.Event()
    file = os.memfd_create("virtiopy-values", os.MFD_CLOEXEC)

    def write() -> None:
        while not over.is_set():
            os.preadv(file, [view] * WRITES, 0)

    try:
        os.write(file, data)
        thread = threading.Thread(target=write, name="another", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
    finally:
        os.close(file)


def descriptor(address: int, length: int, flags: int = 0, following: int = 0) -> bytes:
    """Return the bytes of a descriptor."""
    entry = ffi.new("struct vring_desc *", (address, length, flags, following))
    return bytes(ffi.buffer(entry))


def descriptors(
    values_of: Callable[[Stage, int, int], Sequence[Entry]],
) -> Callable[[Stage], None]:
    """Return what submits a chain of two whose first descriptor changes."""

    def do(stage: Stage) -> None:
        head, last = stage.descriptors(2)
        stage.queue.corrupt_descriptor(last, stage.buffer(), BUFFER, WRITE, 0)
        values = [descriptor(*entry) for entry in values_of(stage, head, last)]
        address = stage.queue.descriptor_address(head)
        with changing(stage, address, values):
            for _ in range(ROUNDS):
                stage.submit(head)

    return do


def addresses(stage: Stage, head: int, last: int) -> list[Entry]:
    """Change where the buffer is."""
    return [
        (address, BUFFER, NEXT, last)
        for address in (stage.buffer(), HOLE, END, TOP - 16, stage.queue.areas.device)
    ]


def lengths(stage: Stage, head: int, last: int) -> list[Entry]:
    """Change how long it is."""
    buffer = stage.buffer()
    return [(buffer, length, NEXT, last) for length in (1, BUFFER, 0, MAX_LENGTH)]


def flags(stage: Stage, head: int, last: int) -> list[Entry]:
    """Change what it is."""
    buffer = stage.buffer()
    return [(buffer, BUFFER, f, last) for f in (NEXT, 0, WRITE, WRITE | NEXT, INDIRECT)]


def nexts(stage: Stage, head: int, last: int) -> list[Entry]:
    """Change what comes behind it."""
    buffer = stage.buffer()
    return [(buffer, BUFFER, NEXT, following) for following in (last, head, 0xFFFF, 5)]


def indirect(stage: Stage) -> None:
    """Submit a table whose entry changes, into a loop and out of it."""
    buffer = stage.buffer()
    address = table(stage, [(buffer, 8, NEXT, 1), (buffer, 8, WRITE, 0)])
    [head] = stage.descriptors(1)
    stage.queue.corrupt_descriptor(head, address, 2 * DESCRIPTOR_SIZE, INDIRECT, 0)
    values = [
        descriptor(buffer, 8, NEXT, 1),
        descriptor(buffer, 8, NEXT, 0),
        descriptor(HOLE, 8, NEXT, 1),
        descriptor(buffer, 16, INDIRECT, 0),
    ]
    with changing(stage, address, values):
        for _ in range(ROUNDS):
            stage.submit(head)


def available_entries(stage: Stage) -> None:
    """Change the heads in the available ring."""
    heads = stage.descriptors(4)
    address = stage.queue.next_entry_address()
    values = [head.to_bytes(2, "little") for head in (heads[0], 0xFFFF, stage.queue.size, heads[0])]
    with changing(stage, address, values):
        stage.submit(heads[0])


def available_idx(stage: Stage) -> None:
    """Change idx of the available ring."""
    [head] = stage.descriptors(1)
    address = stage.queue.available_idx_address()
    good = (stage.queue.next_available + 1) % (1 << 16)
    values = [value.to_bytes(2, "little") for value in (good, good ^ 0x8000, good)]
    stage.queue.make_available(head)
    with changing(stage, address, values):
        for _ in range(ROUNDS):
            stage.session.kick(stage.index)


def content(stage: Stage) -> None:
    """Change what a good request says, where there is one."""
    request = stage.request()
    if request is None or not request.readable:
        return
    sent = stage.driver.place(request)
    readable = sent.pieces[0]
    good = stage.session.content(readable)
    values = [good, b"\xff" * len(good), bytes(len(good)), good[::-1]]
    with changing(stage, readable.address, values):
        for _ in range(ROUNDS):
            stage.submit(sent.head)


CHANGES = (
    Act("address-changes", "2.7.13", descriptors(addresses), ruinous=True),
    Act("length-changes", "2.7.13", descriptors(lengths), ruinous=True),
    Act("flags-change", "2.7.13", descriptors(flags), ruinous=True),
    Act("next-changes", "2.7.13", descriptors(nexts), ruinous=True),
    Act("table-changes", "2.7.13", indirect, INDIRECT_FEATURE, ruinous=True),
    Act("head-changes", "2.7.13", available_entries, ruinous=True),
    Act("idx-changes", "2.7.13", available_idx, ruinous=True),
    Act("content-changes", "2.7.13", content, ruinous=True),
)

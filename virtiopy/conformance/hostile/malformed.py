"""The list of malformed chains (virtqueue.malformed), as acts."""

from virtiopy._native import ffi
from virtiopy.conformance.hostile.acts import Act, Stage
from virtiopy.conformance.sessions.memory import END, HOLE
from virtiopy.virtqueue.layout import DESCRIPTOR_SIZE
from virtiopy.virtqueue.malformed import CHAINS, TABLES, Ground, Malformed

#: What has to be negotiated for an indirect table to be read at all.
INDIRECT_FEATURE = ("VIRTIO_F_INDIRECT_DESC",)


def _act(malformed: Malformed) -> Act:
    def submit(stage: Stage) -> None:
        indexes = stage.descriptors(malformed.descriptors)
        table = 0
        if malformed.indirect:
            room = DESCRIPTOR_SIZE * (stage.queue.size + 1)
            table = stage.session.allocator.take(room, DESCRIPTOR_SIZE)
        ground = Ground(indexes, stage.queue.size, stage.buffer(), table, END, HOLE)
        chain, entries = malformed.write(ground)
        if entries:
            array = ffi.new("struct vring_desc[]", list(entries))
            stage.session.memory.write(table, bytes(ffi.buffer(array)))
            stage.session.trace.note(f"indirect table at {table:#x} = {list(entries)}")
        for index, entry in zip(indexes, chain, strict=True):
            stage.queue.corrupt_descriptor(index, *entry)
        stage.submit(indexes[0])

    features = INDIRECT_FEATURE if malformed.indirect else ()
    return Act(malformed.name, malformed.section, submit, features)


MALFORMED_CHAINS = tuple(map(_act, CHAINS))
MALFORMED_TABLES = tuple(map(_act, TABLES))

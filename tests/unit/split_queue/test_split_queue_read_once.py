"""Split virtqueues (2.7): every field is read once, as the driver may change it at any moment."""

from collections import Counter

import pytest

from tests.unit.split_queue.rig import (
    BAD,
    INDIRECT,
    MALFORMED,
    NEXT,
    WRITE,
    Malform,
    Rig,
    _python_queue,
    python_only,
)
from virtiopy._native import CData
from virtiopy.virtqueue.buffers import gather
from virtiopy.virtqueue.driver import Used
from virtiopy.virtqueue.queue import QueueError

# A descriptor's field or a ring entry: ("queue" or "table" or "ring", index, field).
Read = tuple[str, int, str]


class _CountedFields:
    def __init__(self, real: CData, name: tuple[str, int], reads: Counter[Read]) -> None:
        self._real = real
        self._name = name
        self._reads = reads

    def __getattr__(self, field: str) -> int:
        self._reads[(*self._name, field)] += 1
        value: int = getattr(self._real, field)
        return value


class _CountedTable:
    def __init__(self, real: CData, name: str, reads: Counter[Read]) -> None:
        self._real = real
        self._name = name
        self._reads = reads

    def __getitem__(self, index: int) -> _CountedFields:
        return _CountedFields(self._real[index], (self._name, index), self._reads)


class _CountedRing:
    # Stands for struct vring_avail: counts reads of each entry of its ring.
    def __init__(self, real: CData, reads: Counter[Read]) -> None:
        self._real = real
        self._reads = reads

    @property
    def ring(self) -> "_CountedRing":
        return self

    def __getitem__(self, index: int) -> int:
        self._reads["ring", index, ""] += 1
        value: int = self._real.ring[index]
        return value


@pytest.fixture
def reads(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Counter[Read]:
    counted: Counter[Read] = Counter()
    queue = _python_queue(rig)
    real_table = queue._indirect_table

    def counted_table(address: int, size: int, flags: int) -> tuple[_CountedTable, int]:
        table, entries = real_table(address, size, flags)
        return _CountedTable(table, "table", counted), entries

    monkeypatch.setattr(queue, "_descriptors", _CountedTable(queue._descriptors, "queue", counted))
    monkeypatch.setattr(queue, "_indirect_table", counted_table)
    monkeypatch.setattr(queue, "_available", _CountedRing(queue._available, counted))
    return counted


@python_only
def test_each_field_of_a_descriptor_is_read_at_most_once(rig: Rig, reads: Counter[Read]) -> None:
    pieces = [rig.readable(b"a"), rig.readable(b"b"), rig.writable(1), rig.writable(2)]
    rig.driver.add(pieces, direct=2, table=rig.room(2))
    rig.pop()
    visited = [("queue", 0), ("queue", 1), ("queue", 2), ("table", 0), ("table", 1)]
    for table, index in visited:
        for field in ("addr", "len", "flags"):
            assert reads[table, index, field] == 1
    assert set(reads.values()) == {1}


@python_only
@pytest.mark.parametrize(("malform", "section"), MALFORMED)
def test_a_malformed_chains_fields_are_read_once_a_visit(
    rig: Rig, reads: Counter[Read], malform: Malform, section: str
) -> None:
    malform(rig)
    rig.driver.make_available(BAD)
    assert rig.device.pop() is None
    # A loop comes by again, and checks what it finds then anew.
    for (table, index, _), count in list(reads.items()):
        if table != "ring":
            assert count == reads[table, index, "flags"]


@python_only
def test_each_entry_of_the_available_ring_is_read_once(rig: Rig, reads: Counter[Read]) -> None:
    for _ in range(4):
        rig.offer(rig.writable(1))
    rig.device.pop_many()
    assert [reads["ring", slot, ""] for slot in range(8)] == [1, 1, 1, 1, 0, 0, 0, 0]


def test_what_a_driver_changes_after_pop_no_longer_matters(rig: Rig) -> None:
    head = rig.offer(rig.readable(b"sound"), rig.writable(4))
    chain = rig.pop()
    rig.driver.write_descriptor(head, 1 << 63, 0xFFFF_FFFF, NEXT | INDIRECT | WRITE, 0xFFFF)
    rig.driver.available.ring[0] = 0xFFFF
    assert gather(chain.readable) == b"sound"
    rig.device.push(chain, 4)
    assert rig.driver.take_all_used() == [Used(head, 4)]


def test_an_idx_taken_back_before_it_was_looked_at_again_unexposes_nothing(rig: Rig) -> None:
    heads = [rig.offer(rig.writable(1)) for _ in range(3)]
    assert rig.pop().token == heads[0]
    rig.driver.available.idx = 1
    assert [rig.pop().token, rig.pop().token] == heads[1:]
    with pytest.raises(QueueError, match="available idx"):
        rig.device.pop()

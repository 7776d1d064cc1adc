"""The block device (5.2): cache modes (5.2.5), and when a request is complete (5.2.6.2)."""

import pytest

from tests.unit.blk.bench import (
    DISCARD,
    F_DISCARD,
    F_FLUSH,
    F_WRITE_ZEROES,
    FLUSH,
    OK,
    OUT,
    STALE,
    WRITE_ZEROES,
    WRITEBACK,
    Bench,
    FakeDisk,
    bench_of,
    header,
    pattern,
    segment,
)
from virtiopy.devices.blk import BlkFeature
from virtiopy.spec import has_feature

F_CONFIG_WCE = BlkFeature.VIRTIO_BLK_F_CONFIG_WCE


# Cache modes (5.2.5, 5.2.6.2)


def _is_stable(bench: Bench) -> bool:
    """Write a sector, and say whether the disk was asked to make it stable at once."""
    disk = bench.device.disk
    assert isinstance(disk, FakeDisk)
    assert bench.request(OUT, 0, pattern(1)).status == OK
    name, _, _, stable = disk.calls[-1]
    assert name == "write"
    return bool(stable)


def test_flush_and_config_wce_are_offered(faked: Bench) -> None:
    offered = faked.driver.offered_features()
    assert has_feature(offered, F_FLUSH)
    assert has_feature(offered, F_CONFIG_WCE)


@pytest.mark.parametrize(
    ("features", "stable"),
    [([], True), ([F_FLUSH], False), ([F_CONFIG_WCE], True), ([F_FLUSH, F_CONFIG_WCE], False)],
    ids=["neither", "FLUSH", "CONFIG_WCE", "both"],
)
def test_whether_writes_are_stable_follows_from_what_was_negotiated(
    faked: Bench, features: list[int], stable: bool
) -> None:
    faked.driver.start(features)
    assert _is_stable(faked) is stable


@pytest.mark.parametrize("features", [[], [F_FLUSH], [F_CONFIG_WCE], [F_FLUSH, F_CONFIG_WCE]])
def test_a_writethrough_device_has_every_write_stable_whatever_was_negotiated(
    disk: FakeDisk, features: list[int]
) -> None:
    with bench_of(disk, writeback=False) as bench:
        bench.driver.start(features)
        assert _is_stable(bench)


@pytest.mark.parametrize(
    ("features", "writeback"), [([F_CONFIG_WCE], 0), ([F_CONFIG_WCE, F_FLUSH], 1)]
)
def test_writeback_reads_as_negotiated_between_features_ok_and_driver_ok(
    faked: Bench, features: list[int], writeback: int
) -> None:
    faked.driver.negotiate(features)
    assert faked.config(WRITEBACK) == writeback


def test_a_writethrough_device_reads_0_in_writeback_from_the_first_on(disk: FakeDisk) -> None:
    with bench_of(disk, writeback=False) as bench:
        assert bench.config(WRITEBACK) == 0
        bench.driver.negotiate([F_CONFIG_WCE, F_FLUSH])
        assert bench.config(WRITEBACK) == 0


def test_the_driver_switches_the_cache_mode_by_writing_writeback(faked: Bench) -> None:
    faked.driver.start([F_CONFIG_WCE, F_FLUSH])
    seen = []
    for value in (0, 1, 0):
        faked.set_writeback(value)
        seen.append((faked.config(WRITEBACK), _is_stable(faked)))
    assert seen == [(0, True), (1, False), (0, True)]


def test_a_driver_without_flush_may_switch_to_writeback(faked: Bench) -> None:
    faked.driver.start([F_CONFIG_WCE])
    faked.set_writeback(1)
    assert (faked.config(WRITEBACK), _is_stable(faked)) == (1, False)


def test_any_value_but_0_in_writeback_reads_as_1(faked: Bench) -> None:
    faked.driver.start([F_CONFIG_WCE, F_FLUSH])
    faked.set_writeback(0)
    faked.set_writeback(0x80)
    assert faked.config(WRITEBACK) == 1


def test_writeback_cannot_be_written_unless_config_wce_was_negotiated(faked: Bench) -> None:
    faked.driver.start([F_FLUSH])
    faked.set_writeback(0)
    assert (faked.config(WRITEBACK), _is_stable(faked)) == (1, False)


def test_writeback_cannot_be_written_before_features_ok(faked: Bench) -> None:
    faked.set_writeback(0)
    assert faked.config(WRITEBACK) == 1


def test_a_reset_brings_the_first_cache_mode_back(faked: Bench) -> None:
    faked.driver.start([F_CONFIG_WCE, F_FLUSH])
    faked.set_writeback(0)
    faked.driver.reset()
    assert faked.config(WRITEBACK) == 1
    faked.set_writeback(0)
    assert faked.config(WRITEBACK) == 1


def test_a_driver_without_flush_does_not_bind_the_next_one(faked: Bench) -> None:
    faked.driver.start([])
    faked.driver.start([F_FLUSH])
    assert not _is_stable(faked)


def test_every_byte_of_the_configuration_but_writeback_is_read_only(faked: Bench) -> None:
    faked.driver.start()
    before = faked.device.config_space()
    for offset in range(len(before)):
        for size in (1, 2, 4):
            for data in (b"\0" * size, b"\xff" * size):
                if (offset, size) != WRITEBACK:
                    faked.transport.write(0x100 + offset, data)
                    assert faked.device.config_space() == before


@pytest.mark.parametrize(("kind", "name"), [(DISCARD, "discard"), (WRITE_ZEROES, "write_zeroes")])
@pytest.mark.parametrize(
    ("writeback", "flushes"), [(0, ["flush"]), (1, [])], ids=["writethrough", "writeback"]
)
def test_discards_and_zeroes_are_committed_at_once_in_writethrough_mode_alone(
    kind: int, name: str, writeback: int, flushes: list[str]
) -> None:
    disk = FakeDisk()
    with bench_of(disk) as bench:
        bench.driver.start([F_CONFIG_WCE, F_FLUSH, F_DISCARD, F_WRITE_ZEROES])
        bench.set_writeback(writeback)
        assert bench.request(kind, data=segment(0, 1) + segment(8, 1)).status == OK
    assert [call[0] for call in disk.calls] == [name, name, *flushes]


# A request is complete only when the disk is done with it (5.2.6.2)


@pytest.mark.parametrize(
    ("kind", "data", "calls"),
    [
        (FLUSH, b"", ["flush"]),
        (OUT, pattern(1), ["write"]),
        (WRITE_ZEROES, segment(0, 1), ["write_zeroes", "flush"]),
        (DISCARD, segment(0, 1), ["discard", "flush"]),
    ],
)
def test_the_disk_is_done_before_status_and_used_ring_say_so(
    faked: Bench, disk: FakeDisk, kind: int, data: bytes, calls: list[str]
) -> None:
    faked.driver.start([F_CONFIG_WCE, F_FLUSH, F_DISCARD, F_WRITE_ZEROES])
    faked.set_writeback(0)
    pieces = faked.add([header(kind) + data], [1])
    queue = faked.driver.queues[0]

    def see() -> tuple[int, int]:
        return faked.memory.read(pieces[-1].address, 1)[0], queue.used.idx

    disk.observe = see
    faked.driver.kick(0)
    assert [call[0] for call in disk.calls] == calls
    assert disk.observed == [(STALE, 0)] * len(calls)
    assert see() == (OK, 1)


def test_a_flush_covers_every_write_that_was_completed_before_it(
    faked: Bench, disk: FakeDisk
) -> None:
    faked.driver.start([F_FLUSH])
    for sector in range(3):
        faked.request(OUT, sector, pattern(1))
    faked.request(FLUSH)
    assert [call[0] for call in disk.calls] == ["write"] * 3 + ["flush"]

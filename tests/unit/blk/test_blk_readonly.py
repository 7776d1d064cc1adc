"""The block device (5.2): read-only disks, and what the host cannot do."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.blk.bench import (
    DISCARD,
    F_DISCARD,
    F_WRITE_ZEROES,
    FLUSH,
    IN,
    IOERR,
    OK,
    OUT,
    SECTOR,
    SECTORS,
    UNSUPP,
    WRITE_ZEROES,
    Bench,
    FakeDisk,
    Reply,
    bench_of,
    pattern,
    segment,
)
from virtiopy.devices.blk import BlkFeature, RequestType
from virtiopy.host.disk import DiskImage
from virtiopy.spec import has_feature

# Read-only disks (5.2.6.2)


@pytest.fixture
def readonly(image: Path) -> Iterator[Bench]:
    with DiskImage(image, readonly=True) as disk, bench_of(disk) as bench:
        bench.driver.start()
        yield bench


def test_a_read_only_disk_is_announced_and_neither_discard_nor_write_zeroes_is(
    readonly: Bench,
) -> None:
    offered = readonly.driver.offered_features()
    bits = (BlkFeature.VIRTIO_BLK_F_RO, F_DISCARD, F_WRITE_ZEROES)
    assert [has_feature(offered, bit) for bit in bits] == [True, False, False]


def test_a_disk_that_can_be_written_is_not_announced_as_read_only(bench: Bench) -> None:
    assert not has_feature(bench.driver.offered_features(), BlkFeature.VIRTIO_BLK_F_RO)


@pytest.mark.parametrize("accepted", [[], [BlkFeature.VIRTIO_BLK_F_RO]])
def test_a_write_to_a_read_only_disk_fails_whether_or_not_the_driver_knows(
    readonly: Bench, image: Path, accepted: list[int]
) -> None:
    readonly.driver.start(accepted)
    assert readonly.request(OUT, 0, pattern(1, seed=2)) == Reply(1, b"", IOERR)
    assert image.read_bytes() == pattern(SECTORS)


def test_a_write_does_not_get_as_far_as_a_read_only_disk() -> None:
    disk = FakeDisk(readonly=True)
    with bench_of(disk) as bench:
        bench.driver.start()
        assert bench.request(OUT, 0, pattern(1, seed=2)).status == IOERR
    assert disk.calls == []


def test_a_read_only_disk_can_be_read_and_flushed(readonly: Bench) -> None:
    assert readonly.request(IN, 1, room=SECTOR).data == pattern(2)[SECTOR:]
    assert readonly.request(FLUSH).status == OK


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_a_read_only_disk_supports_neither_discard_nor_write_zeroes(
    readonly: Bench, image: Path, kind: RequestType
) -> None:
    assert readonly.request(kind, data=segment(0, 8)).status == UNSUPP
    assert image.read_bytes() == pattern(SECTORS)


# What the host cannot do


FAILING = {
    "read": (IN, b"", 4 * SECTOR),
    "write": (OUT, pattern(2, seed=2), 0),
    "flush": (FLUSH, b"", 0),
    "discard": (DISCARD, segment(0, 8), 0),
    "write zeroes": (WRITE_ZEROES, segment(0, 8), 0),
}
failing_requests = pytest.mark.parametrize("request_", FAILING.values(), ids=FAILING)


@failing_requests
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_of_the_host_is_an_i_o_error_and_no_stale_byte_is_left(
    faked: Bench, disk: FakeDisk, request_: tuple[int, bytes, int], number: int
) -> None:
    kind, data, room = request_
    faked.driver.start()
    disk.error = OSError(number, "for the test")
    assert faked.request(kind, 0, data, room=room) == Reply(room + 1, bytes(room), IOERR)


@failing_requests
def test_after_an_error_of_the_host_the_device_works(
    faked: Bench, disk: FakeDisk, request_: tuple[int, bytes, int]
) -> None:
    kind, data, room = request_
    faked.driver.start()
    disk.error = OSError(errno.EIO, "for the test")
    faked.request(kind, 0, data, room=room)
    disk.error = None
    assert faked.request(kind, 0, data, room=room).status == OK


def test_an_image_that_became_short_is_an_i_o_error(bench: Bench, image: Path) -> None:
    with image.open("r+b") as stream:
        stream.truncate(SECTOR)
    assert bench.request(IN, 0, room=2 * SECTOR) == Reply(2 * SECTOR + 1, bytes(2 * SECTOR), IOERR)
    assert bench.request(IN, 0, room=SECTOR).status == OK

"""Holes and zeroes of disk images."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.disk.bench import SIZE, allocated, cache_modes, pattern, zeroed
from virtiopy._native import lib
from virtiopy.host.disk import CacheMode, DiskImage


@pytest.fixture
def holes(image: Path) -> Path:
    """An image on a file system that has holes."""
    with DiskImage(image) as disk:
        if not disk.can_punch_holes:
            pytest.skip("the file system punches no holes")
    return image


def test_a_discard_gives_the_blocks_back_to_the_host(holes: Path) -> None:
    before = allocated(holes)
    with DiskImage(holes) as disk:
        disk.discard(SIZE // 4, SIZE // 2)
    assert allocated(holes) == before - SIZE // 2
    assert holes.read_bytes() == zeroed(SIZE // 4, SIZE // 2)


def test_write_zeroes_with_unmap_gives_the_blocks_back_to_the_host(holes: Path) -> None:
    before = allocated(holes)
    with DiskImage(holes) as disk:
        disk.write_zeroes(SIZE // 4, SIZE // 2, unmap=True)
    assert allocated(holes) == before - SIZE // 2
    assert holes.read_bytes() == zeroed(SIZE // 4, SIZE // 2)


def test_write_zeroes_without_unmap_keeps_the_blocks(holes: Path) -> None:
    before = allocated(holes)
    with DiskImage(holes) as disk:
        disk.write_zeroes(SIZE // 4, SIZE // 2, unmap=False)
    assert allocated(holes) == before
    assert holes.read_bytes() == zeroed(SIZE // 4, SIZE // 2)


@pytest.mark.parametrize("unmap", [False, True])
def test_write_zeroes_reaches_single_sectors(image: Path, unmap: bool) -> None:
    with DiskImage(image) as disk:
        disk.write_zeroes(512, 1024, unmap=unmap)
    assert image.read_bytes() == zeroed(512, 1024)


def test_neither_discard_nor_write_zeroes_changes_the_size(holes: Path) -> None:
    with DiskImage(holes) as disk:
        disk.discard(SIZE - 4096, 4096)
        disk.write_zeroes(SIZE - 8192, 8192, unmap=True)
    assert holes.stat().st_size == SIZE


def test_looking_for_holes_changes_neither_content_nor_size(image: Path) -> None:
    os.truncate(image, SIZE - 512)
    DiskImage(image).close()
    assert image.read_bytes() == pattern()[:-512]


def test_an_image_for_reading_punches_no_holes(image: Path) -> None:
    with DiskImage(image, readonly=True) as disk:
        assert not disk.can_punch_holes


def _not_supported(fd: int, mode: int, offset: int, length: int) -> int:
    return -errno.EOPNOTSUPP


def test_without_holes_a_discard_does_nothing(image: Path, patch_lib: Callable[..., None]) -> None:
    patch_lib(vp_fallocate=_not_supported)
    with DiskImage(image) as disk:
        assert not disk.can_punch_holes
        disk.discard(0, SIZE)
    assert image.read_bytes() == pattern()


@cache_modes
@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize(("start", "length"), [(0, SIZE), (512, 1024), (4096, SIZE - 8192)])
def test_where_the_file_system_writes_no_zeroes_they_are_written_by_hand(
    image: Path,
    patch_lib: Callable[..., None],
    cache: CacheMode,
    unmap: bool,
    *,
    start: int,
    length: int,
) -> None:
    patch_lib(vp_fallocate=_not_supported)
    with DiskImage(image, cache=cache) as disk:
        disk.write_zeroes(start, length, unmap=unmap)
    assert image.read_bytes() == zeroed(start, length)


def test_zeroes_by_hand_may_be_more_than_one_write_takes(
    tmp_path: Path, patch_lib: Callable[..., None]
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(3 * SIZE))
    patch_lib(vp_fallocate=_not_supported)
    with DiskImage(path) as disk:
        disk.write_zeroes(512, 2 * SIZE + 512, unmap=False)
    expected = bytearray(pattern(3 * SIZE))
    expected[512 : 2 * SIZE + 1024] = bytes(2 * SIZE + 512)
    assert path.read_bytes() == expected


def test_zeroes_are_written_even_where_punching_holes_has_ceased_to_work(
    holes: Path, patch_lib: Callable[..., None]
) -> None:
    with DiskImage(holes) as disk:
        patch_lib(vp_fallocate=_not_supported)
        disk.write_zeroes(0, SIZE, unmap=True)
    assert holes.read_bytes() == bytes(SIZE)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_other_errors_of_the_file_system_are_raised(
    holes: Path, patch_lib: Callable[..., None], number: int
) -> None:
    with DiskImage(holes) as disk:
        patch_lib(vp_fallocate=lambda fd, mode, offset, length: -number)
        with pytest.raises(OSError, match=os.strerror(number)):
            disk.discard(0, 4096)
        for unmap in (False, True):
            with pytest.raises(OSError, match=os.strerror(number)):
                disk.write_zeroes(0, 4096, unmap=unmap)


@pytest.mark.parametrize("fallocate", [lib.vp_fallocate, _not_supported], ids=["fast", "by hand"])
def test_discarding_or_zeroing_nothing_does_nothing(
    image: Path, patch_lib: Callable[..., None], fallocate: Callable[..., int]
) -> None:
    patch_lib(vp_fallocate=fallocate)
    with DiskImage(image) as disk:
        disk.discard(512, 0)
        disk.write_zeroes(512, 0, unmap=False)
        disk.write_zeroes(512, 0, unmap=True)
    assert image.read_bytes() == pattern()

"""Disk images are read and written, past the page cache too, and when they are truncated."""

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.disk.bench import SIZE, buffer, cache_modes, direct, pattern, zeroed
from virtiopy.host.disk import CacheMode, DiskImage

# Reading and writing


def test_an_image_says_how_large_it_is_and_what_it_prefers(image: Path) -> None:
    with DiskImage(image) as disk:
        assert (disk.size, disk.alignment, disk.physical_block_size) == (SIZE, 1, 4096)


@cache_modes
def test_a_read_fills_buffers_of_any_shape(image: Path, cache: CacheMode) -> None:
    buffers = [buffer(512), buffer(0), buffer(700, misaligned=True), buffer(836)]
    with DiskImage(image, cache=cache) as disk:
        disk.read(1024, buffers)
    assert b"".join(buffers) == pattern()[1024 : 1024 + 2048]


@cache_modes
def test_a_write_takes_buffers_of_any_shape(image: Path, cache: CacheMode) -> None:
    buffers = [buffer(512), buffer(0), buffer(700, misaligned=True), buffer(836)]
    for index, piece in enumerate(buffers):
        piece[:] = bytes([0xF0 + index]) * len(piece)
    with DiskImage(image, cache=cache) as disk:
        disk.write(1024, buffers)
    expected = bytearray(pattern())
    expected[1024 : 1024 + 2048] = b"".join(buffers)
    assert image.read_bytes() == expected


@cache_modes
@pytest.mark.parametrize("offset", [0, 512, SIZE])
def test_no_buffers_at_all_are_read_and_written_at_once(
    image: Path, cache: CacheMode, offset: int
) -> None:
    with DiskImage(image, cache=cache) as disk:
        disk.read(offset, [])
        disk.write(offset, [])
    assert image.read_bytes() == pattern()


@pytest.mark.parametrize("count", [1023, 1024, 1025, 3072])
def test_any_number_of_pieces_is_read_and_written(image: Path, count: int) -> None:
    pieces = [memoryview(bytearray(1)) for _ in range(count)]
    with DiskImage(image) as disk:
        disk.read(512, pieces)
        assert b"".join(pieces) == pattern()[512 : 512 + count]
        disk.write(SIZE // 2, pieces)
    assert image.read_bytes()[SIZE // 2 :][:count] == pattern()[512 : 512 + count]


def test_a_transfer_that_the_kernel_cuts_short_goes_on(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, pwritev = os.preadv, os.pwritev

    def read_little(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return preadv(fd, [buffers[0][:100]], offset)

    def write_little(fd: int, buffers: Sequence[memoryview], offset: int, flags: int) -> int:
        return pwritev(fd, [buffers[0][:100]], offset, flags)

    monkeypatch.setattr(os, "preadv", read_little)
    monkeypatch.setattr(os, "pwritev", write_little)
    data = buffer(1024)
    with DiskImage(image) as disk:
        disk.read(1024, [data[:300], data[300:]])
        assert data == pattern()[1024:2048]
        disk.write(4096, [data[:300], data[300:]])
    assert image.read_bytes()[4096 : 4096 + 1024] == pattern()[1024:2048]


# Direct I/O takes what is aligned; all else goes by way of a buffer that is


@pytest.fixture(scope="module")
def direct_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("direct") / "disk.img"


@st.composite
def scattered(draw: st.DrawFn) -> tuple[memoryview, list[memoryview]]:
    """Memory full of 0xff, and pieces that it consists of but for its ends, whole sectors long."""
    sizes = st.one_of(st.integers(0, 3000), st.sampled_from([512, 1024, 4096, 8192]))
    lengths = draw(st.lists(sizes, max_size=4))
    lengths.append(-sum(lengths) % 512)
    start = draw(st.sampled_from([0, 1, 512]))
    memory = memoryview(mmap.mmap(-1, start + sum(lengths) + 1))
    memory[:] = b"\xff" * len(memory)
    pieces = []
    for length in lengths:
        pieces.append(memory[start : start + length])
        start += length
    return memory, pieces


alignments = st.sampled_from([512, 4096])
direct_sectors = st.integers(0, 32)


@given(alignment=alignments, sector=direct_sectors, scattered=scattered())
def test_direct_reads_of_any_alignment_fill_just_the_pieces(
    direct_image: Path,
    alignment: int,
    sector: int,
    scattered: tuple[memoryview, list[memoryview]],
) -> None:
    memory, pieces = scattered
    length = sum(map(len, pieces))
    start = len(memory) - 1 - length
    direct_image.write_bytes(pattern(128 * 512))
    with direct(direct_image, alignment) as disk:
        disk.read(sector * 512, pieces)
    expected = b"\xff" * start + pattern(128 * 512)[sector * 512 :][:length] + b"\xff"
    assert memory.tobytes() == expected


@given(alignment=alignments, sector=direct_sectors, scattered=scattered())
def test_direct_writes_of_any_alignment_leave_their_neighbours_alone(
    direct_image: Path,
    alignment: int,
    sector: int,
    scattered: tuple[memoryview, list[memoryview]],
) -> None:
    _, pieces = scattered
    length = sum(map(len, pieces))
    direct_image.write_bytes(pattern(128 * 512))
    with direct(direct_image, alignment) as disk:
        disk.write(sector * 512, pieces)
    expected = bytearray(pattern(128 * 512))
    expected[sector * 512 : sector * 512 + length] = b"\xff" * length
    assert direct_image.read_bytes() == expected


@pytest.mark.parametrize(
    ("offset", "length", "misaligned"),
    [(512, 4096, False), (0, 512, False), (0, 4096, True)],
    ids=["offset", "length", "address"],
)
def test_what_is_misaligned_in_one_way_alone_is_read_and_written(
    image: Path, offset: int, length: int, misaligned: bool
) -> None:
    data = buffer(length, misaligned=misaligned)
    with direct(image, 4096) as disk:
        disk.read(offset, [data])
        assert data == pattern()[offset : offset + length]
        data[:] = bytes(length)
        disk.write(offset, [data])
    assert image.read_bytes() == zeroed(offset, length)


def test_aligned_direct_i_o_is_not_copied(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    preadv = os.preadv

    def read(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        seen.extend(id(piece.obj) for piece in buffers)
        return preadv(fd, buffers, offset)

    data = buffer(4096)
    with DiskImage(image, cache=CacheMode.NONE) as disk:
        monkeypatch.setattr(os, "preadv", read)
        disk.read(0, [data])
    assert seen == [id(data.obj)]


# An image that is truncated behind its user's back


@cache_modes
@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("left", [0, 4096])
def test_a_read_past_the_end_of_an_image_that_became_short_fails(
    image: Path, cache: CacheMode, misaligned: bool, left: int
) -> None:
    with DiskImage(image, cache=cache) as disk:
        os.truncate(image, left)
        with pytest.raises(OSError, match="the image ends before the disk does"):
            disk.read(0, [buffer(8192, misaligned=misaligned)])


def test_a_misaligned_write_into_what_is_left_of_an_image_fails(image: Path) -> None:
    with direct(image, 4096) as disk:
        os.truncate(image, 4096)
        with pytest.raises(OSError, match="the image ends before the disk does"):
            disk.write(3584, [buffer(1024)])

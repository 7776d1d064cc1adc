"""Disk images: what is refused and how, who may share one, and where the bytes go."""

import contextlib
import errno
import json
import mmap
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.openfiles import open_files
from virtiopy._native import ffi, lib
from virtiopy.errors import ConfigError
from virtiopy.host import disk as disk_module
from virtiopy.host.disk import CacheMode, DiskImage

SIZE = 1 << 20
NOBODY = 65534

cache_modes = pytest.mark.parametrize("cache", list(CacheMode))


def pattern(size: int = SIZE) -> bytes:
    """Bytes that differ from one sector to the next and are never zero."""
    return b"".join(bytes([sector % 251 + 1]) * 512 for sector in range(size // 512))


def zeroed(start: int, length: int) -> bytes:
    content = bytearray(pattern())
    content[start : start + length] = bytes(length)
    return bytes(content)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern())
    return path


class PatchedLib:
    """The native library, with some of its functions answering what a test says."""

    def __init__(self, **results: Callable[..., int]) -> None:
        self._results = results

    def __getattr__(self, name: str) -> object:
        return self._results.get(name) or getattr(lib, name)


@pytest.fixture
def patch_lib(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def patch(**results: Callable[..., int]) -> None:
        monkeypatch.setattr(disk_module, "lib", PatchedLib(**results))

    return patch


class StrictKernel:
    """Refuses transfers that are not aligned, as a disk with blocks of `alignment` bytes does."""

    def __init__(self, alignment: int) -> None:
        self._alignment = alignment
        self._preadv, self._pwritev = os.preadv, os.pwritev

    def _check(self, buffers: Sequence[memoryview], offset: int) -> None:
        for piece in buffers:
            address = int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", piece)))
            if (address | len(piece) | offset) % self._alignment:
                raise OSError(errno.EINVAL, "Invalid argument")

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self._check(buffers, offset)
        return self._preadv(fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int, flags: int) -> int:
        self._check(buffers, offset)
        return self._pwritev(fd, buffers, offset, flags)


# What cannot be used is refused in one sentence that says why and how to mend it


def _missing(path: Path) -> Path:
    return path


def _below_a_file(path: Path) -> Path:
    path.write_bytes(pattern())
    return path / "disk.img"


def _empty(path: Path) -> Path:
    path.touch()
    return path


def _odd(path: Path) -> Path:
    path.write_bytes(bytes(513))
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    return path


def _character_device(path: Path) -> Path:
    return Path("/dev/zero")


def _link_to_itself(path: Path) -> Path:
    path.symlink_to(path)
    return path


REFUSED = [
    (_missing, r"does not exist: make it with `truncate -s 64M .*disk.img`\.$"),
    (_below_a_file, r"cannot be opened \(Not a directory\): "),
    (_empty, r"is empty: .* `truncate -s 64M .*disk.img`\.$"),
    (_odd, r"has 513 bytes, .* no multiple of 512: .*`truncate -s %512 .*disk.img`\.$"),
    (_folder, r"is a folder: name a raw disk image"),
    (_fifo, r"is neither a file nor a block device: name a raw disk image"),
    (_socket, r"cannot be opened \(No such device or address\): "),
    (_character_device, r"is neither a file nor a block device: name a raw disk image"),
    (_link_to_itself, r"cannot be opened \(Too many levels of symbolic links\): "),
]
refused = pytest.mark.parametrize(("make", "message"), REFUSED)
readonly_or_not = pytest.mark.parametrize("readonly", [False, True], ids=["writing", "reading"])


@refused
@readonly_or_not
def test_what_is_no_disk_image_is_refused_with_a_remedy(
    tmp_path: Path, make: Callable[[Path], Path], message: str, readonly: bool
) -> None:
    path = make(tmp_path / "disk.img")
    with pytest.raises(ConfigError, match=rf"^The image {path} {message}"):
        DiskImage(path, readonly=readonly)


@refused
@cache_modes
def test_a_refused_image_is_not_left_open(
    tmp_path: Path, make: Callable[[Path], Path], message: str, cache: CacheMode
) -> None:
    path = make(tmp_path / "disk.img")
    before = open_files()
    with pytest.raises(ConfigError):
        DiskImage(path, cache=cache)
    assert open_files() == before


def test_the_remedy_for_an_odd_size_works(tmp_path: Path) -> None:
    path = _odd(tmp_path / "disk.img")
    subprocess.run(["truncate", "-s", "%512", path], check=True)
    with DiskImage(path) as disk:
        assert disk.size == 1024


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Give up root's rights for a while: the kernel drops the capabilities with the user ID."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def public(image: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The image by a path that goes through no folder of pytest's, which are root's alone."""
    image.parent.chmod(0o755)
    monkeypatch.chdir(image.parent)
    return Path(image.name)


def test_an_image_that_may_not_be_read_is_refused(public: Path) -> None:
    public.chmod(0)
    message = r"^The image disk.img may not be read \(Permission denied\): change its mode\.$"
    with unprivileged(), pytest.raises(ConfigError, match=message):
        DiskImage(public, readonly=True)


def test_an_image_that_may_not_be_written_is_refused_with_a_hint_at_readonly(public: Path) -> None:
    public.chmod(0o444)
    message = r"may not be opened for writing \(Permission denied\): .*readonly=on, or change"
    with unprivileged(), pytest.raises(ConfigError, match=message):
        DiskImage(public)


def test_an_image_that_may_not_be_written_can_be_attached_for_reading(public: Path) -> None:
    public.chmod(0o444)
    with unprivileged(), DiskImage(public, readonly=True) as disk:
        assert disk.size == SIZE


def test_a_refusal_names_the_error_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        DiskImage(tmp_path / "missing.img")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_file_system_without_direct_i_o_is_refused_with_a_hint_at_the_other_modes(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, flags: int) -> int:
        assert flags & os.O_DIRECT
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match="has no direct I/O: use cache=writeback or cache=writet"):
        DiskImage(image, cache=CacheMode.NONE)


def test_direct_i_o_takes_the_smallest_block_that_can_be_read(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", StrictKernel(4096).preadv)
    with DiskImage(image, cache=CacheMode.NONE) as disk:
        assert disk.alignment == 4096


def test_an_image_that_no_direct_read_fits_is_refused_and_closed(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(image, SIZE - 512)
    monkeypatch.setattr(os, "preadv", StrictKernel(4096).preadv)
    before = open_files()
    with pytest.raises(ConfigError, match="cannot be read without the page cache: make its size"):
        DiskImage(image, cache=CacheMode.NONE)
    assert open_files() == before


def test_a_file_system_without_locks_is_refused_and_the_image_closed(
    image: Path, patch_lib: Callable[..., None]
) -> None:
    patch_lib(vp_ofd_lock=lambda fd, offset: -errno.ENOLCK)
    before = open_files()
    with pytest.raises(ConfigError, match=r"cannot be locked \(No locks available\): put it on"):
        DiskImage(image)
    assert open_files() == before


def test_the_image_is_closed_when_looking_for_holes_fails(
    image: Path, patch_lib: Callable[..., None]
) -> None:
    patch_lib(vp_fallocate=lambda fd, mode, offset, length: -errno.EIO)
    before = open_files()
    with pytest.raises(ConfigError, match="Input/output error"):
        DiskImage(image)
    assert open_files() == before


def test_the_image_is_closed_when_looking_for_the_alignment_fails(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    before = open_files()
    with pytest.raises(ConfigError, match="Input/output error"):
        DiskImage(image, cache=CacheMode.NONE)
    assert open_files() == before


@cache_modes
@readonly_or_not
def test_closing_an_image_leaves_nothing_open(
    image: Path, cache: CacheMode, readonly: bool
) -> None:
    before = open_files()
    DiskImage(image, readonly=readonly, cache=cache).close()
    assert open_files() == before


# Who may use an image at a time


@pytest.mark.parametrize(("first", "second"), [(False, False), (False, True), (True, False)])
def test_an_image_that_is_written_is_not_shared(image: Path, first: bool, second: bool) -> None:
    with (
        DiskImage(image, readonly=first),
        pytest.raises(ConfigError, match=r"in use by another program: stop what"),
    ):
        DiskImage(image, readonly=second)


def test_readers_share_an_image(image: Path) -> None:
    with DiskImage(image, readonly=True) as one, DiskImage(image, readonly=True) as other:
        assert one.size == other.size


def test_an_image_in_use_by_other_names_is_recognized(image: Path) -> None:
    link = image.with_name("link.img")
    link.hardlink_to(image)
    with DiskImage(image), pytest.raises(ConfigError, match="in use"):
        DiskImage(link)


def test_a_refused_user_leaves_no_lock_and_no_file_behind(image: Path) -> None:
    with DiskImage(image, readonly=True):
        before = open_files()
        with pytest.raises(ConfigError):
            DiskImage(image)
        assert open_files() == before
        DiskImage(image, readonly=True).close()


@readonly_or_not
def test_closing_an_image_gives_up_its_locks(image: Path, readonly: bool) -> None:
    DiskImage(image, readonly=readonly).close()
    DiskImage(image).close()


@pytest.mark.parametrize(
    ("readonly", "locked"), [(True, [100, 201, 203]), (False, [100, 101, 103, 201, 203])]
)
def test_the_locks_are_those_of_qemu(image: Path, readonly: bool, locked: list[int]) -> None:
    # block/file-posix.c: byte 100 + n says "does", 200 + n "lets nobody", n being a permission:
    # consistent read, write, write unchanged, resize.
    with DiskImage(image, readonly=readonly), image.open("rb") as other:
        seen = [byte for byte in range(90, 210) if lib.vp_ofd_is_locked(other.fileno(), byte)]
    assert seen == locked


QEMU = "qemu-system-x86_64"
needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")


def _start_qemu(image: Path, *, readonly: bool) -> subprocess.Popen[str]:
    """Start a QEMU, without a guest, whose block device has `image`."""
    state = "on" if readonly else "off"
    return subprocess.Popen(
        [
            *(QEMU, "-M", "microvm,accel=tcg", "-m", "16M", "-S", "-nodefaults", "-no-user-config"),
            *("-display", "none", "-qmp", "stdio", "-device", "virtio-blk-device,drive=d"),
            *("-drive", f"if=none,id=d,format=raw,readonly={state},file={image}"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def qemu_using(image: Path, *, readonly: bool) -> Iterator[None]:
    with _start_qemu(image, readonly=readonly) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        try:
            # QEMU answers commands once its devices are there.
            qemu.stdin.write('{"execute": "qmp_capabilities"}')
            qemu.stdin.flush()
            assert "QMP" in json.loads(qemu.stdout.readline())
            assert json.loads(qemu.stdout.readline()) == {"return": {}}
            yield
        finally:
            qemu.kill()


@needs_qemu
@pytest.mark.parametrize(("qemus", "ours"), [(False, False), (False, True), (True, False)])
def test_an_image_in_use_by_qemu_is_refused(image: Path, qemus: bool, ours: bool) -> None:
    with qemu_using(image, readonly=qemus), pytest.raises(ConfigError, match="in use"):
        DiskImage(image, readonly=ours)


@needs_qemu
@pytest.mark.parametrize(("ours", "qemus"), [(False, False), (False, True), (True, False)])
def test_an_image_in_use_by_virtiopy_is_refused_by_qemu(
    image: Path, ours: bool, qemus: bool
) -> None:
    with DiskImage(image, readonly=ours), _start_qemu(image, readonly=qemus) as qemu:
        _, complaint = qemu.communicate('{"execute": "qmp_capabilities"}{"execute": "quit"}')
    assert qemu.returncode != 0
    assert "Is another process using the image" in complaint


@needs_qemu
def test_qemu_and_virtiopy_read_an_image_together(image: Path) -> None:
    with qemu_using(image, readonly=True):
        DiskImage(image, readonly=True).close()
    with DiskImage(image, readonly=True), qemu_using(image, readonly=True):
        pass


@needs_qemu
def test_an_image_that_qemu_gave_up_can_be_used(image: Path) -> None:
    with qemu_using(image, readonly=False):
        pass
    DiskImage(image).close()


# Reading and writing


def test_an_image_says_how_large_it_is_and_what_it_prefers(image: Path) -> None:
    with DiskImage(image) as disk:
        assert (disk.size, disk.alignment, disk.physical_block_size) == (SIZE, 1, 4096)


def buffer(size: int, *, misaligned: bool = False) -> memoryview:
    """Make a buffer at the start of a page, or one byte after it."""
    start = int(misaligned)
    return memoryview(mmap.mmap(-1, size + 1))[start : start + size]


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


@contextlib.contextmanager
def direct(path: Path, alignment: int) -> Iterator[DiskImage]:
    """Open an image for direct I/O on a disk with blocks of `alignment` bytes."""
    kernel = StrictKernel(alignment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", kernel.preadv)
        patch.setattr(os, "pwritev", kernel.pwritev)
        with DiskImage(path, cache=CacheMode.NONE) as disk:
            assert disk.alignment % alignment == 0
            yield disk


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


# Persistence


@pytest.mark.parametrize(("stable", "flags"), [(True, os.RWF_DSYNC), (False, 0)])
@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("cache", [CacheMode.WRITEBACK, CacheMode.NONE])
def test_a_stable_write_asks_the_kernel_for_a_stable_write(
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    stable: bool,
    flags: int,
    *,
    misaligned: bool,
    cache: CacheMode,
) -> None:
    seen: list[int] = []
    pwritev = os.pwritev

    def write(fd: int, buffers: Sequence[memoryview], offset: int, flags: int) -> int:
        seen.append(flags)
        return pwritev(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "pwritev", write)
    with DiskImage(image, cache=cache) as disk:
        disk.write(0, [buffer(512, misaligned=misaligned)], stable=stable)
    assert seen == [flags]


def test_a_flush_syncs_the_data_of_the_image(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
    )
    with DiskImage(image) as disk:
        disk.flush()
    assert synced == [str(image)]


# Holes and zeroes


def allocated(path: Path) -> int:
    """Bytes that the file takes on its file system."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        return os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


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


# Block devices


@pytest.fixture
def block_device(image: Path) -> Iterator[Path]:
    """A block device, of which `image` is the backing file."""
    if shutil.which("losetup") is None:
        pytest.skip("losetup is not installed")
    result = subprocess.run(
        ["losetup", "--find", "--show", image], capture_output=True, text=True, check=False
    )
    if result.returncode:
        pytest.skip(f"no loop device: {result.stderr.strip()}")
    device = result.stdout.strip()
    yield Path(device)
    subprocess.run(["losetup", "--detach", device], check=True)


def content_of(device: Path) -> bytes:
    subprocess.run(["blockdev", "--flushbufs", device], check=True)
    return device.read_bytes()


def test_a_block_device_says_how_large_it_is_and_what_it_prefers(block_device: Path) -> None:
    with DiskImage(block_device, cache=CacheMode.NONE) as disk:
        assert (disk.size, disk.alignment) == (SIZE, 512)
        assert disk.physical_block_size % 512 == 0


@cache_modes
def test_a_block_device_is_read_and_written(block_device: Path, cache: CacheMode) -> None:
    data = buffer(512, misaligned=True)
    with DiskImage(block_device, cache=cache) as disk:
        disk.read(1024, [data])
        assert data == pattern()[1024:1536]
        disk.write(512, [data])
    assert content_of(block_device) == pattern()[:512] + pattern()[1024:1536] + pattern()[1024:]


def test_a_block_device_that_is_written_is_not_shared(block_device: Path) -> None:
    with DiskImage(block_device), pytest.raises(ConfigError, match="in use"):
        DiskImage(block_device, readonly=True)


def test_a_discard_reaches_the_block_device(block_device: Path, image: Path) -> None:
    before = allocated(image)
    with DiskImage(block_device) as disk:
        disk.discard(SIZE // 4, SIZE // 2)
    assert content_of(block_device) == zeroed(SIZE // 4, SIZE // 2)
    assert allocated(image) == before - SIZE // 2


@pytest.mark.parametrize("unmap", [False, True])
def test_a_block_device_writes_zeroes(block_device: Path, unmap: bool) -> None:
    with DiskImage(block_device) as disk:
        disk.write_zeroes(512, 1024, unmap=unmap)
    assert content_of(block_device) == zeroed(512, 1024)


def test_discarding_or_zeroing_nothing_of_a_block_device_does_nothing(block_device: Path) -> None:
    with DiskImage(block_device) as disk:
        disk.discard(512, 0)
        disk.write_zeroes(512, 0, unmap=False)
        disk.write_zeroes(512, 0, unmap=True)
    assert content_of(block_device) == pattern()


def test_a_block_device_that_takes_no_discard_is_left_alone(
    block_device: Path, patch_lib: Callable[..., None]
) -> None:
    with DiskImage(block_device) as disk:
        patch_lib(vp_ioctl=lambda fd, request, argument: -errno.EOPNOTSUPP)
        disk.discard(0, SIZE)
    assert content_of(block_device) == pattern()


@cache_modes
def test_a_block_device_that_takes_no_write_zeroes_is_zeroed_by_hand(
    block_device: Path, patch_lib: Callable[..., None], cache: CacheMode
) -> None:
    with DiskImage(block_device, cache=cache) as disk:
        patch_lib(vp_ioctl=lambda fd, request, argument: -errno.EOPNOTSUPP)
        disk.write_zeroes(512, SIZE - 1024, unmap=True)
    assert content_of(block_device) == zeroed(512, SIZE - 1024)


def test_an_error_of_the_block_device_is_raised(
    block_device: Path, patch_lib: Callable[..., None]
) -> None:
    with DiskImage(block_device) as disk:
        patch_lib(vp_ioctl=lambda fd, request, argument: -errno.EIO)
        with pytest.raises(OSError, match="Input/output error"):
            disk.discard(0, SIZE)

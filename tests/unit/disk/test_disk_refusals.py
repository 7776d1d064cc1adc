"""A disk image that cannot be used is refused in one sentence, with the remedy."""

import contextlib
import errno
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.openfiles import open_files
from tests.unit.disk.bench import SIZE, StrictKernel, cache_modes, pattern, readonly_or_not
from virtiopy.errors import ConfigError
from virtiopy.host.disk import CacheMode, DiskImage

NOBODY = 65534


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

"""Block devices as disk images."""

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.disk.bench import SIZE, allocated, buffer, cache_modes, pattern, zeroed
from virtiopy.errors import ConfigError
from virtiopy.host.disk import CacheMode, DiskImage


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

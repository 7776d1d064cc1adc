"""Kernels that were made otherwise boot the same way: each reads a disk of ours."""

from pathlib import Path

import pytest

from tests.guest.accelerators import needs_unicorn
from tests.unit.test_kernel import PACKERS, bzimage
from tests.vm_linux.machine import Linux
from virtiopy.boot.bzimage import BzImage
from virtiopy.boot.unpack import packed_with, unpack
from virtiopy.cache import cache_folder
from virtiopy.devices.blk import Blk
from virtiopy.host.disk import DiskImage
from virtiopy.linux.kernels import LinuxKernel, NoKernelError, debian_kernel, find_kernel

pytestmark = needs_unicorn

CONTENT = b"what the disk holds".ljust(4096, b".")


def boots(tmp_path: Path, kernel: LinuxKernel, image: Path | None = None) -> None:
    """Boot it, and read a disk by its driver."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(CONTENT)
    device = Blk(DiskImage(disk, readonly=True))
    with Linux({"blk0": device}, modules=("virtio_blk",), kernel=kernel, image=image) as linux:
        assert linux.sh("uname -r") == kernel.version
        assert linux.sh("head -c 19 /dev/vda") == CONTENT[:19].decode()


@pytest.mark.parametrize("packer", ["lz4"])
def test_a_kernel_packed_otherwise_boots(tmp_path: Path, packer: str) -> None:
    try:
        kernel = find_kernel(cache_folder())
    except NoKernelError as error:
        pytest.skip(str(error))
    original = BzImage.parse(kernel.image, kernel.image.read_bytes())
    assert original is not None
    assert packed_with(original.payload) != packer
    vmlinux = unpack(original.payload, "The kernel")
    image = tmp_path / "vmlinuz"
    image.write_bytes(bzimage(PACKERS[packer](vmlinux)))
    boots(tmp_path, kernel, image)


def test_a_cloud_images_kernel_boots(tmp_path: Path) -> None:
    try:
        kernel = debian_kernel(cache_folder(), package="linux-image-cloud-amd64")
    except NoKernelError as error:
        pytest.skip(str(error))
    assert "cloud" in kernel.version
    boots(tmp_path, kernel)

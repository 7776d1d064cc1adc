"""Kernels unpacked: an xz takes seconds to unpack, so what comes out is kept."""

import contextlib
import hashlib
import os
from pathlib import Path

from virtiopy.boot.bzimage import BzImage
from virtiopy.boot.content import read_content
from virtiopy.boot.unpack import packed_with, unpack
from virtiopy.errors import ConfigError

_KEPT = 4


def unpacked(image: Path, cache: Path) -> Path:
    """Return a file with the vmlinux of a bzImage; the image itself where it is none, or cannot be.

    Raises ConfigError where it cannot be read.
    """
    try:
        status = image.stat()
        key = f"{image.resolve()} {status.st_size} {status.st_mtime_ns}"
        folder = cache / "vmlinux"
        kept = folder / f"{image.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        if kept.exists():
            # A cache that cannot be written can be read.
            with contextlib.suppress(OSError):
                os.utime(kept)
            return kept
        bzimage = BzImage.parse(image, read_content(image))
    except OSError as error:
        raise ConfigError(
            f"The kernel {image} cannot be read ({error.strerror}): name a bzImage or a vmlinux."
        ) from error
    if bzimage is None or packed_with(bzimage.payload) is None:
        return image
    try:
        content = unpack(bzimage.payload, f"The kernel {image}")
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{kept.name}.{os.getpid()}"
        new.write_bytes(content)
        new.rename(kept)
        others = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in others[:-_KEPT]:
            path.unlink(missing_ok=True)
    except (ConfigError, OSError):
        # It is tried again, and told about, where the kernel is opened.
        return image
    return kept

"""Guest images: ELF files, and the PVH note that says where to start them."""

import io
import mmap
import os
from typing import IO, NamedTuple, cast

from virtiopy.boot.layout import Layout, keep_layout, kept_layout
from virtiopy.errors import ConfigError
from virtiopy.memory import AddressError, GuestMemory

#: A file's name: a Path, or text.
StrPath = str | os.PathLike[str]


class LoadSegment(NamedTuple):
    """What a PT_LOAD segment puts into memory: `data`, and zeroes up to `memory_size` bytes."""

    address: int
    data: bytes | memoryview
    memory_size: int


class GuestImage(NamedTuple):
    """An ELF file for x86: its segments by physical address, and where it starts.

    `pvh_entry` is the guest physical address of its 32-bit PVH entry point, None without the
    XEN_ELFNOTE_PHYS32_ENTRY note.
    """

    path: StrPath
    entry: int
    pvh_entry: int | None
    segments: tuple[LoadSegment, ...]
    #: Whether its code is for 64-bit mode.
    is_64_bit: bool = True
    #: Whether each segment's virtual address is its physical one.
    is_identical: bool = True

    @property
    def end(self) -> int:
        """The first guest physical address after the image."""
        return max((s.address + s.memory_size for s in self.segments), default=0)

    @classmethod
    def open(cls, path: StrPath) -> "GuestImage":
        """Read an image; raises ConfigError for a file that is none."""
        try:
            # Mapped, because reading a file sets aside whatever size a damaged header names.
            with (
                open(path, "rb") as stream,
                mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                stat = os.fstat(stream.fileno())
                layout = kept_layout(stat)
                if layout is None:
                    layout = _read_layout(path, cast("IO[bytes]", content), len(content))
                    keep_layout(stat, layout)
                return cls._laid_out(path, layout, content)
        except OSError as error:
            raise ConfigError(
                f"The guest image {path} cannot be read ({error.strerror}): "
                "name an ELF file, or a guest of virtiopy's own."
            ) from error
        except ValueError as error:
            # mmap's word for a file of no bytes.
            raise ConfigError(
                f"The guest image {path} is no ELF file that can be understood ({error}): "
                "name an x86 ELF executable."
            ) from error

    @classmethod
    def parse(cls, path: StrPath, content: bytes) -> "GuestImage":
        """Read an image that is the content of `path`; raises ConfigError for what is none."""
        layout = _read_layout(path, io.BytesIO(content), len(content))
        return cls._laid_out(path, layout, memoryview(content))

    @classmethod
    def _laid_out(
        cls, path: StrPath, layout: Layout, content: mmap.mmap | memoryview
    ) -> "GuestImage":
        return cls(
            path,
            layout.entry,
            layout.pvh_entry,
            tuple(
                LoadSegment(address, content[offset : offset + count], size)
                for address, offset, count, size in layout.pieces
            ),
            is_64_bit=layout.is_64_bit,
            is_identical=layout.is_identical,
        )

    @property
    def start(self) -> int:
        """The first guest physical address of the image."""
        return min((s.address for s in self.segments), default=0)

    def load(self, memory: GuestMemory) -> None:
        """Copy the segments into `memory`; raises ConfigError when they do not fit."""
        for segment in self.segments:
            try:
                memory.write(segment.address, segment.data)
                zeroes = memory.views(
                    segment.address + len(segment.data), segment.memory_size - len(segment.data)
                )
            except AddressError as error:
                raise ConfigError(
                    f"The guest image {self.path} does not fit in memory: it needs "
                    f"{segment.memory_size} bytes at {segment.address:#x}; give it more with "
                    f"--memory (its end is at {self.end / (1 << 20):.1f} MiB)."
                ) from error
            for view in zeroes:
                view[:] = bytes(len(view))


def _read_layout(path: StrPath, content: IO[bytes], size: int) -> Layout:
    from virtiopy.boot.elffile import read_layout  # noqa: PLC0415 - slow to import, seldom needed

    return read_layout(path, content, size)

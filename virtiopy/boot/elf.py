"""Guest images: ELF files, and the PVH note that says where to start them."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from virtiopy._native import CData, ffi, lib
from virtiopy.errors import ConfigError
from virtiopy.memory import AddressError, GuestMemory

# System V ABI, Object Files: what a start takes of it is little, and pyelftools takes a fifth of a
# short run to be imported.
_MAGIC = b"\x7fELF"
_CLASS_32, _CLASS_64 = 1, 2
_LITTLE_ENDIAN = 1
_KINDS = {_CLASS_32: "elf32", _CLASS_64: "elf64"}


@dataclass(slots=True, frozen=True)
class _Segment:
    """A program header."""

    type: int
    offset: int
    virtual: int
    physical: int
    file_size: int
    memory_size: int


@dataclass(slots=True, frozen=True)
class _Elf:
    """What there is in an ELF file for who loads it; raises ValueError for what is none."""

    content: IO[bytes]
    is_64_bit: bool
    machine: int
    entry: int
    segments: tuple[_Segment, ...]

    @classmethod
    def read(cls, content: IO[bytes]) -> "_Elf":
        identity = _at(content, 0, 16)
        if identity[:4] != _MAGIC:
            raise ValueError("its magic number is not ELF's")
        kind = _KINDS.get(identity[4])
        if kind is None or identity[5] != _LITTLE_ENDIAN:
            raise ValueError("it is not for a little-endian machine of 32 or 64 bits")
        header = _struct(content, f"struct {kind}_hdr", 0)
        shape = f"struct {kind}_phdr"
        if header.e_phnum and header.e_phentsize < ffi.sizeof(shape):
            raise ValueError(f"its program headers have {header.e_phentsize} bytes")
        segments = []
        for index in range(header.e_phnum):
            one = _struct(content, shape, header.e_phoff + index * header.e_phentsize)
            segments.append(
                _Segment(
                    *(one.p_type, one.p_offset, one.p_vaddr, one.p_paddr),
                    *(one.p_filesz, one.p_memsz),
                )
            )
        is_64_bit = identity[4] == _CLASS_64
        return cls(content, is_64_bit, header.e_machine, header.e_entry, tuple(segments))

    def data(self, segment: _Segment) -> bytes:
        """Return what the file has of a segment: less than it says, where the file is cut short."""
        self.content.seek(segment.offset)
        return self.content.read(segment.file_size)

    def notes(self, segment: _Segment) -> Iterator[tuple[bytes, int, bytes]]:
        """Yield name, type and description of each note of a PT_NOTE segment."""
        data = self.data(segment)
        size = ffi.sizeof("struct elf64_note")
        position = 0
        while position + size <= len(data):
            name = position + size
            note = ffi.from_buffer("struct elf64_note *", data[position:name])
            start = name + _padded(note.n_namesz)
            end = start + note.n_descsz
            yield data[name : name + note.n_namesz].rstrip(b"\0"), note.n_type, data[start:end]
            position = start + _padded(note.n_descsz)


def _struct(content: IO[bytes], shape: str, offset: int) -> CData:
    data = _at(content, offset, ffi.sizeof(shape))
    return ffi.new(f"{shape} *", ffi.from_buffer(f"{shape} *", data)[0])


def _at(content: IO[bytes], offset: int, size: int) -> bytes:
    content.seek(offset)
    data = content.read(size)
    if len(data) < size:
        raise ValueError("it ends too soon")
    return data


def _padded(size: int) -> int:
    return -(-size // 4) * 4


@dataclass(slots=True, frozen=True)
class LoadSegment:
    """What a PT_LOAD segment puts into memory: `data`, and zeroes up to `memory_size` bytes."""

    address: int
    data: bytes
    memory_size: int


@dataclass(slots=True, frozen=True)
class GuestImage:
    """An ELF file for x86: its segments by physical address, and where it starts.

    `pvh_entry` is the guest physical address of its 32-bit PVH entry point, None without the
    XEN_ELFNOTE_PHYS32_ENTRY note.
    """

    path: Path
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
    def open(cls, path: Path) -> "GuestImage":
        """Read an image; raises ConfigError for a file that is none."""
        try:
            # Mapped, because reading a file sets aside whatever size a damaged header names.
            with (
                path.open("rb") as stream,
                mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                return cls.parse(path, cast("IO[bytes]", content))
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
    def parse(cls, path: Path, content: IO[bytes]) -> "GuestImage":
        """Read an image that is the content of `path`; raises ConfigError for what is none."""
        try:
            return cls._parse(path, _Elf.read(content))
        # An offset beyond the file, or beyond all files.
        except (ValueError, OverflowError) as error:
            raise ConfigError(
                f"The guest image {path} is no ELF file that can be understood ({error}): "
                "name an x86 ELF executable."
            ) from error

    @classmethod
    def _parse(cls, path: Path, elf: _Elf) -> "GuestImage":
        if elf.machine not in (lib.EM_X86_64, lib.EM_386):
            raise ConfigError(
                f"The guest image {path} is for another machine (e_machine {elf.machine}), not for "
                "x86: build it for x86-64."
            )
        segments, pvh_entry, identical = [], None, True
        for segment in elf.segments:
            if segment.type == lib.PT_LOAD and segment.memory_size:
                data = elf.data(segment)
                if len(data) != segment.file_size or len(data) > segment.memory_size:
                    raise ConfigError(
                        f"The guest image {path} is cut short: build or copy it again."
                    )
                identical = identical and segment.physical == segment.virtual
                segments.append(LoadSegment(segment.physical, data, segment.memory_size))
            elif segment.type == lib.PT_NOTE:
                for name, kind, description in elf.notes(segment):
                    if name == b"Xen" and kind == lib.XEN_ELFNOTE_PHYS32_ENTRY:
                        pvh_entry = _pvh_entry(path, description)
        if not segments:
            raise ConfigError(
                f"The guest image {path} has nothing to load: link it as an executable."
            )
        return cls(
            path,
            elf.entry,
            pvh_entry,
            tuple(segments),
            is_64_bit=elf.is_64_bit,
            is_identical=identical,
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


def _pvh_entry(path: Path, description: bytes) -> int:
    entry = int.from_bytes(description, "little")
    if len(description) not in (4, 8) or entry >> 32:
        raise ConfigError(
            f"The guest image {path} has a PVH note without a 32-bit address in it: "
            "link one in, of type 18 and name Xen, that holds the entry point's address in 4 bytes."
        )
    return entry

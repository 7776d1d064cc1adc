"""Guest images: ELF files, and the PVH note that says where to start them."""

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from virtiopy._native import lib
from virtiopy.errors import ConfigError
from virtiopy.memory import AddressError, GuestMemory


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
            return cls._parse(path, ELFFile(content))
        # pyelftools lets a damaged file surface as any of these.
        except (
            ELFError,
            ConstructError,
            ValueError,
            OverflowError,
            LookupError,
            AttributeError,
            TypeError,
            AssertionError,
        ) as error:
            raise ConfigError(
                f"The guest image {path} is no ELF file that can be understood ({error}): "
                "name an x86 ELF executable."
            ) from error

    @classmethod
    def _parse(cls, path: Path, elf: ELFFile) -> "GuestImage":
        machine = elf["e_machine"]
        if machine not in ("EM_X86_64", "EM_386"):
            raise ConfigError(
                f"The guest image {path} is for {machine}, not for x86: build it for x86-64."
            )
        segments, pvh_entry, identical = [], None, True
        for segment in elf.iter_segments():
            if segment["p_type"] == "PT_LOAD" and segment["p_memsz"]:
                data = segment.data()
                if len(data) != segment["p_filesz"] or len(data) > segment["p_memsz"]:
                    raise ConfigError(
                        f"The guest image {path} is cut short: build or copy it again."
                    )
                identical = identical and segment["p_paddr"] == segment["p_vaddr"]
                segments.append(LoadSegment(segment["p_paddr"], data, segment["p_memsz"]))
            elif isinstance(segment, NoteSegment):
                for note in segment.iter_notes():
                    kind: object = note["n_type"]
                    if note["n_name"] == "Xen" and kind == lib.XEN_ELFNOTE_PHYS32_ENTRY:
                        pvh_entry = _pvh_entry(path, note["n_descdata"])
        if not segments:
            raise ConfigError(
                f"The guest image {path} has nothing to load: link it as an executable."
            )
        return cls(
            path,
            elf["e_entry"],
            pvh_entry,
            tuple(segments),
            is_64_bit=elf.elfclass == 64,
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

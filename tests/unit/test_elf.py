import struct
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from virtiopy.accel.base import Cpu
from virtiopy.boot import elffile
from virtiopy.boot.elf import GuestImage, LoadSegment
from virtiopy.boot.guests import GUESTS, guest_file, guest_names, guest_path
from virtiopy.boot.parameters import BIOS_AREA_END, BIOS_AREA_START, BootParameters
from virtiopy.boot.pvh import COMMAND_LINE, COMMAND_LINE_MAX, START_INFO, prepare
from virtiopy.cpu.x86 import Registers, SystemRegisters
from virtiopy.errors import ConfigError
from virtiopy.memory import HOLE_END, HOLE_START, GuestMemory

MIB = 1 << 20

EM_386, EM_X86_64, EM_AARCH64 = 3, 62, 183
PT_LOAD, PT_NOTE = 1, 4
PHYS32_ENTRY = 18

Note = tuple[bytes, int, bytes]
XEN_NOTE: Note = (b"Xen\0", PHYS32_ENTRY, struct.pack("<I", MIB + 0x10))


def build(
    *loads: tuple[int, bytes, int],
    notes: Sequence[Note] = (XEN_NOTE,),
    machine: int = EM_X86_64,
    entry: int = MIB,
) -> bytes:
    # An ELF64 executable: (physical address, data, size in memory) of each PT_LOAD.
    note_data = b"".join(
        struct.pack("<III", len(name), len(desc), kind) + name + desc.ljust(-(-len(desc) // 4) * 4)
        for name, kind, desc in notes
    )
    segments = [(PT_LOAD, address, data, size) for address, data, size in loads]
    if notes:
        segments.append((PT_NOTE, 0, note_data, len(note_data)))
    offset = 64 + 56 * len(segments)
    headers, content = b"", b""
    for kind, address, data, size in segments:
        headers += struct.pack(
            "<IIQQQQQQ", kind, 7, offset + len(content), address, address, len(data), size, 4
        )
        content += data
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    rest = (2, machine, 1, entry, 64, 0, 0, 64, 56, len(segments), 64, 0, 0)
    return identity + struct.pack("<HHIQQQIHHHHHH", *rest) + headers + content


GOOD = build((MIB, b"code", 4), (MIB + 0x1000, b"data", 0x100))


def opened(tmp_path: Path, content: bytes) -> GuestImage:
    path = tmp_path / "image.elf"
    path.write_bytes(content)
    return GuestImage.open(path)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(2 * MIB) as memory:
        yield memory


class RecordingCpu:
    def __init__(self) -> None:
        self.registers = Registers()
        self.system_registers = SystemRegisters()

    def set_registers(self, registers: Registers) -> None:
        self.registers = registers

    def set_system_registers(self, state: SystemRegisters) -> None:
        self.system_registers = state


def boot(memory: GuestMemory, image: GuestImage, command_line: str = "") -> RecordingCpu:
    cpu = RecordingCpu()
    prepare(memory, cast("Cpu", cpu), image, BootParameters(command_line))
    return cpu


# Images


def test_an_image_says_what_goes_where(tmp_path: Path) -> None:
    image = opened(tmp_path, GOOD)
    assert image.segments == (
        LoadSegment(MIB, b"code", 4),
        LoadSegment(MIB + 0x1000, b"data", 0x100),
    )
    assert image.entry == MIB
    assert image.pvh_entry == MIB + 0x10
    assert image.end == MIB + 0x1100


def test_the_pvh_note_is_found_among_others(tmp_path: Path) -> None:
    others = [(b"GNU\0", PHYS32_ENTRY, b"1234"), (b"Xen\0", 5, b"linux\0\0\0"), XEN_NOTE]
    assert opened(tmp_path, build((MIB, b"x", 1), notes=others)).pvh_entry == MIB + 0x10


def test_a_pvh_note_may_have_64_bits(tmp_path: Path) -> None:
    note = (b"Xen\0", PHYS32_ENTRY, struct.pack("<Q", MIB + 0x20))
    assert opened(tmp_path, build((MIB, b"x", 1), notes=[note])).pvh_entry == MIB + 0x20


def test_a_segment_that_takes_no_memory_is_left_out(tmp_path: Path) -> None:
    image = opened(tmp_path, build((MIB, b"x", 1), (1 << 40, b"", 0)))
    assert [segment.address for segment in image.segments] == [MIB]


def _guest_images() -> list[Path]:
    return sorted(Path(GUESTS).glob("*.elf"))


@pytest.mark.parametrize("path", _guest_images(), ids=lambda path: path.stem)
def test_a_guest_of_our_own_opens(path: Path) -> None:
    image = GuestImage.open(path)
    assert image.segments
    assert (image.pvh_entry is not None) == (path.stem in guest_names())


@pytest.mark.parametrize("name", guest_names())
def test_a_guest_of_our_own_boots_by_pvh_in_its_own_memory(name: str) -> None:
    image = GuestImage.open(guest_path(name))
    with GuestMemory.allocate(64 * MIB) as memory:
        cpu = boot(memory, image)
        assert MIB <= cpu.registers.rip < image.end
        assert any(memory.read(cpu.registers.rip, 16))


def test_loading_puts_data_and_zeroes_into_memory(tmp_path: Path, memory: GuestMemory) -> None:
    memory.write(MIB, b"\xff" * 0x2000)
    opened(tmp_path, GOOD).load(memory)
    assert memory.read(MIB, 6) == b"code\xff\xff"
    assert memory.read(MIB + 0x1000, 0x102) == b"data" + bytes(0xFC) + b"\xff\xff"


# Layouts that are kept


def _forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: object) -> NoReturn:
        raise AssertionError("the file is read again")

    monkeypatch.setattr(elffile, "read_layout", read)


def test_an_image_that_was_opened_before_is_not_read_by_the_library_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTIOPY_CACHE", str(tmp_path))
    image = GuestImage.open(guest_path("greet"))
    _forbid_reading(monkeypatch)
    assert GuestImage.open(guest_path("greet")) == image


def test_what_was_kept_of_another_file_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTIOPY_CACHE", str(tmp_path))
    image = GuestImage.open(guest_path("greet"))
    (kept,) = (tmp_path / "images").iterdir()
    version, device, inode, *rest = kept.read_text().split()
    kept.write_text(" ".join([version, device, str(int(inode) + 256), *rest[:-1], "1"]))
    assert GuestImage.open(guest_path("greet")) == image


@pytest.mark.parametrize("left", [0, 1, 7, 40])
def test_what_was_kept_and_is_damaged_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    monkeypatch.setenv("VIRTIOPY_CACHE", str(tmp_path))
    image = GuestImage.open(guest_path("greet"))
    (kept,) = (tmp_path / "images").iterdir()
    kept.write_text(kept.read_text()[:left])
    assert GuestImage.open(guest_path("greet")) == image


def test_a_file_that_may_change_unseen_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTIOPY_CACHE", str(tmp_path / "cache"))
    opened(tmp_path, GOOD)
    assert not (tmp_path / "cache").exists()


def test_an_image_opens_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("VIRTIOPY_CACHE", str(tmp_path / "cache"))
    assert GuestImage.open(guest_path("greet")).segments


# Refusals


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"#!/bin/sh\nexit 0\n" * 10, id="script"),
        pytest.param(b"\x7fELF", id="magic-only"),
        pytest.param(bytes(4096), id="zeroes"),
        pytest.param(GOOD[:40], id="header-cut"),
        pytest.param(GOOD[:100], id="program-headers-cut"),
    ],
)
def test_what_is_no_elf_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match="name an x86 ELF executable"):
        opened(tmp_path, content)


@pytest.mark.parametrize("machine", [0, EM_AARCH64, 0xFFFF])
def test_an_image_for_another_machine_is_refused(tmp_path: Path, machine: int) -> None:
    with pytest.raises(ConfigError, match="not for x86"):
        opened(tmp_path, build((MIB, b"x", 1), machine=machine))


@pytest.mark.parametrize("loads", [[], [(MIB, b"", 0)]], ids=["none", "empty"])
def test_an_image_with_nothing_to_load_is_refused(
    tmp_path: Path, loads: list[tuple[int, bytes, int]]
) -> None:
    with pytest.raises(ConfigError, match="nothing to load"):
        opened(tmp_path, build(*loads))


def test_an_image_whose_data_is_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cut short"):
        opened(tmp_path, build((MIB, b"code", 4), notes=[])[:-1])


def test_an_image_with_more_data_than_memory_for_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cut short"):
        opened(tmp_path, build((MIB, b"code", 3)))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 7, 9, 12, 16])
def test_a_pvh_note_of_odd_size_is_refused(tmp_path: Path, size: int) -> None:
    note = (b"Xen\0", PHYS32_ENTRY, bytes(range(1, size + 1)))
    with pytest.raises(ConfigError, match="PVH note"):
        opened(tmp_path, build((MIB, b"x", 1), notes=[note]))


def test_a_pvh_entry_above_4_gib_is_refused(tmp_path: Path) -> None:
    # The guest starts there in 32-bit mode.
    note = (b"Xen\0", PHYS32_ENTRY, struct.pack("<Q", 1 << 32))
    with pytest.raises(ConfigError, match="PVH note"):
        opened(tmp_path, build((MIB, b"x", 1), notes=[note]))


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        GuestImage.open(tmp_path / "missing.elf")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        GuestImage.open(tmp_path)


@pytest.mark.parametrize(
    ("address", "data", "size"),
    [
        pytest.param(2 * MIB, b"x", 1, id="behind-memory"),
        pytest.param(2 * MIB - 1, b"xy", 2, id="data-over-the-end"),
        pytest.param(2 * MIB - 1, b"x", 2, id="zeroes-over-the-end"),
        pytest.param(HOLE_START, b"x", 1, id="in-the-hole"),
        pytest.param(MIB, b"x", 1 << 60, id="2^60-zeroes"),
        pytest.param((1 << 64) - 1, b"x", (1 << 64) - 1, id="wraps"),
    ],
)
def test_an_image_that_does_not_fit_in_memory_is_refused(
    tmp_path: Path, memory: GuestMemory, address: int, data: bytes, size: int
) -> None:
    image = opened(tmp_path, build((address, data, size)))
    with pytest.raises(ConfigError, match="does not fit in memory"):
        image.load(memory)


@pytest.mark.parametrize("field", ["p_offset", "p_filesz"])
@pytest.mark.parametrize("value", [1 << 31, 1 << 40, 1 << 60, (1 << 63) - 1, 1 << 63])
@pytest.mark.parametrize("segment", [0, 2], ids=["load", "note"])
def test_a_size_from_the_file_is_not_believed(
    tmp_path: Path, segment: int, field: str, value: int
) -> None:
    content = bytearray(GOOD)
    where = 64 + 56 * segment + {"p_offset": 8, "p_filesz": 32}[field]
    content[where : where + 8] = struct.pack("<Q", value)
    path = tmp_path / "image.elf"
    path.write_bytes(content)
    _opens_or_is_refused(path)


def _opens_or_is_refused(path: Path) -> None:
    tracemalloc.start()
    try:
        image = GuestImage.open(path)
        with GuestMemory.allocate(2 * MIB) as memory:
            boot(memory, image)
    except ConfigError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 * MIB


# A file's interesting bytes are in its first 512: the headers, and in GOOD all of it.
FIELD_VALUES = [0, 1, 3, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 60, 1 << 63, (1 << 64) - 1]
damages = st.one_of(
    st.tuples(st.integers(0, 511), st.binary(min_size=1, max_size=8)),
    st.tuples(
        st.integers(0, 63).map(lambda word: 8 * word),
        st.sampled_from(FIELD_VALUES).map(lambda value: struct.pack("<Q", value)),
    ),
    st.tuples(st.integers(0, 1 << 13), st.binary(min_size=1, max_size=8)),
)


# The nightly profile takes more than a minute.
@pytest.mark.timeout(max(900, settings().max_examples // 5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.sampled_from([GOOD, *(path.read_bytes() for path in _guest_images()[:4])]),
    damage=st.lists(damages, max_size=4),
    cut=st.one_of(st.none(), st.floats(0, 1)),
)
@example(seed=GOOD, damage=[], cut=None)
def test_a_damaged_image_opens_or_is_refused_and_nothing_else(
    tmp_path: Path, seed: bytes, damage: list[tuple[int, bytes]], cut: float | None
) -> None:
    content = bytearray(seed)
    for where, what in damage:
        content[where : where + len(what)] = what
    if cut is not None:
        del content[int(len(content) * cut) :]
    path = tmp_path / "damaged.elf"
    path.write_bytes(content)
    _opens_or_is_refused(path)


# PVH boot (xen/include/public/arch-x86/hvm/start_info.h)


def start_info(memory: GuestMemory) -> tuple[int, ...]:
    return struct.unpack("<IIIIQQQQII", memory.read(START_INFO, 56))


def memory_map(memory: GuestMemory) -> list[tuple[int, ...]]:
    *_, address, count, _reserved = start_info(memory)
    return list(struct.iter_unpack("<QQII", memory.read(address, 24 * count)))


def test_the_start_info_is_of_version_1_and_has_no_modules(
    tmp_path: Path, memory: GuestMemory
) -> None:
    boot(memory, opened(tmp_path, GOOD))
    magic, version, flags, modules, module_list, _, rsdp, _, _, reserved = start_info(memory)
    assert magic == 0x336EC578  # "xEn3" with the 0x80 bit of the "E" set
    assert version == 1
    assert (flags, modules, module_list, rsdp, reserved) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("command_line", ["", "virtio_mmio.device=4K@0xd0000000:16", "größer"])
def test_the_command_line_is_where_the_start_info_says(
    tmp_path: Path, memory: GuestMemory, command_line: str
) -> None:
    memory.write(COMMAND_LINE, b"\xff" * 100)
    boot(memory, opened(tmp_path, GOOD), command_line)
    encoded = command_line.encode() + b"\0"
    assert memory.read(start_info(memory)[5], len(encoded)) == encoded


def test_a_command_line_may_fill_its_room(tmp_path: Path, memory: GuestMemory) -> None:
    boot(memory, opened(tmp_path, GOOD), "x" * (COMMAND_LINE_MAX - 1))
    assert memory.read(COMMAND_LINE + COMMAND_LINE_MAX - 2, 2) == b"x\0"


def test_a_command_line_that_is_too_long_is_refused(tmp_path: Path, memory: GuestMemory) -> None:
    with pytest.raises(ConfigError, match="command line has more than 32768 bytes"):
        boot(memory, opened(tmp_path, GOOD), "x" * COMMAND_LINE_MAX)


RAM = 1


@pytest.mark.parametrize("size", [2 * MIB, 512 * MIB, HOLE_START])
def test_the_memory_map_leaves_the_bios_area_out(tmp_path: Path, size: int) -> None:
    with GuestMemory.allocate(size) as memory:
        boot(memory, opened(tmp_path, GOOD))
        assert memory_map(memory) == [
            (0, BIOS_AREA_START, RAM, 0),
            (BIOS_AREA_END, size - BIOS_AREA_END, RAM, 0),
        ]


def test_the_memory_map_has_what_is_above_the_hole(tmp_path: Path) -> None:
    with GuestMemory.allocate(HOLE_START + 5 * MIB) as memory:
        boot(memory, opened(tmp_path, GOOD))
        assert memory_map(memory)[1:] == [
            (BIOS_AREA_END, HOLE_START - BIOS_AREA_END, RAM, 0),
            (HOLE_END, 5 * MIB, RAM, 0),
        ]


def test_the_boot_parameters_are_in_memory_that_the_map_has_and_overlap_nothing(
    tmp_path: Path, memory: GuestMemory
) -> None:
    boot(memory, opened(tmp_path, GOOD))
    info = start_info(memory)
    extents = sorted(
        [
            (START_INFO, 56),
            (info[5], COMMAND_LINE_MAX),
            (info[7], 24 * info[8]),
        ]
    )
    for (start, size), (following, _) in zip(
        extents, [*extents[1:], (BIOS_AREA_START, 0)], strict=True
    ):
        assert start + size <= following


def test_the_cpu_starts_at_the_note_in_flat_32_bit_mode(
    tmp_path: Path, memory: GuestMemory
) -> None:
    cpu = boot(memory, opened(tmp_path, GOOD))
    assert cpu.registers == Registers(rip=MIB + 0x10, rbx=START_INFO, rflags=2)
    state = cpu.system_registers
    assert (state.cr0 & 0x8000_0001, state.cr4, state.efer) == (1, 0, 0)
    for segment in (state.cs, state.ds, state.es, state.ss):
        assert (segment.base, segment.limit, segment.db) == (0, 0xFFFF_FFFF, 1)


def test_an_image_without_a_pvh_note_is_refused(tmp_path: Path, memory: GuestMemory) -> None:
    image = opened(tmp_path, build((MIB, b"x", 1), notes=[]))
    assert image.pvh_entry is None
    with pytest.raises(ConfigError, match="no PVH note"):
        boot(memory, image)


@pytest.mark.parametrize(
    ("address", "size", "parameters"),
    [
        (0, 3, START_INFO),
        (START_INFO - 2, 3, 0x7000),
        (START_INFO, 3, 0x7000),
        (0xFFFF, 1, 0x1000),
        (0x1_0000, 0x8_0000, START_INFO),
        (0x4000, 0x9_4000, MIB + 0x1000),
        (MIB - 1, 1, START_INFO),
    ],
)
def test_the_boot_parameters_go_where_an_image_below_1_mib_is_not(
    tmp_path: Path, memory: GuestMemory, address: int, size: int, parameters: int
) -> None:
    image = opened(tmp_path, build((MIB, b"x", 1), (address, b"low"[:size], size)))
    cpu = boot(memory, image, "word")
    assert cpu.registers.rbx == parameters
    assert memory.read(address, size) == b"low"[:size].ljust(size, b"\0")
    assert memory.read(MIB, 1) == b"x"
    info = struct.unpack("<IIIIQQQQII", memory.read(parameters, 56))
    assert memory.read(info[5], 5) == b"word\0"
    assert info[7] - parameters == 0x1000


def test_an_image_that_leaves_no_room_for_boot_parameters_is_refused(
    tmp_path: Path, memory: GuestMemory
) -> None:
    image = opened(tmp_path, build((0, b"x", memory.size)))
    with pytest.raises(ConfigError, match=r"leaves no 40 KiB.*--memory"):
        boot(memory, image)


def test_an_image_where_the_acpi_tables_are_is_refused(tmp_path: Path, memory: GuestMemory) -> None:
    image = opened(tmp_path, build((MIB, b"x", 1), (0xE_0000, b"low", 3)))
    with pytest.raises(ConfigError, match="ACPI tables"):
        prepare(memory, cast("Cpu", RecordingCpu()), image, BootParameters("", None, 0xE_0000))


# The guests by name


def test_a_guest_may_be_named_or_given_by_its_path(tmp_path: Path) -> None:
    own = tmp_path / "mine.elf"
    own.write_bytes(GOOD)
    assert guest_path(str(own)) == own
    for name in guest_names():
        assert guest_path(name) == Path(guest_file(name))


@pytest.mark.parametrize(
    ("name", "words"),
    [("no-such-guest", "There is no guest"), ("./missing", "does not exist"), ("a.elf", "exist")],
)
def test_a_guest_that_is_not_there_is_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        guest_path(name)

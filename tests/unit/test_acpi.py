import re
import shutil
import subprocess
from pathlib import Path

import pytest

from virtiopy.boot import aml
from virtiopy.boot.acpi import (
    TABLES,
    DeviceNode,
    dsdt,
    fadt,
    madt,
    rsdp,
    write_tables,
    xsdt,
)
from virtiopy.memory import GuestMemory

needs_iasl = pytest.mark.skipif(
    shutil.which("iasl") is None, reason="iasl is missing: apt-get install acpica-tools"
)

NODES = [
    DeviceNode("LNRO0005", 0xD000_0000 + 0x1000 * index, 0x1000, 16 + index) for index in range(8)
]


def disassembled(tmp_path: Path, table: bytes) -> str:
    """What iasl makes of a table; it has to understand all of it."""
    (tmp_path / "table.dat").write_bytes(table)
    done = subprocess.run(
        ["iasl", "-d", "table.dat"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr + done.stdout, done.stderr
    return (tmp_path / "table.dsl").read_text()


@needs_iasl
def test_iasl_finds_every_device_in_the_dsdt(tmp_path: Path) -> None:
    text = disassembled(tmp_path, dsdt(NODES))

    assert text.count('Name (_HID, "LNRO0005")') == len(NODES)
    assert re.search(r"0xD0003000,\s+// Address Base\s+0x00001000,", text)
    assert re.search(r"Edge, ActiveHigh, Exclusive[^{]*\{\s*0x00000017,", text)
    assert 'EisaId ("PNP0501")' in text
    assert 'EisaId ("PNP0B00")' in text
    assert re.search(r"Name \(\\_S5, Package \(0x04\)[^{]*\{\s*0x05,\s*0x05,", text)


@needs_iasl
def test_what_iasl_disassembles_it_compiles_without_a_warning(tmp_path: Path) -> None:
    disassembled(tmp_path, dsdt(NODES))
    done = subprocess.run(
        ["iasl", "table.dsl"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "0 Errors, 0 Warnings" in done.stdout, done.stdout


@needs_iasl
def test_iasl_reads_the_madt(tmp_path: Path) -> None:
    text = disassembled(tmp_path, madt(3))

    assert re.findall(r"Local Apic ID : (\w+)", text) == ["00", "01", "02"]
    assert "I/O Apic ID : 00" in text
    assert re.search(r"Address : FEC00000", text)
    assert "PC-AT Compatibility : 0" in text


@needs_iasl
def test_iasl_reads_the_fadt(tmp_path: Path) -> None:
    text = disassembled(tmp_path, fadt(0xE0040))

    for line in (
        r"Hardware Reduced \(V5\) : 1",
        r"Reset Register Supported \(V2\) : 1",
        r"8042 Present on ports 60/64 \(V2\) : 0",
        r"CMOS RTC Not Present \(V5\) : 0",
        r"DSDT Address : 00000000000E0040",
    ):
        assert re.search(line, text), line
    ports = re.findall(r"Address : (0{13}60\d)", text)
    assert [port[-3:] for port in ports] == ["602", "600", "601"]


@needs_iasl
def test_iasl_reads_the_xsdt(tmp_path: Path) -> None:
    text = disassembled(tmp_path, xsdt([0xE1000, 0xE2000]))
    assert re.findall(r"ACPI Table Address\s+\d : (\w+)", text) == [
        f"{0xE1000:016X}",
        f"{0xE2000:016X}",
    ]


def test_the_tables_lead_from_one_to_the_next() -> None:
    with GuestMemory.allocate(1 << 20) as memory:
        pointer = write_tables(memory, NODES, cpus=2)

        assert pointer == TABLES
        found = memory.read(pointer, 36)
        assert found == rsdp(int.from_bytes(found[24:32], "little"))
        assert sum(found[:20]) % 256 == sum(found) % 256 == 0
        table = memory.read(int.from_bytes(found[24:32], "little"), 36 + 16)
        assert table[:4] == b"XSDT"
        addresses = [int.from_bytes(table[at : at + 8], "little") for at in (36, 44)]
        assert [memory.read(address, 4) for address in addresses] == [b"FACP", b"APIC"]
        fixed = memory.read(addresses[0], 276)
        assert memory.read(int.from_bytes(fixed[140:148], "little"), 4) == b"DSDT"
        for address in addresses:
            length = int.from_bytes(memory.read(address + 4, 4), "little")
            assert sum(memory.read(address, length)) % 256 == 0


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (1, "01"), (2, "0a02"), (255, "0aff"), (256, "0b0001"), (1 << 16, "0c00000100")],
)
def test_integers_take_the_fewest_bytes(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


def test_an_integer_has_at_most_64_bits() -> None:
    assert aml.integer((1 << 64) - 1) == b"\x0e" + b"\xff" * 8
    with pytest.raises(ValueError, match="64 bits"):
        aml.integer(1 << 64)


@pytest.mark.parametrize("length", [10, 57, 58, 59, 60, 61, 62, 63, 64, 4090, 4093, 4094, 70_000])
def test_the_length_of_a_package_counts_its_own_bytes(length: int) -> None:
    encoded = aml.scope("_SB", bytes(length))
    lead = encoded[1]
    following = lead >> 6
    size = lead & 0x3F if not following else lead & 0xF
    size |= int.from_bytes(encoded[2 : 2 + following], "little") << 4 if following else 0
    assert size == len(encoded) - 1


@pytest.mark.parametrize("path", ["TOOLONG", "A.B.C", "_SB.TOOLONG"])
def test_a_name_has_four_letters(path: str) -> None:
    with pytest.raises(ValueError, match="four letters"):
        aml.name_path(path)

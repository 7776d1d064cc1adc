"""Commands that two disks are asked, one after the other: what a driver may send, good and bad."""

from dataclasses import dataclass

BLOCK, BLOCKS = 512, 2048


#: Of the data all bytes have to be the same.
WHOLE = 1 << 16


@dataclass(slots=True, frozen=True)
class Case:
    """A command by its name; its data, or the room for what it answers, in bytes.

    Of the answer the first `head` bytes have to be the same: further ones are a unit's own to say,
    as its name and its limits.
    """

    name: str
    cdb: bytes
    data: bytes = b""
    room: int = 0
    head: int = WHOLE


def _case(name: str, cdb: str, **more: object) -> Case:
    return Case(name, bytes.fromhex(cdb), **more)  # type: ignore[arg-type]


def _six(opcode: int, start: int, count: int) -> bytes:
    return bytes([opcode]) + start.to_bytes(3, "big") + bytes([count, 0])


def _ten(opcode: int, start: int, count: int, flags: int = 0) -> bytes:
    return (
        bytes([opcode, flags]) + start.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"
    )


def _twelve(opcode: int, start: int, count: int, flags: int = 0) -> bytes:
    return bytes([opcode, flags]) + start.to_bytes(4, "big") + count.to_bytes(4, "big") + bytes(2)


def _sixteen(opcode: int, start: int, count: int, flags: int = 0) -> bytes:
    return bytes([opcode, flags]) + start.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(2)


def blocks(count: int, seed: int) -> bytes:
    """Return blocks of content, of which each differs from the next."""
    return b"".join(bytes([(seed + number) & 0xFF]) * BLOCK for number in range(count))


def _compare_and_write(start: int, count: int, old: bytes, new: bytes, name: str) -> Case:
    cdb = bytes([0x89, 0]) + start.to_bytes(8, "big") + bytes([0, 0, 0, count, 0, 0])
    return Case(name, cdb, old + new)


def _unmap(name: str, *ranges: tuple[int, int], length: int | None = None) -> Case:
    items = b"".join(
        start.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4) for start, count in ranges
    )
    data = (len(items) + 6).to_bytes(2, "big") + len(items).to_bytes(2, "big") + bytes(4) + items
    size = len(data) if length is None else length
    return Case(name, bytes([0x42, 0, 0, 0, 0, 0, 0]) + size.to_bytes(2, "big") + b"\0", data)


END = BLOCKS - 1

READS_AND_WRITES = [
    Case("READ(6)", _six(0x08, 3, 2), room=2 * BLOCK),
    Case("READ(6), the last block", _six(0x08, END, 1), room=BLOCK),
    Case("READ(6), beyond the end", _six(0x08, END, 2), room=2 * BLOCK),
    Case("READ(6), no count stands for 256", _six(0x08, 0, 0), room=256 * BLOCK),
    Case("WRITE(6)", _six(0x0A, 5, 2), blocks(2, 0x31)),
    Case("WRITE(6), beyond the end", _six(0x0A, END, 2), blocks(2, 1)),
    Case("READ(10)", _ten(0x28, 4, 3), room=3 * BLOCK),
    Case("READ(10), FUA", _ten(0x28, 4, 1, 0x08), room=BLOCK),
    Case("READ(10), DPO", _ten(0x28, 4, 1, 0x10), room=BLOCK),
    Case("READ(10), RDPROTECT", _ten(0x28, 4, 1, 0x20), room=BLOCK),
    Case("READ(10), no count", _ten(0x28, 4, 0)),
    Case("READ(10), no count at the end", _ten(0x28, BLOCKS, 0)),
    Case("READ(10), beyond the end", _ten(0x28, END, 2), room=2 * BLOCK),
    Case("READ(10), far beyond the end", _ten(0x28, 0xFFFFFFFF, 1), room=BLOCK),
    Case("READ(10), more room than data", _ten(0x28, 4, 1), room=3 * BLOCK),
    Case("WRITE(10)", _ten(0x2A, 8, 3), blocks(3, 0x41)),
    Case("WRITE(10), FUA", _ten(0x2A, 11, 1, 0x08), blocks(1, 0x51)),
    Case("WRITE(10), no count", _ten(0x2A, 11, 0)),
    Case("WRITE(10), beyond the end", _ten(0x2A, END, 2), blocks(2, 1)),
    Case("READ(12)", _twelve(0xA8, 8, 4), room=4 * BLOCK),
    Case("READ(12), beyond the end", _twelve(0xA8, BLOCKS, 1), room=BLOCK),
    Case("WRITE(12)", _twelve(0xAA, 16, 2), blocks(2, 0x61)),
    Case("READ(16)", _sixteen(0x88, 16, 2), room=2 * BLOCK),
    Case("READ(16), beyond the end", _sixteen(0x88, 1 << 40, 1), room=BLOCK),
    Case("READ(16), an address that wraps", _sixteen(0x88, (1 << 64) - 1, 1), room=BLOCK),
    Case("WRITE(16)", _sixteen(0x8A, 20, 2), blocks(2, 0x71)),
    Case("WRITE(16), beyond the end", _sixteen(0x8A, BLOCKS, 1), blocks(1, 1)),
    Case("VERIFY(10)", _ten(0x2F, 4, 2)),
    Case("VERIFY(10), beyond the end", _ten(0x2F, END, 2)),
    Case("VERIFY(16)", _sixteen(0x8F, 4, 2)),
    Case("SYNCHRONIZE CACHE(10)", _ten(0x35, 0, 0)),
    Case("SYNCHRONIZE CACHE(10), blocks", _ten(0x35, 4, 4)),
    Case("SYNCHRONIZE CACHE(10), beyond the end", _ten(0x35, END, 2)),
    Case("SYNCHRONIZE CACHE(16)", _sixteen(0x91, 0, 0)),
    Case("WRITE SAME(10)", _ten(0x41, 32, 4), blocks(1, 0x22)),
    Case("WRITE SAME(16)", _sixteen(0x93, 40, 4), blocks(1, 0x23)),
    Case("WRITE SAME(16), beyond the end", _sixteen(0x93, END, 2), blocks(1, 1)),
    Case("WRITE SAME(16), UNMAP", _sixteen(0x93, 44, 4, 0x08), bytes(BLOCK)),
    Case("WRITE SAME(16), no count", _sixteen(0x93, 44, 0), blocks(1, 1)),
    # The kernel's takes one range at a time, and says so (B0h).
    _unmap("UNMAP", (64, 8)),
    _unmap("UNMAP, up to the end", (END - 7, 8)),
    _unmap("UNMAP, beyond the end", (END, 2)),
    _unmap("UNMAP, no range"),
    _unmap("UNMAP, a list cut in its header", (64, 8), length=4),
    Case("UNMAP, no list", bytes.fromhex("42000000000000000000")),
    _compare_and_write(8, 1, blocks(1, 0x41), blocks(1, 0x77), "COMPARE AND WRITE, the same"),
    _compare_and_write(8, 1, blocks(1, 0x41), blocks(1, 0x78), "COMPARE AND WRITE, another"),
    _compare_and_write(BLOCKS, 1, blocks(1, 1), blocks(1, 1), "COMPARE AND WRITE, beyond the end"),
    Case("READ(10), what all that has left", _ten(0x28, 0, 128), room=128 * BLOCK),
]

QUESTIONS = [
    _case("TEST UNIT READY", "000000000000"),
    _case("REQUEST SENSE", "030000001200", room=18, head=3),
    _case("REQUEST SENSE, descriptors", "030100001200", room=18, head=4),
    _case("INQUIRY", "120000002400", room=36, head=2),
    _case("INQUIRY, five bytes", "120000000500", room=5, head=0),
    _case("INQUIRY, nothing", "120000000000"),
    _case("INQUIRY, a page without EVPD", "120080002400", room=36),
    _case("INQUIRY, 00h", "12010000ff00", room=255, head=0),
    _case("INQUIRY, 80h", "12018000ff00", room=255, head=0),
    _case("INQUIRY, 83h", "12018300ff00", room=255, head=0),
    _case("INQUIRY, B0h", "1201b0004000", room=64, head=0),
    _case("INQUIRY, B1h", "1201b1004000", room=64, head=0),
    _case("INQUIRY, B2h", "1201b2004000", room=64, head=0),
    _case("INQUIRY, a page that is none", "12017f00ff00", room=255),
    _case("READ CAPACITY(10)", "25000000000000000000", room=8),
    _case("READ CAPACITY(10), an address", "25000000000100000000", room=8),
    _case("READ CAPACITY(16)", "9e100000000000000000000000200000", room=32, head=13),
    _case(
        "READ CAPACITY(16), twelve bytes",
        "9e1000000000000000000000000c0000",
        room=12,
    ),
    _case("SERVICE ACTION IN(16), none", "9e1f0000000000000000000000200000", room=32),
    _case("REPORT LUNS", "a00000000000000000400000", room=64),
    _case("REPORT LUNS, too little room", "a00000000000000000080000", room=8),
    _case("REPORT LUNS, a selection that is none", "a00007000000000000400000", room=64),
    _case("MODE SENSE(6), caching", "1a080800ff00", room=255, head=0),
    _case("MODE SENSE(6), all", "1a083f00ff00", room=255, head=0),
    _case("MODE SENSE(6), what can be changed", "1a084800ff00", room=255, head=0),
    _case("MODE SENSE(6), saved", "1a08c800ff00", room=255),
    _case("MODE SENSE(6), a page that is none", "1a083e00ff00", room=255),
    _case("MODE SENSE(10), caching", "5a08080000000000ff00", room=255, head=0),
    _case("START STOP UNIT, start", "1b0000000100"),
    _case(
        "REPORT SUPPORTED OPERATION CODES",
        "a30c00000000000010000000",
        room=4096,
        head=0,
    ),
    _case("PERSISTENT RESERVE IN, keys", "5e00000000000000ff00", room=255, head=0),
    _case("RESERVE(6)", "160000000000"),
    _case("RELEASE(6)", "170000000000"),
    _case("PREVENT ALLOW MEDIUM REMOVAL", "1e0000000000"),
    _case("FORMAT UNIT", "040000000000"),
    _case("READ TOC", "43000000000000000c00", room=12),
    _case("READ BUFFER", "3c020000000000000400", room=4),
    _case("GET LBA STATUS", "9e120000000000000000000000200000", room=32, head=0),
    _case("a command that is none", "ff0000000000"),
    _case("PERSISTENT RESERVE OUT, no list", "5f000000000000000000"),
    _case("a command that is none, of group 1", "2d000000000000000000"),
    _case("TEST UNIT READY, a reserved bit", "000100000000"),
    _case("READ CAPACITY(10), RELADR", "25010000000000000000", room=8),
    _case("NACA", "000000000004"),
]

CASES = [*QUESTIONS, *READS_AND_WRITES]

"""The ACPI tables that tell a kernel what is in the machine (ACPI 6.5, chapter 5).

The machine is of the kind that ACPI calls hardware-reduced: it has none of a PC's fixed hardware,
no 8259, no 8254, no power management timer. A kernel finds its CPUs and IOAPIC in the MADT, its
devices in the DSDT, and in the FADT how to switch off and how to reset.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from virtiopy.boot import aml
from virtiopy.errors import ConfigError
from virtiopy.memory import GuestMemory

#: Where the tables are: in the BIOS's area, which is no memory that a guest counts as its own.
TABLES = 0xE_0000
TABLES_END = 0x10_0000

LOCAL_APIC = 0xFEE0_0000
IO_APIC = 0xFEC0_0000

#: The sleep registers (4.8.3.7) and the reset register (4.8.3.6), I/O ports of one byte each.
SLEEP_CONTROL_PORT = 0x600
SLEEP_STATUS_PORT = 0x601
RESET_PORT = 0x602
RESET_VALUE = 0x2A
#: What a kernel writes for the state S5, soft off.
SLEEP_TYPE_OFF = 5

SERIAL_PORT, SERIAL_PORTS, SERIAL_GSI = 0x3F8, 8, 4
RTC_PORT, RTC_PORTS = 0x70, 2

_OEM, _OEM_TABLE, _CREATOR = b"VRTIOP", b"VIRTIOPY", b"VIOP"
_HEADER_SIZE = 36

# FADT: flags (table 5.10), and what of a PC's boot architecture is there (table 5.11).
_WBINVD = 1 << 0
_POWER_BUTTON = 1 << 4  # is no fixed hardware
_SLEEP_BUTTON = 1 << 5
_RESET_SUPPORTED = 1 << 10
_HARDWARE_REDUCED = 1 << 20
_VGA_NOT_PRESENT = 1 << 2
_FADT_SIZE = 276
_ADDRESS_IO = 1  # of a generic address structure (5.2.3.2)


@dataclass(slots=True, frozen=True)
class DeviceNode:
    """A device, by the hardware ID that tells its driver: its page of registers, its interrupt."""

    hid: str
    address: int
    size: int
    gsi: int


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """Put the header before a table's body (5.2.6)."""
    header = b"".join(
        [
            signature,
            (_HEADER_SIZE + len(body)).to_bytes(4, "little"),
            bytes([revision, 0]),
            _OEM,
            _OEM_TABLE,
            (1).to_bytes(4, "little"),
            _CREATOR,
            (1).to_bytes(4, "little"),
        ]
    )
    return _with_checksum(header + body, 9)


def _with_checksum(data: bytes, at: int, end: int | None = None) -> bytes:
    """Set the byte `at` so that all up to `end` add up to 0."""
    checksum = -sum(data[:end]) & 0xFF
    return data[:at] + bytes([checksum]) + data[at + 1 :]


def dsdt(devices: Iterable[DeviceNode]) -> bytes:
    """Return the table of devices: these, the serial port, the clock; and the state S5."""
    nodes = [
        aml.device(
            f"V{number:03X}",
            aml.name("_HID", aml.string(node.hid)),
            aml.name("_UID", aml.integer(number)),
            # Devices see what the CPU writes, as all of a PC's do.
            aml.name("_CCA", aml.integer(1)),
            aml.name(
                "_CRS",
                aml.resources(
                    aml.memory(node.address, node.size),
                    aml.interrupt(node.gsi, aml.Trigger.EDGE),
                ),
            ),
        )
        for number, node in enumerate(devices)
    ]
    serial = aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(1)),
        aml.name(
            "_CRS",
            aml.resources(
                aml.ports(SERIAL_PORT, SERIAL_PORTS),
                aml.interrupt(SERIAL_GSI, aml.Trigger.EDGE),
            ),
        ),
    )
    clock = aml.device(
        "RTC",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_CRS", aml.resources(aml.ports(RTC_PORT, RTC_PORTS))),
    )
    off = aml.integer(SLEEP_TYPE_OFF)
    body = aml.name("\\_S5", aml.package(off, off, aml.integer(0), aml.integer(0)))
    return _table(b"DSDT", 2, body + aml.scope("\\_SB", *nodes, serial, clock))


def madt(cpus: int) -> bytes:
    """Return the table of interrupt controllers: a local APIC a CPU, and the IOAPIC (5.2.12)."""
    body = LOCAL_APIC.to_bytes(4, "little") + bytes(4)
    for number in range(cpus):
        body += bytes([0, 8, number, number]) + (1).to_bytes(4, "little")
    body += bytes([1, 12, 0, 0]) + IO_APIC.to_bytes(4, "little") + bytes(4)
    return _table(b"APIC", 5, body)


def _port(address: int) -> bytes:
    """Describe a register of one byte at an I/O port (5.2.3.2)."""
    return bytes([_ADDRESS_IO, 8, 0, 1]) + address.to_bytes(8, "little")


def fadt(dsdt_address: int) -> bytes:
    """Return the fixed description table (5.2.9) of a machine without fixed hardware."""
    flags = _WBINVD | _POWER_BUTTON | _SLEEP_BUTTON | _RESET_SUPPORTED | _HARDWARE_REDUCED
    table = bytearray(_FADT_SIZE - _HEADER_SIZE)

    def put(offset: int, data: bytes) -> None:
        table[offset - _HEADER_SIZE : offset - _HEADER_SIZE + len(data)] = data

    put(109, _VGA_NOT_PRESENT.to_bytes(2, "little"))
    put(112, flags.to_bytes(4, "little"))
    put(116, _port(RESET_PORT) + bytes([RESET_VALUE]))
    put(131, bytes([5]))  # minor version
    put(140, dsdt_address.to_bytes(8, "little"))
    put(244, _port(SLEEP_CONTROL_PORT))
    put(256, _port(SLEEP_STATUS_PORT))
    return _table(b"FACP", 6, bytes(table))


def xsdt(addresses: Iterable[int]) -> bytes:
    """Return the table of tables (5.2.8)."""
    return _table(b"XSDT", 1, b"".join(address.to_bytes(8, "little") for address in addresses))


def rsdp(xsdt_address: int) -> bytes:
    """Return what points at the table of tables (5.2.5.3)."""
    data = b"".join(
        [
            b"RSD PTR ",
            b"\0",
            _OEM,
            bytes([2]),
            bytes(4),
            (36).to_bytes(4, "little"),
            xsdt_address.to_bytes(8, "little"),
            bytes(4),
        ]
    )
    return _with_checksum(_with_checksum(data, 8, 20), 32)


def write_tables(memory: GuestMemory, devices: Iterable[DeviceNode], cpus: int) -> int:
    """Write all tables; return the guest physical address of the RSDP."""
    pointer = position = TABLES
    position += 64

    def put(table: bytes) -> int:
        nonlocal position
        address = position
        position += len(table) + 15 & ~15
        if position > TABLES_END:
            raise ConfigError("The ACPI tables have no room below 1 MiB: attach fewer devices.")
        memory.write(address, table)
        return address

    tables = [put(fadt(put(dsdt(devices)))), put(madt(cpus))]
    memory.write(pointer, rsdp(put(xsdt(tables))))
    return pointer

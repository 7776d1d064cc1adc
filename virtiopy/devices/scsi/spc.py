"""The commands of every logical unit (SPC-4), and the REPORT LUNS well-known logical unit."""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from virtiopy.devices.scsi.command import (
    Additional,
    CheckConditionError,
    Command,
    Sense,
    SenseKey,
    illegal,
    invalid_field,
)
from virtiopy.devices.scsi.commandset import Definition, define
from virtiopy.devices.scsi.unit import LogicalUnit

VENDOR = "VIRTIOPY"
REVISION = "1"

#: Peripheral device types (SPC-4, 6.6.2).
DISK_TYPE, CDROM_TYPE, WELL_KNOWN_TYPE = 0x00, 0x05, 0x1E
#: No logical unit is here, and the target has none of any type (peripheral qualifier 011b).
ABSENT_TYPE = 0x7F

#: VERSION in standard INQUIRY data: SPC-4.
_SPC_4 = 6
#: RESPONSE DATA FORMAT 2, HISUP: LUNs are addressed as SAM says.
_RESPONSE_FORMAT = 0x12
_CMDQUE = 0x02

#: The longest serial number: the T10 vendor's designator with it is still of one byte's length.
SERIAL_MAX = 36

#: CODE SET and DESIGNATOR TYPE of designators (SPC-4, 7.8.6).
_ASCII, _BINARY = 2, 1
_VENDOR_BASED, _NAA = 1, 3


class VpdPage(enum.IntEnum):
    """Vital product data pages (SPC-4, 7.8; SBC-3, 6.6)."""

    SUPPORTED = 0x00
    UNIT_SERIAL_NUMBER = 0x80
    DEVICE_IDENTIFICATION = 0x83
    BLOCK_LIMITS = 0xB0
    BLOCK_CHARACTERISTICS = 0xB1
    LOGICAL_BLOCK_PROVISIONING = 0xB2


@dataclass(slots=True, frozen=True)
class Identity:
    """What a logical unit calls itself: ASCII, its product and its serial number, or none."""

    product: str
    serial: str = ""


class PrimaryUnit(LogicalUnit):
    """A logical unit with what SPC-4 asks of each."""

    #: The VERSION DESCRIPTORs of standard INQUIRY data (SPC-4, 6.6.2).
    versions: ClassVar[Sequence[int]] = (0x00A0, 0x0460)  # SAM-5, SPC-4

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        super().__init__()
        #: The LUNs of the target, as REPORT LUNS lists them; set by the device.
        self.list_units: Callable[[], Sequence[bytes]] = list

    def commands(self) -> Sequence[Definition]:
        """Return what every unit has."""
        return [
            *super().commands(),
            define("00 00 00 00 00 00", self._test_unit_ready),
            define("03 01 00 00 ff 00", self._request_sense, always=True),
            define("12 01 ff ff ff 00", self._inquiry, always=True),
            define("a0 00 ff 00 00 00 ff ff ff ff 00 00", self._report_luns, always=True),
            define("a3 0c 87 ff ff ff ff ff ff ff 00 00", self._report_opcodes),
        ]

    def check_ready(self) -> None:
        """Refuse where the medium cannot be used."""

    def _test_unit_ready(self, command: Command) -> int:
        self.check_ready()
        return 0

    def _request_sense(self, command: Command) -> int:
        sense = self.take_attention()
        data = sense.descriptors() if command.bit(1, 0) else sense.fixed()
        return command.answer(data, command.number(4, 1))

    # INQUIRY

    def _inquiry(self, command: Command) -> int:
        allocation = command.number(3, 2)
        if not command.bit(1, 0):
            if command.cdb[2]:
                raise invalid_field(2)
            return command.answer(self._standard_inquiry(), allocation)
        page = self.vpd_pages().get(command.cdb[2])
        if page is None:
            raise invalid_field(2)
        body = page()
        header = bytes([self.peripheral_type, command.cdb[2]]) + len(body).to_bytes(2, "big")
        return command.answer(header + body, allocation)

    def _standard_inquiry(self) -> bytes:
        rest = bytes(2) + bytes([_CMDQUE])
        rest += _padded(VENDOR, 8) + _padded(self.identity.product, 16) + _padded(REVISION, 4)
        rest = rest.ljust(53, b"\0") + b"".join(v.to_bytes(2, "big") for v in self.versions)
        rest = rest.ljust(69, b"\0")
        head = [self.peripheral_type, self.removable << 7, _SPC_4, _RESPONSE_FORMAT, len(rest)]
        return bytes(head) + rest

    def vpd_pages(self) -> Mapping[int, Callable[[], bytes]]:
        """Return what gives the bytes of each vital product data page, after its header."""
        pages: dict[int, Callable[[], bytes]] = {
            VpdPage.SUPPORTED: lambda: bytes(sorted(self.vpd_pages())),
            VpdPage.DEVICE_IDENTIFICATION: self._identification,
        }
        if self.identity.serial:
            pages[VpdPage.UNIT_SERIAL_NUMBER] = self.identity.serial.encode
        return pages

    def _identification(self) -> bytes:
        # T10 vendor ID based: the vendor, the product, the serial number (SPC-4, 7.8.6.4).
        name = _padded(VENDOR, 8) + _padded(self.identity.product, 16)
        name += self.identity.serial.encode()
        found = _designator(_ASCII, _VENDOR_BASED, name)
        if self.identity.serial:
            # NAA locally assigned: 3h and 60 bits of the serial number's (SPC-4, 7.8.6.6.4).
            number = _hash60(self.identity.serial)
            found += _designator(_BINARY, _NAA, (3 << 60 | number).to_bytes(8, "big"))
        return found

    # REPORT LUNS (SPC-4, 6.33)

    def _report_luns(self, command: Command) -> int:
        allocation = command.number(6, 4)
        select = command.cdb[2]
        if select not in {0, 1, 2}:
            raise invalid_field(2)
        # 0: all but well-known logical units; 1: only those; 2: all.
        found = [] if select == 1 else list(self.list_units())
        if select:
            found.append(bytes.fromhex("c101 000000000000"))
        data = b"".join(found)
        return command.answer(len(data).to_bytes(4, "big") + bytes(4) + data, allocation)

    # REPORT SUPPORTED OPERATION CODES (SPC-4, 6.35)

    def _report_opcodes(self, command: Command) -> int:
        options, opcode = command.cdb[2] & 7, command.cdb[3]
        action, allocation = command.number(4, 2), command.number(6, 4)
        timeouts = command.bit(2, 7)
        if options == 0:
            entries = [_opcode_entry(item, timeouts) for item in self.command_set.definitions]
            data = b"".join(entries)
            return command.answer(len(data).to_bytes(4, "big") + data, allocation)
        actions = [i.service_action for i in self.command_set.definitions if i.opcode == opcode]
        has_actions = any(item is not None for item in actions)
        if options > 3 or (options == 1 and has_actions):
            raise invalid_field(2)
        if options == 2 and actions and not has_actions:
            raise invalid_field(2)
        found = self.command_set.find(opcode, action if has_actions else None)
        if found is None or (options == 3 and not has_actions and action):
            # SUPPORT 001b: it is not.
            return command.answer(bytes([0, 1, 0, 0]), allocation)
        data = bytes([0, timeouts << 7 | 3]) + len(found.usage).to_bytes(2, "big") + found.usage
        return command.answer(data + (_TIMEOUTS if timeouts else b""), allocation)


#: A command timeouts descriptor that names none (SPC-4, 6.35.4).
_TIMEOUTS = (10).to_bytes(2, "big") + bytes(10)


def _opcode_entry(item: Definition, timeouts: bool) -> bytes:
    action = item.service_action
    flags = timeouts << 1 | (action is not None)
    entry = bytes([item.opcode, 0]) + (action or 0).to_bytes(2, "big") + bytes([0, flags])
    return entry + len(item.usage).to_bytes(2, "big") + (_TIMEOUTS if timeouts else b"")


def _padded(text: str, length: int) -> bytes:
    return text.encode()[:length].ljust(length)


def _designator(code_set: int, kind: int, data: bytes) -> bytes:
    return bytes([code_set, kind, 0, len(data)]) + data


def _hash60(text: str) -> int:
    """Return 60 bits that are the same for the same text (FNV-1a, folded)."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return (value >> 60) ^ value & (1 << 60) - 1


class AbsentUnit(PrimaryUnit):
    """What answers where a target has no logical unit (SPC-4, 6.6.1; SAM-5, 4.6.7)."""

    peripheral_type = ABSENT_TYPE

    def __init__(self) -> None:
        super().__init__(Identity("NO UNIT"))

    def commands(self) -> Sequence[Definition]:
        """Return the commands that are answered all the same."""
        return [item for item in super().commands() if item.always]

    def execute(self, command: Command) -> int:
        """Serve it, or say that there is no logical unit."""
        if self.command_set.find(command.cdb[0], None) is None:
            raise illegal(Additional.LOGICAL_UNIT_NOT_SUPPORTED)
        return super().execute(command)

    def execute_at_once(self, command: Command) -> int | None:
        """Do the same: it waits for nothing."""
        return self.execute(command)

    def take_attention(self) -> Sense:
        """Return why no command is served."""
        return Sense(SenseKey.ILLEGAL_REQUEST, Additional.LOGICAL_UNIT_NOT_SUPPORTED)


class ReportLunsUnit(PrimaryUnit):
    """The REPORT LUNS well-known logical unit (SPC-4, 8.2)."""

    peripheral_type = WELL_KNOWN_TYPE

    def __init__(self) -> None:
        super().__init__(Identity("REPORT LUNS"))


def not_ready(additional: Additional) -> CheckConditionError:
    """Return what a command ends with whose medium cannot be used."""
    return CheckConditionError(Sense(SenseKey.NOT_READY, additional))

"""A command for a logical unit, and how it ends: status and sense data (SAM-5, SPC-4)."""

import enum
from dataclasses import dataclass

from virtiopy.virtqueue.buffers import Buffers, gather, scatter, split_at, total


class ScsiStatus(enum.IntEnum):
    """Status codes (SAM-5, 5.3.1)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    TASK_ABORTED = 0x40


class SenseKey(enum.IntEnum):
    """Sense keys (SPC-4, 4.5.6)."""

    NO_SENSE = 0x0
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    MISCOMPARE = 0xE


class Additional(enum.IntEnum):
    """Additional sense codes with their qualifiers (SPC-4, annex E): code << 8 | qualifier."""

    NONE = 0x0000
    INITIALIZING_COMMAND_REQUIRED = 0x0402
    WRITE_ERROR = 0x0C00
    UNRECOVERED_READ_ERROR = 0x1100
    PARAMETER_LIST_LENGTH_ERROR = 0x1A00
    MISCOMPARE_DURING_VERIFY = 0x1D00
    INVALID_COMMAND_OPERATION_CODE = 0x2000
    LBA_OUT_OF_RANGE = 0x2100
    INVALID_FIELD_IN_CDB = 0x2400
    LOGICAL_UNIT_NOT_SUPPORTED = 0x2500
    INVALID_FIELD_IN_PARAMETER_LIST = 0x2600
    WRITE_PROTECTED = 0x2700
    SPACE_ALLOCATION_FAILED = 0x2707
    MEDIUM_MAY_HAVE_CHANGED = 0x2800
    POWER_ON_OR_RESET = 0x2900
    I_T_NEXUS_LOSS = 0x2907
    MODE_PARAMETERS_CHANGED = 0x2A01
    CAPACITY_DATA_CHANGED = 0x2A09
    SAVING_PARAMETERS_NOT_SUPPORTED = 0x3900
    MEDIUM_NOT_PRESENT = 0x3A00
    INVALID_FIELD_FOR_MEDIUM = 0x6400
    REPORTED_LUNS_CHANGED = 0x3F0E
    MEDIUM_REMOVAL_PREVENTED = 0x5302


#: Bytes of sense data in the fixed format without vendor's bytes.
FIXED_SENSE_SIZE = 18


@dataclass(slots=True, frozen=True)
class Sense:
    """Sense data. `pointer` is the byte of the CDB that was wrong; `information` the command's."""

    key: SenseKey
    additional: Additional
    pointer: int | None = None
    information: int | None = None

    def fixed(self) -> bytes:
        """Return it in the fixed format (SPC-4, 4.5.3)."""
        data = bytearray(FIXED_SENSE_SIZE)
        data[0] = 0x70
        if self.information is not None and self.information < 1 << 32:
            data[0] |= 0x80  # VALID
            data[3:7] = self.information.to_bytes(4, "big")
        data[2] = self.key
        data[7] = FIXED_SENSE_SIZE - 8
        data[12:14] = self.additional.to_bytes(2, "big")
        if self.pointer is not None:
            data[15:18] = self._field_pointer(self.pointer)
        return bytes(data)

    def descriptors(self) -> bytes:
        """Return it in the descriptor format (SPC-4, 4.5.2)."""
        found = b""
        if self.information is not None:
            found += bytes([0x00, 0x0A, 0x80, 0]) + self.information.to_bytes(8, "big")
        if self.pointer is not None:
            found += bytes([0x02, 0x06, 0, 0]) + self._field_pointer(self.pointer) + bytes(1)
        additional = self.additional.to_bytes(2, "big")
        return bytes([0x72, self.key]) + additional + bytes(3) + bytes([len(found)]) + found

    @staticmethod
    def _field_pointer(pointer: int) -> bytes:
        # SKSV and C/D: it points into the CDB (SPC-4, 4.5.2.4.2).
        return bytes([0xC0]) + pointer.to_bytes(2, "big")


NO_SENSE = Sense(SenseKey.NO_SENSE, Additional.NONE)


class CheckConditionError(Exception):
    """A command that ends with CHECK CONDITION and this sense data."""

    def __init__(self, sense: Sense, reason: str = "") -> None:
        super().__init__(reason or sense.additional.name)
        self.sense = sense


class OverrunError(Exception):
    """A command whose CDB asks for more data than its buffers have: VIRTIO_SCSI_S_OVERRUN."""


def illegal(additional: Additional, pointer: int | None = None) -> CheckConditionError:
    """Return what a command ends with that asks for what cannot be."""
    return CheckConditionError(Sense(SenseKey.ILLEGAL_REQUEST, additional, pointer))


def invalid_field(pointer: int) -> CheckConditionError:
    """Return what a command ends with whose CDB is wrong in byte `pointer`."""
    return illegal(Additional.INVALID_FIELD_IN_CDB, pointer)


@dataclass(slots=True, frozen=True)
class Command:
    """A CDB and its data buffers, of which one at least is empty."""

    cdb: bytes
    data_out: Buffers
    data_in: Buffers

    def number(self, offset: int, size: int) -> int:
        """Return a field of the CDB."""
        return int.from_bytes(self.cdb[offset : offset + size], "big")

    def bit(self, offset: int, bit: int) -> bool:
        """Return a bit of the CDB."""
        return bool(self.cdb[offset] >> bit & 1)

    def room(self, length: int) -> Buffers:
        """Return the first `length` bytes of the data-in buffer; raises OverrunError."""
        if length > total(self.data_in):
            raise OverrunError(f"{length} bytes for a data-in buffer of {total(self.data_in)}")
        return split_at(self.data_in, length)[0]

    def sent(self, length: int) -> Buffers:
        """Return the first `length` bytes of the data-out buffer; raises OverrunError."""
        if length > total(self.data_out):
            raise OverrunError(f"{length} bytes of a data-out buffer of {total(self.data_out)}")
        return split_at(self.data_out, length)[0]

    def parameters(self, length: int) -> bytes:
        """Return a parameter list of `length` bytes; raises OverrunError."""
        return gather(self.sent(length))

    def answer(self, data: bytes, allocation: int) -> int:
        """Give up to `allocation` bytes of `data`; returns how many. Raises OverrunError."""
        return scatter(self.room(allocation), data[:allocation])

"""Commands to a SCSI unit of this kernel's, by SG_IO (the kernel's scsi/sg.h, version 3)."""

import ctypes
import fcntl
from dataclasses import dataclass
from pathlib import Path

from virtiopy.closing import Closing

_SG_IO = 0x2285
_TO_DEVICE, _FROM_DEVICE, _NO_DATA = -2, -3, -1
_SENSE_SIZE = 96
_MILLISECONDS = 60_000

#: What is in a buffer until the unit writes it.
STALE = 0xEE


class _Header(ctypes.Structure):
    """struct sg_io_hdr."""

    _fields_ = (
        ("interface_id", ctypes.c_int),
        ("dxfer_direction", ctypes.c_int),
        ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte),
        ("iovec_count", ctypes.c_ushort),
        ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p),
        ("cmdp", ctypes.c_void_p),
        ("sbp", ctypes.c_void_p),
        ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("pack_id", ctypes.c_int),
        ("usr_ptr", ctypes.c_void_p),
        ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte),
        ("msg_status", ctypes.c_ubyte),
        ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort),
        ("driver_status", ctypes.c_ushort),
        ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint),
        ("info", ctypes.c_uint),
    )


@dataclass(slots=True, frozen=True)
class Answered:
    """What a unit answers: its status, sense data, the data, and what is left of the room."""

    status: int
    sense: bytes
    data: bytes
    residual: int


class GenericUnit(Closing):
    """An open /dev/sgN."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)

    def close(self) -> None:
        self._file.close()

    def ask(self, cdb: bytes, data: bytes, room: int) -> Answered:
        """Send a command with `data`, or with `room` for so many bytes; raises OSError."""
        content = data or bytes([STALE]) * room
        buffer = ctypes.create_string_buffer(content, max(1, len(content)))
        command = ctypes.create_string_buffer(cdb, len(cdb))
        sense = ctypes.create_string_buffer(_SENSE_SIZE)
        header = _Header(
            interface_id=ord("S"),
            dxfer_direction=_TO_DEVICE if data else _FROM_DEVICE if room else _NO_DATA,
            cmd_len=len(cdb),
            mx_sb_len=_SENSE_SIZE,
            dxfer_len=len(content),
            dxferp=ctypes.addressof(buffer),
            cmdp=ctypes.addressof(command),
            sbp=ctypes.addressof(sense),
            timeout=_MILLISECONDS,
        )
        fcntl.ioctl(self._file, _SG_IO, header)
        if header.host_status:
            raise OSError(f"the host adapter says {header.host_status:#x}")
        return Answered(
            header.status,
            sense.raw[: header.sb_len_wr],
            buffer.raw[: max(0, room - header.resid)],
            header.resid,
        )

"""CD-ROMs: the multi-media commands (MMC-6), for a disc of one session with one data track."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from virtiopy.devices.disk import Disk
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
from virtiopy.devices.scsi.modes import ModePage, ModeUnit, PageControl, PageReader
from virtiopy.devices.scsi.spc import CDROM_TYPE, Identity, not_ready
from virtiopy.virtqueue.buffers import Buffers, split_at, total

#: Bytes of a block.
BLOCK_SIZE = 2048

#: Features and profiles of GET CONFIGURATION (MMC-6, 5.3 and 5.4).
_PROFILE_LIST, _CORE, _REMOVABLE, _RANDOM_READABLE, _CD_READ = (
    0x0000,
    0x0001,
    0x0003,
    0x0010,
    0x001E,
)
_CD_ROM_PROFILE = 0x0008

#: GET EVENT STATUS NOTIFICATION (MMC-6, 6.6): the class of media events, and its events.
_MEDIA_CLASS = 4
_NO_CHANGE, _NEW_MEDIA, _MEDIA_REMOVAL = 0, 2, 3

#: Track numbers and the control field of a table of contents (MMC-6, 6.25).
_LEAD_OUT_TRACK = 0xAA
_DATA_TRACK = 0x14

#: Frames of a second, and of the two seconds before the first block.
_FRAMES, _PREGAP = 75, 150


class Cdrom(ModeUnit):
    """A CD-ROM drive, and a disc in it that has the content of `disk`."""

    peripheral_type = CDROM_TYPE
    removable = True
    versions: ClassVar[Sequence[int]] = (0x00A0, 0x0460, 0x04E0)  # and MMC-6

    def __init__(self, disk: Disk, *, serial: str = "") -> None:
        self.disk = disk
        #: Whether the disc is in the drive, and its tray closed.
        self.loaded = True
        self._prevented = False
        self._event = _NO_CHANGE
        super().__init__(Identity("CD-ROM", serial))

    @property
    def blocks(self) -> int:
        """Blocks of the disc, the last of which may be filled up with zeroes."""
        return -(-self.disk.size // BLOCK_SIZE)

    def commands(self) -> Sequence[Definition]:
        """Return the commands of a drive."""
        return [
            *super().commands(),
            define("1b 01 00 00 f3 00", self._start_stop),
            define("1e 00 00 00 03 00", self._prevent_removal),
            define("25 00 00 00 00 00 00 00 00 00", self._read_capacity),
            define("28 18 ff ff ff ff 00 ff ff 00", self._read_10, waits=True),
            define("43 02 0f 00 00 00 ff ff ff c0", self._read_toc),
            define("46 03 ff ff 00 00 00 ff ff 00", self._get_configuration, always=True),
            define("4a 01 00 00 ff 00 00 ff ff 00", self._get_events, always=True),
            define("51 07 00 00 00 00 00 ff ff 00", self._read_disc_information),
            define("a8 18 ff ff ff ff ff ff ff ff 00 00", self._read_12, waits=True),
        ]

    # The disc

    def check_ready(self) -> None:
        """Refuse where no disc is in the drive."""
        if not self.loaded:
            raise not_ready(Additional.MEDIUM_NOT_PRESENT)

    def _read_10(self, command: Command) -> int:
        return self._read(command, command.number(7, 2))

    def _read_12(self, command: Command) -> int:
        return self._read(command, command.number(6, 4))

    def _read(self, command: Command, count: int) -> int:
        self.check_ready()
        start = command.number(2, 4)
        if start + count > self.blocks:
            raise illegal(Additional.LBA_OUT_OF_RANGE)
        offset, length = start * BLOCK_SIZE, count * BLOCK_SIZE
        room = command.room(length)
        missing = offset + length - self.disk.size
        try:
            if missing > 0 and length:
                self._read_the_end(offset, room, missing)
            else:
                self.disk.read(offset, room)
        except OSError as error:
            raise CheckConditionError(
                Sense(SenseKey.MEDIUM_ERROR, Additional.UNRECOVERED_READ_ERROR),
                f"the host's disk: {error}",
            ) from error
        return length

    def _read_the_end(self, offset: int, room: Buffers, missing: int) -> None:
        """Read blocks of which the last has `missing` bytes less than a block has."""
        there, beyond = split_at(room, total(room) - missing)
        self.disk.read(offset, there)
        for piece in beyond:
            piece[:] = bytes(len(piece))

    def _read_capacity(self, command: Command) -> int:
        self.check_ready()
        last = min(self.blocks - 1, 0xFFFFFFFF)
        return command.answer(last.to_bytes(4, "big") + BLOCK_SIZE.to_bytes(4, "big"), 8)

    # READ TOC/PMA/ATIP (MMC-6, 6.25)

    def _read_toc(self, command: Command) -> int:
        self.check_ready()
        minutes, allocation = command.bit(1, 1), command.number(7, 2)
        # Before MMC the format was in the last byte, too.
        form = command.cdb[2] & 0xF or command.cdb[9] >> 6
        first = command.cdb[6]
        match form:
            case 0:
                if first > 1 and first != _LEAD_OUT_TRACK:
                    raise invalid_field(6)
                tracks = [(1, 0)] if first <= 1 else []
                tracks.append((_LEAD_OUT_TRACK, self.blocks))
                body = b"".join(_track(number, at, minutes) for number, at in tracks)
            case 1:
                # The first track of the last session, which is the only one.
                body = _track(1, 0, minutes)
            case _:
                raise invalid_field(2)
        # The first and the last track, or session.
        data = (len(body) + 2).to_bytes(2, "big") + bytes([1, 1]) + body
        return command.answer(data, allocation)

    def _read_disc_information(self, command: Command) -> int:
        self.check_ready()
        if command.cdb[1] & 7:
            raise invalid_field(1)
        # A finalized disc with a complete session; one session with one track.
        data = bytes([0x0E, 1, 1, 1, 1]).ljust(32, b"\0")
        return command.answer(len(data).to_bytes(2, "big") + data, command.number(7, 2))

    # The drive

    def _get_configuration(self, command: Command) -> int:
        kind, first = command.cdb[1] & 3, command.number(2, 2)
        if kind == 3:
            raise invalid_field(1)
        current = self.loaded
        profile = _CD_ROM_PROFILE.to_bytes(2, "big") + bytes([current, 0])
        features = [
            (_PROFILE_LIST, 0x03, profile),
            # SCSI, and events of the drive's.
            (_CORE, 0x0B, (1).to_bytes(4, "big") + bytes([1, 0, 0, 0])),
            # A tray that can be locked, and ejects.
            (_REMOVABLE, 0x03, bytes([0x29, 0, 0, 0])),
            (_RANDOM_READABLE, current, BLOCK_SIZE.to_bytes(4, "big") + bytes([0, 1, 1, 0])),
            (_CD_READ, 0x08 | current, bytes(4)),
        ]
        body = b"".join(
            code.to_bytes(2, "big") + bytes([flags, len(data)]) + data
            for code, flags, data in features
            if (code == first if kind == 2 else code >= first and (kind == 0 or flags & 1))
        )
        now = _CD_ROM_PROFILE if current else 0
        data = (len(body) + 4).to_bytes(4, "big") + bytes(2) + now.to_bytes(2, "big") + body
        return command.answer(data, command.number(7, 2))

    def _get_events(self, command: Command) -> int:
        if not command.bit(1, 0):
            # It cannot wait until something happens (POLLED).
            raise invalid_field(1)
        allocation, classes = command.number(7, 2), 1 << _MEDIA_CLASS
        if not command.cdb[4] & classes:
            return command.answer(bytes([0, 2, 0x80, classes]), allocation)
        with self.lock:
            event, self._event = self._event, _NO_CHANGE
        body = bytes([event, 2 if self.loaded else 1, 0, 0])
        return command.answer(bytes([0, 6, _MEDIA_CLASS, classes]) + body, allocation)

    def _prevent_removal(self, command: Command) -> int:
        self._prevented = command.bit(4, 0)
        return 0

    def _start_stop(self, command: Command) -> int:
        power, load, start = command.cdb[4] >> 4, command.bit(4, 1), command.bit(4, 0)
        if power:
            raise invalid_field(4)
        if load:
            self._move(loaded=start)
        return 0

    def _move(self, *, loaded: bool) -> None:
        """Load the disc, or eject it."""
        if not loaded and self.loaded and self._prevented:
            raise illegal(Additional.MEDIUM_REMOVAL_PREVENTED)
        if loaded == self.loaded:
            return
        with self.lock:
            self.loaded = loaded
            self._event = _NEW_MEDIA if loaded else _MEDIA_REMOVAL
        if loaded:
            self.attend(Additional.MEDIUM_MAY_HAVE_CHANGED)

    # Modes

    def mode_pages(self) -> Mapping[int, PageReader]:
        """Return a drive's pages, too."""
        return {
            **super().mode_pages(),
            ModePage.ERROR_RECOVERY: lambda control: bytes(10),
            ModePage.CD_CAPABILITIES: self._capabilities_page,
        }

    def _capabilities_page(self, control: PageControl) -> bytes:
        if control is PageControl.CHANGEABLE:
            return bytes(20)
        # It reads data alone; its tray can be locked, and is (or not), and ejects.
        locked = 0x02 if self._prevented else 0
        return bytes([0, 0, 0x00, 0x00, 0x29 | locked, 0]) + bytes(14)

    # Life

    def reset(self, reason: Additional = Additional.POWER_ON_OR_RESET) -> None:
        """Forget the driver: the disc may be taken out."""
        super().reset(reason)
        self._prevented = False

    def measure(self) -> bool:
        """Take the size that the image has now; it is for the next disc to tell."""
        self.disk.measure()
        return False

    def close(self) -> None:
        """Close the image."""
        self.disk.close()

    @property
    def medium_size(self) -> int:
        """Bytes of its medium; 0 without one."""
        return self.disk.size if self.loaded else 0


def _track(number: int, block: int, minutes: bool) -> bytes:
    """Return a track's descriptor, with its first block."""
    if minutes:
        seconds, frame = divmod(block + _PREGAP, _FRAMES)
        address = bytes([0, min(seconds // 60, 255), seconds % 60, frame])
    else:
        address = min(block, 0xFFFFFFFF).to_bytes(4, "big")
    return bytes([0, _DATA_TRACK, number, 0]) + address

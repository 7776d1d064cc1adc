"""Disks: the block commands (SBC-3)."""

import errno
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

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
from virtiopy.devices.scsi.spc import DISK_TYPE, Identity, VpdPage, not_ready
from virtiopy.virtqueue.buffers import Buffers, gather, split_at, total

#: The smallest logical block, bytes.
BLOCK_SIZE = 512

#: What one command may deallocate or set, bytes, and of how many ranges UNMAP may be (B0h).
MAX_UNMAP_BYTES = 1 << 31
MAX_UNMAP_RANGES = 64
MAX_WRITE_SAME_BYTES = 1 << 26

#: The most blocks of a COMPARE AND WRITE, whose length is a byte.
MAX_COMPARE_BLOCKS = 255

#: Reads up to this length are served at once where the host has the data in memory, bytes.
CACHED_READ_BYTES = 1 << 16

#: MEDIUM ROTATION RATE (B1h): not reported, and a medium that does not rotate.
_RATE_UNKNOWN, _SOLID_STATE = 0, 1

#: Bits of the device-specific parameter of mode parameter headers (SBC-3, 6.5.1).
_WRITE_PROTECTED, _DPO_AND_FUA = 0x80, 0x10

#: WCE in byte 2 of the caching page, which is byte 0 of its values.
_WCE = 0x04
_CACHING_PAGE_SIZE = 18

#: Bytes that are written, or compared, at a time: a pattern is repeated to so many.
_PATTERN_BYTES = 1 << 20


class Exclusion:
    """Lets any number of threads do a thing, or one alone another thing."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._sharing = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Do it beside others."""
        with self._condition:
            self._condition.wait_for(lambda: not self._alone)
            self._sharing += 1
        try:
            yield
        finally:
            with self._condition:
                self._sharing -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Do it while no other does anything."""
        with self._condition:
            self._condition.wait_for(lambda: not self._alone)
            self._alone = True
            self._condition.wait_for(lambda: not self._sharing)
        try:
            yield
        finally:
            with self._condition:
                self._alone = False
                self._condition.notify_all()


class ScsiDisk(ModeUnit):
    """A disk on `disk`, whose blocks are 512 bytes, or as large as direct I/O asks for.

    With `writeback` completed writes may stay volatile until SYNCHRONIZE CACHE: the driver can
    change that (WCE). Its serial number has up to 36 ASCII characters.
    """

    peripheral_type = DISK_TYPE
    versions = (0x00A0, 0x0460, 0x04C0)  # and SBC-3

    def __init__(
        self, disk: Disk, *, serial: str = "", writeback: bool = True, rotational: bool = True
    ) -> None:
        self.disk = disk
        self.block_size = max(BLOCK_SIZE, disk.alignment)
        #: Logical blocks.
        self.blocks = disk.size // self.block_size
        self.writeback = self._initial_writeback = writeback
        self._rotational = rotational
        self._stopped = False
        # COMPARE AND WRITE happens between writes (SBC-3, 5.2).
        self._writes = Exclusion()
        super().__init__(Identity("DISK", serial))

    def commands(self) -> Sequence[Definition]:
        """Return the commands of a disk."""
        read, write, verify = self._read, self._write, self._verify
        return [
            *super().commands(),
            define("08 1f ff ff ff 00", self._read_6, waits=True),
            define("0a 1f ff ff ff 00", self._write_6, waits=True),
            define("1b 01 00 00 f7 00", self._start_stop, waits=True),
            define("25 00 00 00 00 00 00 00 00 00", self._read_capacity_10),
            define("28 18 ff ff ff ff 00 ff ff 00", _sized(read, 2, 4, 7, 2), waits=True),
            define("2a 18 ff ff ff ff 00 ff ff 00", _sized(write, 2, 4, 7, 2), waits=True),
            define("2f 16 ff ff ff ff 00 ff ff 00", _sized(verify, 2, 4, 7, 2), waits=True),
            define("35 02 ff ff ff ff 00 ff ff 00", _sized(self._flush, 2, 4, 7, 2), waits=True),
            define("41 08 ff ff ff ff 00 ff ff 00", self._write_same_10, waits=True),
            define("42 00 00 00 00 00 00 ff ff 00", self._unmap, waits=True),
            define("88" + "18" + "ff" * 12 + "0000", _sized(read, 2, 8, 10, 4), waits=True),
            define("89" + "18" + "ff" * 8 + "000000ff0000", self._compare_and_write, waits=True),
            define("8a" + "18" + "ff" * 12 + "0000", _sized(write, 2, 8, 10, 4), waits=True),
            define("8f" + "16" + "ff" * 12 + "0000", _sized(verify, 2, 8, 10, 4), waits=True),
            define("91" + "02" + "ff" * 12 + "0000", _sized(self._flush, 2, 8, 10, 4), waits=True),
            define("93" + "08" + "ff" * 12 + "0000", self._write_same_16, waits=True),
            define("9e" + "10" + "00" * 8 + "ff" * 4 + "0000", self._read_capacity_16),
            define("a8 18 ff ff ff ff ff ff ff ff 00 00", _sized(read, 2, 4, 6, 4), waits=True),
            define("aa 18 ff ff ff ff ff ff ff ff 00 00", _sized(write, 2, 4, 6, 4), waits=True),
        ]

    def execute_at_once(self, command: Command) -> int | None:
        """Serve what waits for nothing, and reads of what the host has in memory."""
        extent = _READS.get(command.cdb[0])
        if extent is None:
            return super().execute_at_once(command)
        if self._stopped or len(command.cdb) <= extent[2] + extent[3]:
            return None
        start, count = command.number(*extent[:2]), command.number(*extent[2:])
        length = count * self.block_size
        if length > CACHED_READ_BYTES or start + count > self.blocks:
            return None
        if length > total(command.data_in):
            return None
        self._find(command)
        if not self.disk.read_cached(start * self.block_size, command.room(length)):
            return None
        return length

    # Reading and writing

    def check_ready(self) -> None:
        """Refuse where the disk was stopped (SBC-3, 5.20)."""
        if self._stopped:
            raise not_ready(Additional.INITIALIZING_COMMAND_REQUIRED)

    def _check_range(self, start: int, count: int) -> tuple[int, int]:
        """Return the offset and the length in bytes of a range of blocks."""
        self.check_ready()
        if start + count > self.blocks:
            raise illegal(Additional.LBA_OUT_OF_RANGE)
        return start * self.block_size, count * self.block_size

    def _check_writable(self) -> None:
        self.check_ready()
        if self.disk.readonly:
            raise CheckConditionError(Sense(SenseKey.DATA_PROTECT, Additional.WRITE_PROTECTED))

    def _read_6(self, command: Command) -> int:
        return self._read(command, command.number(1, 3), command.number(4, 1) or 256)

    def _write_6(self, command: Command) -> int:
        # Byte 1 has the address's highest bits, and no FUA.
        return self._store(command, command.number(1, 3), command.number(4, 1) or 256, fua=False)

    def _read(self, command: Command, start: int, count: int) -> int:
        offset, length = self._check_range(start, count)
        self._load(offset, command.room(length))
        return length

    def _write(self, command: Command, start: int, count: int) -> int:
        return self._store(command, start, count, fua=command.bit(1, 3))

    def _store(self, command: Command, start: int, count: int, *, fua: bool) -> int:
        self._check_writable()
        offset, length = self._check_range(start, count)
        data = command.sent(length)
        with self._writes.shared(), _writing():
            self.disk.write(offset, data, stable=fua or not self.writeback)
        return length

    def _load(self, offset: int, buffers: Buffers) -> None:
        try:
            self.disk.read(offset, buffers)
        except OSError as error:
            raise CheckConditionError(
                Sense(SenseKey.MEDIUM_ERROR, Additional.UNRECOVERED_READ_ERROR),
                f"the host's disk: {error}",
            ) from error

    def _content(self, offset: int, length: int) -> memoryview:
        data = memoryview(bytearray(length))
        self._load(offset, [data])
        return data

    def _verify(self, command: Command, start: int, count: int) -> int:
        offset, length = self._check_range(start, count)
        match command.cdb[1] >> 1 & 3:  # BYTCHK
            case 0:
                # The host's storage knows for itself whether it can be read.
                return 0
            case 1:
                rest: Buffers = command.sent(length)
                for at in range(0, length, _PATTERN_BYTES):
                    part, rest = split_at(rest, _PATTERN_BYTES)
                    self._compare(offset, gather(part), at)
                return length
            case 3:
                if length > MAX_WRITE_SAME_BYTES:
                    raise invalid_field(10 if command.cdb[0] == _VERIFY_16 else 7)
                block = gather(command.sent(self.block_size if count else 0))
                if not count:
                    return 0
                pattern = block * (min(length, _PATTERN_BYTES) // len(block))
                for at in range(0, length, len(pattern)):
                    self._compare(offset, pattern[: length - at], at)
                return len(block)
            case _:
                raise invalid_field(1)

    def _compare(self, offset: int, data: bytes, at: int = 0) -> None:
        """Compare what is `at` bytes after an offset; raises CheckConditionError."""
        found = self._content(offset + at, len(data))
        if found != data:
            first = at + next(i for i, byte in enumerate(data) if byte != found[i])
            raise CheckConditionError(
                Sense(SenseKey.MISCOMPARE, Additional.MISCOMPARE_DURING_VERIFY, information=first)
            )

    def _compare_and_write(self, command: Command) -> int:
        self._check_writable()
        offset, length = self._check_range(command.number(2, 8), command.number(13, 1))
        data = gather(command.sent(2 * length))
        with self._writes.alone(), _writing():
            self._compare(offset, data[:length])
            new = memoryview(data)[length:]
            self.disk.write(offset, [new], stable=command.bit(1, 3) or not self.writeback)
        return len(data)

    def _flush(self, command: Command, start: int, count: int) -> int:
        self._check_range(start, count)
        with _writing():
            self.disk.flush()
        return 0

    def _commit(self) -> None:
        if not self.writeback:
            self.disk.flush()

    # Deallocating and setting

    def _write_same_10(self, command: Command) -> int:
        return self._write_same(command, command.number(2, 4), command.number(7, 2))

    def _write_same_16(self, command: Command) -> int:
        return self._write_same(command, command.number(2, 8), command.number(10, 4))

    def _write_same(self, command: Command, start: int, count: int) -> int:
        self._check_writable()
        if not 0 < count * self.block_size <= MAX_WRITE_SAME_BYTES:
            # WSNZ: no count stands for all the rest (B0h).
            raise invalid_field(7 if command.cdb[0] == 0x41 else 10)
        offset, length = self._check_range(start, count)
        block = gather(command.sent(self.block_size))
        unmap = command.bit(1, 3)
        with self._writes.shared(), _writing():
            if not any(block):
                self.disk.write_zeroes(offset, length, unmap=unmap and self.disk.can_punch_holes)
            else:
                # Deallocated blocks would not read as this one: it is written (SBC-3, 5.43).
                pattern = memoryview(block * (min(length, _PATTERN_BYTES) // len(block)))
                for at in range(0, length, len(pattern)):
                    self.disk.write(offset + at, [pattern[: length - at]])
            self._commit()
        return len(block)

    def _unmap(self, command: Command) -> int:
        self._check_writable()
        data = command.parameters(command.number(7, 2))
        if not data:
            return 0
        if len(data) < 8:
            raise illegal(Additional.PARAMETER_LIST_LENGTH_ERROR)
        size = int.from_bytes(data[2:4], "big")
        # What is no whole descriptor is ignored, as what the list has no room for (SBC-3, 5.28.2).
        descriptors = [data[at : at + 16] for at in range(8, min(8 + size, len(data)) - 15, 16)]
        ranges = [
            (int.from_bytes(item[:8], "big"), int.from_bytes(item[8:12], "big"))
            for item in descriptors
        ]
        blocks = sum(count for _, count in ranges)
        if len(ranges) > MAX_UNMAP_RANGES or blocks * self.block_size > MAX_UNMAP_BYTES:
            raise illegal(Additional.INVALID_FIELD_IN_PARAMETER_LIST)
        extents = [self._check_range(start, count) for start, count in ranges]
        with self._writes.shared(), _writing():
            for offset, length in extents:
                self.disk.discard(offset, length)
            self._commit()
        return len(data)

    # What it is

    def _read_capacity_10(self, command: Command) -> int:
        self.check_ready()
        last = min(self.blocks - 1, 0xFFFFFFFF)
        return command.answer(last.to_bytes(4, "big") + self.block_size.to_bytes(4, "big"), 8)

    def _read_capacity_16(self, command: Command) -> int:
        self.check_ready()
        data = (self.blocks - 1).to_bytes(8, "big") + self.block_size.to_bytes(4, "big")
        exponent = self._physical_blocks.bit_length() - 1
        # LBPME: blocks can be deallocated.
        provisioning = 0x80 if self._can_unmap else 0
        data += bytes([0, exponent, provisioning, 0])
        return command.answer(data.ljust(32, b"\0"), command.number(10, 4))

    @property
    def _physical_blocks(self) -> int:
        """Logical blocks of a physical one."""
        return max(1, self.disk.physical_block_size // self.block_size)

    @property
    def _can_unmap(self) -> bool:
        return self.disk.can_punch_holes and not self.disk.readonly

    def vpd_pages(self) -> Mapping[int, Callable[[], bytes]]:
        """Return a disk's pages, too."""
        return {
            **super().vpd_pages(),
            VpdPage.BLOCK_LIMITS: self._block_limits,
            VpdPage.BLOCK_CHARACTERISTICS: self._block_characteristics,
            VpdPage.LOGICAL_BLOCK_PROVISIONING: self._provisioning,
        }

    def _block_limits(self) -> bytes:
        unmap = MAX_UNMAP_BYTES // self.block_size if self._can_unmap else 0
        page = bytes([1, MAX_COMPARE_BLOCKS])  # WSNZ
        page += self._physical_blocks.to_bytes(2, "big") + bytes(12)
        page += unmap.to_bytes(4, "big") + (MAX_UNMAP_RANGES if unmap else 0).to_bytes(4, "big")
        page += self._physical_blocks.to_bytes(4, "big") + (0x80000000).to_bytes(4, "big")
        page += (MAX_WRITE_SAME_BYTES // self.block_size).to_bytes(8, "big")
        return page.ljust(0x3C, b"\0")

    def _block_characteristics(self) -> bytes:
        rate = _RATE_UNKNOWN if self._rotational else _SOLID_STATE
        return rate.to_bytes(2, "big").ljust(0x3C, b"\0")

    def _provisioning(self) -> bytes:
        # LBPU, LBPWS, LBPWS10; what was unmapped need not read as zeroes (LBPRZ 0). Thin: 2.
        return bytes([0, 0xE0, 2, 0]) if self._can_unmap else bytes([0, 0, 0, 0])

    # Modes

    def mode_pages(self) -> Mapping[int, PageReader]:
        """Return a disk's pages, too."""
        return {
            **super().mode_pages(),
            ModePage.ERROR_RECOVERY: lambda control: bytes(10),
            ModePage.CACHING: self._caching_page,
        }

    def _caching_page(self, control: PageControl) -> bytes:
        wce = {
            PageControl.CHANGEABLE: True,
            PageControl.DEFAULT: self._initial_writeback,
        }.get(control, self.writeback)
        return bytes([_WCE if wce else 0]).ljust(_CACHING_PAGE_SIZE, b"\0")

    def change_page(self, page: int, values: bytes) -> None:
        """Take a new cache mode; what was volatile until then is stable with it."""
        if page != ModePage.CACHING:
            return
        writeback = bool(values[0] & _WCE)
        with self._writes.alone(), _writing():
            if self.writeback and not writeback:
                self.disk.flush()
            self.writeback = writeback

    def device_specific(self) -> int:
        """Say whether it can be written; DPO and FUA are understood."""
        return _DPO_AND_FUA | (_WRITE_PROTECTED if self.disk.readonly else 0)

    def block_descriptor(self, *, long: bool) -> bytes:
        """Return how many blocks there are of what size."""
        if long:
            return self.blocks.to_bytes(8, "big") + bytes(4) + self.block_size.to_bytes(4, "big")
        blocks = min(self.blocks, 0xFFFFFFFF)
        return blocks.to_bytes(4, "big") + bytes(1) + self.block_size.to_bytes(3, "big")

    # START STOP UNIT

    def _start_stop(self, command: Command) -> int:
        power, load, start = command.cdb[4] >> 4, command.bit(4, 1), command.bit(4, 0)
        if power or load:
            # It knows no power conditions, and its medium cannot be taken out.
            raise invalid_field(4)
        if not start and not command.bit(4, 2):  # NO_FLUSH
            with _writing():
                self.disk.flush()
        self._stopped = not start
        return 0

    # Life

    def reset(self, reason: Additional = Additional.POWER_ON_OR_RESET) -> None:
        """Forget the driver, and what it changed."""
        super().reset(reason)
        self._stopped = False
        self.writeback = self._initial_writeback

    def measure(self) -> bool:
        """Take the size that the disk has now; raises ConfigError for one that it cannot have."""
        self.disk.measure()
        blocks, self.blocks = self.blocks, self.disk.size // self.block_size
        return blocks != self.blocks

    def close(self) -> None:
        """Close the disk."""
        self.disk.close()

    @property
    def medium_size(self) -> int:
        """Bytes of its medium; 0 without one."""
        return self.disk.size


_VERIFY_16 = 0x8F

#: Where READ commands have their first block and their number of blocks: offset and size of each.
_READS = {0x28: (2, 4, 7, 2), 0x88: (2, 8, 10, 4), 0xA8: (2, 4, 6, 4)}


def _sized(
    serve: Callable[[Command, int, int], int], at: int, size: int, count_at: int, count_size: int
) -> Callable[[Command], int]:
    """Return the handler of a command that has an address and a number of blocks there."""

    def handler(command: Command) -> int:
        return serve(command, command.number(at, size), command.number(count_at, count_size))

    return handler


@contextmanager
def _writing() -> Iterator[None]:
    """Answer the host's errors as a disk's."""
    try:
        yield
    except OSError as error:
        sense = Sense(SenseKey.MEDIUM_ERROR, Additional.WRITE_ERROR)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            sense = Sense(SenseKey.DATA_PROTECT, Additional.SPACE_ALLOCATION_FAILED)
        raise CheckConditionError(sense, f"the host's disk: {error}") from error

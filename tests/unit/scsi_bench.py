"""A SCSI host device and its driver, for the tests of its commands and of its queues."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.unit.blk.bench import FakeDisk
from virtiopy.devices.scsi import Address, Cdrom, Scsi, ScsiDisk
from virtiopy.devices.scsi.command import Additional, ScsiStatus, SenseKey
from virtiopy.devices.scsi.requests import Response
from virtiopy.devices.scsi.spc import PrimaryUnit
from virtiopy.memory import GuestMemory
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.virtqueue.driver import Allocator, Piece

MEMORY_SIZE = 8 << 20
CONTROL, EVENTS, REQUESTS = 0, 1, 2
SENSE_SIZE = 96
#: What is in device-writable buffers until the device writes them.
STALE = 0xEE

#: The block commands' example: bytes of a block, and blocks of the disk.
BLOCK = 512
BLOCKS = 64

DISK, CDROM = Address(0, 0), Address(0, 1)


def lun_field(target: int, lun: int) -> bytes:
    """The field as Linux writes it: flat space addressing."""
    return bytes([1, target, lun >> 8 | 0x40, lun & 0xFF]) + bytes(4)


@dataclass(frozen=True)
class Reply:
    """What the driver finds when a request is done."""

    length: int
    response: int
    status: int
    residual: int
    sense: bytes
    data: bytes

    @property
    def good(self) -> bool:
        return (self.response, self.status) == (Response.OK, ScsiStatus.GOOD)

    @property
    def why(self) -> tuple[int, int]:
        """The sense key, and the additional sense code with its qualifier."""
        assert self.status == ScsiStatus.CHECK_CONDITION
        return self.sense[2] & 0xF, int.from_bytes(self.sense[12:14], "big")


def illegal(additional: Additional) -> tuple[int, int]:
    return SenseKey.ILLEGAL_REQUEST, additional


class Bench:
    """A SCSI host device and its driver."""

    def __init__(
        self, memory: GuestMemory, units: Mapping[Address, PrimaryUnit] | None = None
    ) -> None:
        self.memory = memory
        self.disk = FakeDisk()
        self.disc = FakeDisk(readonly=True)
        self.offered: dict[int, Piece] = {}
        self.device = Scsi(
            units
            if units is not None
            else {DISK: ScsiDisk(self.disk, serial="S1"), CDROM: Cdrom(self.disc)}
        )
        self.transport = MmioTransport(self.device, memory, LevelInterrupt(lambda level: None))
        self.driver = MmioDriver(self.transport, memory, Allocator(0x1000, MEMORY_SIZE))

    def start(self, features: Sequence[int] | None = None) -> None:
        self.driver.start(features)
        for address in self.device.units:
            # Each unit tells that it is new, once.
            self.request(b"\0" * 6, lun=lun_field(address.target, address.lun))

    def place(self, data: bytes) -> int:
        address = self.driver.allocator.take(max(1, len(data)))
        self.memory.write(address, data)
        return address

    def add(self, readable: Sequence[bytes], writable: Sequence[int], queue: int) -> list[Piece]:
        pieces = [Piece(self.place(data), len(data)) for data in readable]
        pieces += [Piece(self.place(bytes([STALE]) * n), n, writable=True) for n in writable]
        table = self.driver.allocator.take(16 * len(pieces), 16)
        self.driver.queues[queue].add(pieces, table=table)
        return [piece for piece in pieces if piece.writable]

    def submit(
        self, readable: Sequence[bytes], writable: Sequence[int], queue: int
    ) -> tuple[int, bytes]:
        """Make a buffer available and take it back: the length, and all of the writable bytes."""
        pieces = self.add(readable, writable, queue)
        [used] = self.driver.collect(queue)
        return used.length, b"".join(self.memory.read(p.address, p.length) for p in pieces)

    def request(
        self,
        cdb: bytes | str,
        data: bytes = b"",
        *,
        room: int = 0,
        lun: bytes = lun_field(0, 0),
        tag: int = 7,
        sense_size: int = SENSE_SIZE,
        cdb_size: int = 32,
    ) -> Reply:
        """Submit a well-framed request with `data` to read or `room` to write for the device."""
        cdb = bytes.fromhex(cdb) if isinstance(cdb, str) else cdb
        header = request_header(cdb, lun, tag, cdb_size)
        readable = [header, data] if data else [header]
        writable = [12 + sense_size, room] if room else [12 + sense_size]
        length, written = self.submit(readable, writable, REQUESTS)
        return parse_reply(length, written, sense_size)

    def control(self, request: bytes, room: int = 1) -> bytes:
        length, written = self.submit([request], [room], CONTROL)
        return written[:length]

    def function(self, subtype: int, lun: bytes = lun_field(0, 0), tag: int = 7) -> int:
        [response] = self.control(function_request(subtype, lun, tag))
        return response

    def offer_event(self, size: int = 16) -> None:
        """Give the device a buffer for an event, with a kick."""
        self.offer_event_quietly(size)
        self.driver.kick(EVENTS)

    def offer_event_quietly(self, size: int = 16) -> None:
        """Give the device a buffer for an event."""
        piece = Piece(self.place(bytes([STALE]) * size), size, writable=True)
        self.offered[self.driver.queues[EVENTS].add([piece])] = piece

    def events(self) -> list[tuple[int, bytes, int]]:
        """Take the events that the device gave: their type, their address, their reason."""
        taken = []
        for used in self.driver.queues[EVENTS].take_all_used():
            data = self.memory.read(self.offered.pop(used.head).address, used.length)
            taken.append(struct.unpack("<I8sI", data.ljust(16, b"\0")))
        return taken


def request_header(cdb: bytes, lun: bytes, tag: int, cdb_size: int = 32) -> bytes:
    """The device-readable part of struct virtio_scsi_req_cmd (5.6.6.1), before the data."""
    return lun + struct.pack("<QBBB", tag, 0, 0, 0) + cdb.ljust(cdb_size, b"\0")


def function_request(subtype: int, lun: bytes, tag: int) -> bytes:
    """The device-readable part of struct virtio_scsi_ctrl_tmf (5.6.6.2)."""
    return struct.pack("<II", 0, subtype) + lun + struct.pack("<Q", tag)


def parse_reply(length: int, written: bytes, sense_size: int) -> Reply:
    sense_len, residual, _, status, response = struct.unpack_from("<IIHBB", written)
    answer = 12 + sense_size
    return Reply(
        length,
        response,
        status,
        residual,
        written[12 : 12 + sense_len],
        written[answer : max(length, answer)],
    )

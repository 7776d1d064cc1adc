"""A recorded driver's side of a virtqueue, played again: same descriptors, heads and bytes."""

import os
from collections import deque
from dataclasses import dataclass

from virtiopy import eventfds
from virtiopy._native import CData, ffi, lib
from virtiopy.closing import Closing
from virtiopy.errors import ConfigError, PeerError
from virtiopy.memory import AddressError, GuestMemory
from virtiopy.vhost.user.memory import FrontendMemory
from virtiopy.vhost.user.messages import Request, RingAddresses
from virtiopy.vhost.user.record.format import AvailableEvent, Raw
from virtiopy.virtqueue import layout
from virtiopy.virtqueue.layout import (
    DESCRIPTOR_SIZE,
    INDEX_MODULUS,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_WRITE,
    RingFormat,
    valid_queue_size,
)


@dataclass(slots=True, frozen=True)
class Answer:
    """A chain that was used: what its element says, and what was written up to that length."""

    length: int
    data: bytes


class PlayedRing(Closing):
    """Virtqueue `index` of a recording; it lies where the recording's messages say."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.size = 0
        self.base = 0
        self.addresses: RingAddresses | None = None
        #: Chains that were used and not compared yet.
        self.answers: dict[int, Answer] = {}
        self._order: deque[int] = deque()
        self._strays: list[int] = []
        self._in_flight: dict[int, deque[AvailableEvent]] = {}
        self._eventfds: dict[int, int] = {}
        self._available: CData | None = None
        self._used: CData | None = None
        self._event_idx = False
        # Of the ring as it was started.
        self._size = 0
        self._parts: RingAddresses | None = None
        self._next = self._last_used = self._kicked = 0

    def close(self) -> None:
        """Close the eventfds."""
        for fd in self._eventfds.values():
            os.close(fd)
        self._eventfds = {}

    def eventfd(self, request: int) -> int:
        """Return the eventfd of SET_VRING_KICK, _CALL or _ERR."""
        if request not in self._eventfds:
            self._eventfds[request] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self._eventfds[request]

    def start(self, memory: FrontendMemory, *, event_idx: bool) -> None:
        """Begin where the messages have put the ring; raises ConfigError, PeerError."""
        addresses = self.addresses
        if addresses is None or not valid_queue_size(self.size):
            raise ConfigError(
                f"The recording starts queue {self.index} without addresses or a size: record "
                "again."
            )
        # Later messages may say otherwise, of what this ring has no room for.
        self._size, self._parts = self.size, addresses
        self._available, self._used = self._find(memory, addresses)
        self._event_idx = event_idx
        if self.base != self._next or not self._in_flight:
            # As the driver left it when the recording began.
            self._next = self._last_used = self._kicked = self.base % INDEX_MODULUS
            self._available.idx = self._used.idx = self._next
            self._in_flight.clear()

    def memory_changed(self, memory: FrontendMemory) -> None:
        """Look for the ring again; where it is no more, it is not started any more."""
        if self._parts is None:
            return
        try:
            self._available, self._used = self._find(memory, self._parts)
        except (PeerError, AddressError):
            self._parts = self._available = self._used = None

    def _find(self, memory: FrontendMemory, addresses: RingAddresses) -> tuple[CData, CData]:
        areas = layout.areas(RingFormat.SPLIT, self._size)
        available = memory.translate(addresses.available_ring, areas.driver.size)
        used = memory.translate(addresses.used_ring, areas.device.size)
        return (
            ffi.cast("struct vring_avail *", memory.pointer(available, areas.driver.size)),
            ffi.cast("struct vring_used *", memory.pointer(used, areas.device.size)),
        )

    def has(self, head: int) -> bool:
        """Say whether a chain with this head is with the device."""
        return head in self._in_flight

    def make_available(self, memory: GuestMemory, event: AvailableEvent) -> None:
        """Write a chain as it was, and make it available; raises AddressError."""
        if self._available is None:
            raise ConfigError(
                f"The recording has a chain of queue {self.index} before that is started: record "
                "again."
            )
        try:
            _write(memory, event)
        except AddressError:
            if not event.malformed:
                raise
        self._in_flight.setdefault(event.head, deque()).append(event)
        self._available.ring[self._next % self._size] = event.head % INDEX_MODULUS
        self._next = (self._next + 1) % INDEX_MODULUS
        lib.vp_store_release(ffi.addressof(self._available[0], "idx"), self._next)

    def notify(self) -> None:
        """Kick."""
        self._kicked = self._next
        eventfds.signal(self.eventfd(Request.SET_VRING_KICK))

    def notify_if_due(self) -> None:
        """Kick for what was not kicked yet: this device may not poll where the other did."""
        if self._kicked != self._next:
            self.notify()

    def ask_for_call(self) -> None:
        """Ask for a notification of what is used next (2.7.7)."""
        if self._available is None:
            return
        if self._event_idx:
            (self._available.ring + self._size)[0] = self._last_used
        else:
            self._available.flags = 0
        lib.vp_memory_barrier()

    def collect(self, memory: GuestMemory) -> None:
        """Take what was used."""
        if self._used is None:
            return
        used = lib.vp_load_acquire(ffi.addressof(self._used[0], "idx"))
        count = (used - self._last_used) % INDEX_MODULUS
        for _ in range(min(count, self._size)):
            element = self._used.ring[self._last_used % self._size]
            self._last_used = (self._last_used + 1) % INDEX_MODULUS
            self._take(memory, int(element.id), int(element.len))
        # More than the ring has can only be a wrong index.
        self._last_used = used

    def _take(self, memory: GuestMemory, head: int, length: int) -> None:
        chains = self._in_flight.get(head)
        if not chains:
            self._strays.append(head)
            return
        event = chains.popleft()
        if not chains:
            del self._in_flight[head]
        data = b"" if event.malformed else _written(memory, event, length)
        self.answers[event.chain] = Answer(length, data)
        self._order.append(event.chain)

    def take_strays(self) -> list[int]:
        """Return the heads of used elements that were no chain's."""
        strays, self._strays = self._strays, []
        return strays

    def ahead_of(self, chain: int) -> int | None:
        """Take a used chain out of the order; return the one that was used first, if another."""
        first = self._order[0]
        self._order.remove(chain)
        return None if first == chain else first


def _write(memory: GuestMemory, event: AvailableEvent) -> None:
    data, at = event.data, 0
    for descriptor in event.descriptors:
        table, index, address, length, flags, _ = descriptor
        memory.write(table + DESCRIPTOR_SIZE * index, _pack(descriptor))
        if not flags & (VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_INDIRECT) and not event.malformed:
            memory.write(address, data[at : at + length])
            at += length


def _pack(descriptor: Raw) -> bytes:
    _, _, address, length, flags, following = descriptor
    entry = ffi.new("struct vring_desc *", (address, length, flags, following))
    return bytes(ffi.buffer(entry))


def _written(memory: GuestMemory, event: AvailableEvent, length: int) -> bytes:
    pieces: list[bytes] = []
    for _, _, address, size, flags, _ in event.descriptors:
        if flags & VIRTQ_DESC_F_WRITE and not flags & VIRTQ_DESC_F_INDIRECT:
            count = min(size, length)
            pieces.append(memory.read(address, count))
            length -= count
    return b"".join(pieces)

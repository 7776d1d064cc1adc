"""The way of frames between one pair of virtqueues and the host's link (5.1.9).

Where a frame can be lost, and what counts it:

- No frame is read from the link before the driver has a buffer for it. Until then frames wait in
  the link's own queue; when that is full the link drops them, and counts them itself (a tap does:
  `ip -s link`, TX dropped).
- Without MRG_RXBUF a frame that is longer than the next buffer is dropped: `rx_dropped_too_long`.
- With MRG_RXBUF a frame that needs more buffers than there are is kept until the driver has added
  some; if it finds too few even then it is dropped: `rx_dropped_no_buffer`.
- Whatever else is dropped is bad, unwanted, or refused by the host: see `NetCounters`.
- A frame to be sent for which the link has no room stays in its buffer until there is.
"""

import errno
import logging
from collections import deque
from dataclasses import dataclass

from virtiopy._native import ffi
from virtiopy.devices.gate import Gate
from virtiopy.devices.net.control import ReceiveFilter
from virtiopy.devices.net.features import Terms
from virtiopy.devices.net.header import (
    CHECKSUM_FLAGS,
    ETHERNET_HEADER,
    ETHERNET_HEADER_MOST,
    GSO_NONE,
    HEADER_SIZE,
    LEGACY_HEADER_SIZE,
    MAX_GSO_FRAME,
    NEEDS_CSUM,
    HeaderError,
    longest_frame,
)
from virtiopy.devices.net.link import FrameLink
from virtiopy.errors import DriverError
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, split_at, total
from virtiopy.virtqueue.queue import BATCH, Chain, Virtqueue

log = logging.getLogger(__name__)

#: Frames in one direction before others have their turn.
BUDGET = 256

#: Frames that are dropped at a time: more than a tap's own queue holds, unless it is told to.
DROPS = 1024

#: Frames that wait outside the link, bytes: more are dropped.
_WAITING_MOST = 16 << 20

#: Pieces that are handed to the link at once (IOV_MAX).
_PIECES = 1024

#: What is looked at of a received frame: the header, and Ethernet's with its tags, bytes.
_START = HEADER_SIZE + ETHERNET_HEADER_MOST

_SHORTEST = HEADER_SIZE + ETHERNET_HEADER
#: gso_size, and where num_buffers begins, in struct virtio_net_hdr.
_GSO_SIZE = slice(4, 6)
_NUM_BUFFERS = ffi.offsetof("struct virtio_net_hdr_v1", "num_buffers")


@dataclass(slots=True)
class NetCounters:
    """Frames by what became of them, since the device was made."""

    #: Given to the driver.
    rx_frames: int = 0
    #: Not wanted by the driver's receive filter (5.1.9.5.1, 5.1.9.5.2, 5.1.9.5.3).
    rx_filtered: int = 0
    #: Shorter than an Ethernet header.
    rx_dropped_too_short: int = 0
    #: Longer than the MTU or, without MRG_RXBUF, than the next buffer.
    rx_dropped_too_long: int = 0
    #: In need of more buffers than the driver had after two kicks (MRG_RXBUF).
    rx_dropped_no_buffer: int = 0
    #: Came while all receive queues were being reset (5.1.9.5.6.2).
    rx_dropped_queue_reset: int = 0
    #: With offloads that were not negotiated, queued by the link for a driver before this one, or
    #: to be segmented without saying how.
    rx_dropped_offload: int = 0
    #: No frames, but receive buffers without room for the header, given back unused.
    rx_buffers_too_small: int = 0
    #: Taken by the link.
    tx_frames: int = 0
    #: With a struct virtio_net_hdr that lies or is not whole.
    tx_dropped_header: int = 0
    #: Shorter than an Ethernet header.
    tx_dropped_too_short: int = 0
    #: Longer than the MTU, or than what can be segmented.
    tx_dropped_too_long: int = 0
    #: On a transmit queue beyond virtqueue_pairs (5.1.9.5.6.1).
    tx_dropped_disabled_queue: int = 0
    #: Sent while the link was down.
    tx_dropped_link_down: int = 0
    #: Refused by the host for another reason.
    tx_dropped_refused: int = 0
    #: No frames, but how often one had to wait for room in the link.
    tx_waits: int = 0


class Receiver:
    """A receive virtqueue, filled from queue number `pair` of the link."""

    def __init__(self, link: FrameLink, pair: int, counts: NetCounters) -> None:
        self._link = link
        self._pair = pair
        self._counts = counts
        #: The queues of the link whose frames come here: its own, and those of pairs whose receive
        #: queues are being reset.
        self.sources = [pair]
        self.queue: Virtqueue | None = None
        #: Where it is shut, frames that are read wait here: for all pairs but the first, of which a
        #: VMM may have said that they are used no more.
        self.gate: Gate | None = None
        #: Frames that were read from the link, and come before those in there.
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        #: Whether there are buffers, so that frames of the link's can be read.
        self.wants_frames = False
        # Buffers that were popped and not used yet, with their bytes, and all their bytes. They
        # are used in this order; the first one has room for a header.
        self._ready: deque[tuple[Chain, int]] = deque()
        self._room = 0
        # A frame, with its header, that waits for more buffers (MRG_RXBUF).
        self._held: bytes | None = None
        self._used: list[tuple[Chain, int]] = []
        # What the link's header has, and a legacy driver's has not.
        self._gap = memoryview(bytearray(HEADER_SIZE - LEGACY_HEADER_SIZE))
        # Where a frame goes on that is longer than its buffers.
        self._overflow = memoryview(bytearray(HEADER_SIZE + MAX_GSO_FRAME))

    def start(self, queue: Virtqueue, terms: Terms, filter_: ReceiveFilter) -> None:
        """Take the queue, and what was negotiated."""
        self.queue = queue
        self._terms = terms
        self._filter = filter_
        self._enough = terms.rx_longest if terms.mergeable else terms.header_size

    def stop(self) -> None:
        """Forget the queue and its buffers."""
        self.queue = None
        self.wants_frames = False
        self._ready.clear()
        self._room = 0
        if self._held is not None:
            self.put_back(self._held)
        self._held = None

    @property
    def can_stop(self) -> bool:
        """Whether the queue can be delegated now: no frame waits, no buffer was overtaken."""
        return (
            self._held is None
            and not self._waiting
            and (self.queue is None or len(self._ready) <= self.queue.can_unpop)
        )

    def unpop(self) -> None:
        """Make all buffers available again, for another worker to go on with, or for `run`."""
        if self.queue is not None:
            self.queue.unpop(len(self._ready))
        self._ready.clear()
        self._room = 0

    def run(self, *, kicked: bool) -> bool:
        """Receive until frames or buffers run out, or the budget; `kicked`: for a kick.

        Returns whether the budget ended in malformed buffers. Where it ended in frames, the link
        is readable still. Raises QueueError, and OSError when the link is gone.
        """
        if self.queue is None:
            return False
        try:
            return self._run(self.queue, kicked=kicked)
        finally:
            # All at once: the buffers of a frame are to be seen together (5.1.9.4.1).
            if self._used:
                self.queue.push_many(self._used)
                self._used.clear()

    def _run(self, queue: Virtqueue, *, kicked: bool) -> bool:
        queue.disable_kicks()
        if kicked and self._held is not None:
            room = self._room
            self._deliver_held(queue)
            # A kick that brought nothing may be of before, or of a ring's start.
            if self._held is not None and self._room > room:
                self._counts.rx_dropped_no_buffer += 1
                self._held = None
        self.wants_frames = True
        left = BUDGET
        while left > 0:
            if self._held is not None:
                has_buffers = self._deliver_held(queue)
            else:
                has_buffers = self._make_room(queue, self._enough) or bool(self._ready)
            if has_buffers:
                if not self._receive(queue):
                    return False
                left -= 1
            elif queue.enable_kicks():
                # A batch of malformed buffers.
                left -= BATCH
            else:
                self.wants_frames = False
                return False
        return not has_buffers

    def _make_room(self, queue: Virtqueue, size: int) -> bool:
        """Pop buffers until there is room for `size` bytes; False where they are too few."""
        while self._room < size:
            chains = queue.pop_many(BATCH)
            if not chains:
                return False
            for chain in chains:
                room = total(chain.writable)
                self._ready.append((chain, room))
                self._room += room
            self._skip_small()
        return True

    def _skip_small(self) -> None:
        """Give back the buffers that come next and have no room for a header (5.1.9.3.1)."""
        while self._ready and self._ready[0][1] < self._terms.header_size:
            chain, room = self._ready.popleft()
            self._room -= room
            self._used.append((chain, 0))
            self._counts.rx_buffers_too_small += 1

    def _receive(self, queue: Virtqueue) -> bool:
        """Receive one frame straight into the next buffers; False when the link has none."""
        if self._terms.header_size < HEADER_SIZE:
            return self._receive_for_legacy()
        views, room = self._next_views()
        length = self._read([*views, self._overflow])
        if length is None:
            return False
        if length > room:
            frame = gather(views) + bytes(self._overflow[: length - room])
            if self._admits(frame[:_START], length):
                self._place(queue, frame)
            return True
        start = _first_bytes(views, min(_START, length))
        if self._admits(start, length):
            self._complete(start, length)
        return True

    def _receive_for_legacy(self) -> bool:
        """Receive one frame into the next buffer, whose header is shorter than the link's."""
        views, room = self._next_views()
        header, rest = split_at(views, LEGACY_HEADER_SIZE)
        length = self._read([*header, self._gap, *rest, self._overflow])
        if length is None:
            return False
        start = _first_bytes([*header, self._gap, *rest, self._overflow], min(_START, length))
        if not self._admits(start, length):
            return True
        if length - len(self._gap) > room:
            self._counts.rx_dropped_too_long += 1
        else:
            self._complete(start, length - len(self._gap))
        return True

    def _read(self, buffers: Buffers) -> int | None:
        """Read the next frame of any source; None when there is none, or the gate is shut."""
        if self._waiting:
            if self.gate is not None and self.gate.is_shut:
                return None
            return scatter(buffers, self._take_waiting())
        for source in self.sources:
            try:
                length = self._link.read(source, buffers)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno == errno.EFAULT:
                    # The link is sound: a buffer is no memory any more.
                    raise DriverError("a receive buffer was taken away") from error
                raise
            if self.gate is not None and self.gate.is_shut:
                self.put_back(_first_bytes(buffers, length))
                return None
            return length
        return None

    @property
    def has_frames(self) -> bool:
        """Whether frames wait that were read from the link."""
        return bool(self._waiting)

    @property
    def can_go_on(self) -> bool:
        """Whether `run` has left frames that wait here, and there are buffers for them."""
        return self.wants_frames and bool(self._waiting)

    def put_back(self, frame: bytes) -> None:
        """Have a frame wait, its header before it, that was read and not given to the driver."""
        if self._waiting_bytes + len(frame) > _WAITING_MOST:
            self._counts.rx_dropped_no_buffer += 1
            return
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)

    def _take_waiting(self) -> bytes:
        frame = self._waiting.popleft()
        self._waiting_bytes -= len(frame)
        return frame

    def hand_over(self, other: "Receiver") -> None:
        """Have another receive what waits here and in the link, whose queue is about to be left."""
        while self._waiting:
            other.put_back(self._take_waiting())
        for _ in range(DROPS):
            try:
                length = self._link.read(self._pair, [self._overflow])
            except OSError:
                # There is no more, or the link is gone.
                return
            other.put_back(bytes(self._overflow[:length]))

    def forget_frames(self) -> None:
        """Drop what waits: it was another driver's."""
        self._waiting.clear()
        self._waiting_bytes = 0

    def drop(self) -> None:
        """Take frames from the link, and drop them. Raises OSError when the link is gone."""
        for _ in range(DROPS):
            try:
                self._link.read(self._pair, [self._overflow])
            except BlockingIOError:
                return
            self._counts.rx_dropped_queue_reset += 1

    def _next_views(self) -> tuple[Buffers, int]:
        """Return the buffers for a frame, and their bytes: one, or with MRG_RXBUF enough."""
        chain, room = self._ready[0]
        if room < self._enough:
            pieces: list[memoryview] = []
            room = 0
            for chain, size in self._ready:
                pieces += chain.writable
                room += size
                if room >= self._enough:
                    break
            views: Buffers = pieces
        else:
            views = chain.writable
        if len(views) < _PIECES:
            return views, room
        # More than can be read into at once: the frame is copied.
        return [], 0

    def _admits(self, start: bytes, length: int) -> bool:
        """Say whether the driver is to see a frame of `length` bytes, header and all."""
        counts, terms = self._counts, self._terms
        if length < _SHORTEST:
            counts.rx_dropped_too_short += 1
            return False
        flags, gso_type = start[0], start[1]
        frame = start[HEADER_SIZE:]
        if (flags or gso_type) and not self.may_offload(flags, gso_type, start[_GSO_SIZE]):
            counts.rx_dropped_offload += 1
        elif (
            terms.rx_mtu is not None
            and gso_type == GSO_NONE
            and length - HEADER_SIZE > longest_frame(frame, terms.rx_mtu)
        ):
            # Not even to a driver that would take it (5.1.4.1).
            counts.rx_dropped_too_long += 1
        elif not self._filter.wants(frame):
            counts.rx_filtered += 1
        else:
            return True
        return False

    def may_offload(self, flags: int, gso_type: int, gso_size: bytes) -> bool:
        """Say whether the driver takes what is left to do of a frame, and is told how to do it."""
        if gso_type == GSO_NONE:
            return not flags & NEEDS_CSUM or self._terms.rx_checksum
        # Partial checksum and segment size go with every other type (5.1.9.4.1).
        return bool(gso_type in self._terms.rx_gso_types and flags & NEEDS_CSUM and any(gso_size))

    def _place(self, queue: Virtqueue, frame: bytes) -> None:
        """Copy a frame that is longer than its buffers into more; hold it where they are few."""
        if not self._terms.mergeable:
            # It is to be in a single buffer (5.1.9.3.2).
            self._counts.rx_dropped_too_long += 1
            return
        self._held = frame
        self._deliver_held(queue)

    def _deliver_held(self, queue: Virtqueue) -> bool:
        """Copy the frame that waits into buffers; False where there are too few."""
        frame = self._held
        if frame is None or not self._make_room(queue, len(frame)):
            return False
        self._held = None
        position = 0
        for chain, room in self._ready:
            scatter(chain.writable, frame[position : position + room])
            position += room
            if position >= len(frame):
                break
        self._complete(frame[:HEADER_SIZE], len(frame))
        return bool(self._ready)

    def _complete(self, start: bytes, length: int) -> None:
        """Use the buffers that hold a frame of `length` bytes, and say in its header how many."""
        first = self._ready[0][0].writable
        count = 0
        left = length
        while left > 0:
            chain, room = self._ready.popleft()
            written = min(left, room)
            self._used.append((chain, written))
            self._room -= room
            left -= written
            count += 1
        self._skip_small()
        header = self.header(start, count)[: self._terms.header_size]
        if len(first[0]) >= len(header):
            first[0][: len(header)] = header
        else:
            scatter(first, header)
        self._counts.rx_frames += 1

    def header(self, start: bytes, count: int) -> bytes:
        """Return the struct virtio_net_hdr of a frame in `count` buffers, for the driver.

        `start` is what the frame begins with, the link's header first.
        """
        # Without GUEST_CSUM flags is 0 (5.1.9.4.1), though a tap says DATA_VALID to anybody; the
        # flags besides belong to features that are not offered.
        flags = start[0] & CHECKSUM_FLAGS if self._terms.rx_checksum else 0
        return bytes([flags]) + start[1:_NUM_BUFFERS] + count.to_bytes(2, "little")


class Transmitter:
    """A transmit virtqueue, whose frames go to queue number `pair` of the link."""

    def __init__(self, link: FrameLink, pair: int, counts: NetCounters) -> None:
        self._link = link
        self._pair = pair
        self._counts = counts
        self.queue: Virtqueue | None = None
        #: Whether the link takes frames from this queue (5.1.9.5.6).
        self.enabled = True
        # Popped, and waiting for room in the link.
        self._unsent: list[Chain] = []

    def start(self, queue: Virtqueue, terms: Terms) -> None:
        """Take the queue, and what was negotiated."""
        self.queue = queue
        self._rules = terms.tx
        self._header_size = terms.header_size

    def stop(self) -> None:
        """Forget the queue and its buffers."""
        self.queue = None
        self._unsent = []

    @property
    def waits(self) -> bool:
        """Whether frames wait until the link has room."""
        return bool(self._unsent)

    @property
    def can_stop(self) -> bool:
        """Whether the queue can be delegated now: no frame that waits was overtaken."""
        return self.queue is None or len(self._unsent) <= self.queue.can_unpop

    def unpop(self) -> None:
        """Make all frames available again, for another worker to go on with, or for `run`."""
        if self.queue is not None:
            self.queue.unpop(len(self._unsent))
        self._unsent = []

    def run(self) -> bool:
        """Send what is available; True when the budget ended before the frames did.

        Raises QueueError.
        """
        queue = self.queue
        if queue is None:
            return False
        queue.disable_kicks()
        left = BUDGET
        while left > 0:
            chains = self._unsent or queue.pop_many(min(BATCH, left))
            if not chains:
                if not queue.enable_kicks():
                    return False
                left -= BATCH
                continue
            sent = self._send_many(chains)
            queue.push_many([(chain, 0) for chain in chains[:sent]])
            self._unsent = chains[sent:]
            if self._unsent:
                return False
            left -= sent
        return True

    def _send_many(self, chains: list[Chain]) -> int:
        """Return how many of the buffers are done with: all, unless the link has no room."""
        for index, chain in enumerate(chains):
            try:
                self._send(chain.readable)
            except BlockingIOError:
                self._counts.tx_waits += 1
                return index
        return len(chains)

    def _send(self, readable: Buffers) -> None:
        """Parse, check and send one frame, or count why not; raises BlockingIOError."""
        counts = self._counts
        pieces, frame = split_at(readable, self._header_size)
        # A copy: what was checked is what is sent.
        header = gather(pieces)
        length = total(frame)
        if not self.enabled:
            counts.tx_dropped_disabled_queue += 1
            return
        if len(header) < self._header_size:
            counts.tx_dropped_header += 1
            return
        if length < ETHERNET_HEADER:
            counts.tx_dropped_too_short += 1
            return
        try:
            header = self._rules.check(header.ljust(HEADER_SIZE, b"\0"), frame, length)
        except HeaderError as error:
            counts.tx_dropped_header += 1
            log.info("%s: frame not sent: %s", self._link.name, error)
            return
        if self._is_too_long(header, frame, length):
            counts.tx_dropped_too_long += 1
            return
        if len(frame) >= _PIECES:
            frame = [memoryview(gather(frame))]
        try:
            self._link.write(self._pair, [header, *frame])
        except BlockingIOError:
            raise
        except OSError as error:
            self._count_refusal(error)
        else:
            counts.tx_frames += 1

    def _is_too_long(self, header: bytes, frame: Buffers, length: int) -> bool:
        if header[1] != GSO_NONE:
            return length > MAX_GSO_FRAME
        return self._rules.is_too_long(frame, length)

    def _count_refusal(self, error: OSError) -> None:
        if error.errno in (errno.EIO, errno.EBADFD):
            # A tap's words for an interface that is down, and for one that is no more.
            self._counts.tx_dropped_link_down += 1
            return
        self._counts.tx_dropped_refused += 1
        log.info("%s: frame refused: %s", self._link.name, error)


def _first_bytes(views: Buffers, count: int) -> bytes:
    """Copy the first bytes of a buffer, `count` if it has them."""
    if views and len(views[0]) >= count:
        return bytes(views[0][:count])
    return gather(split_at(views, count)[0])

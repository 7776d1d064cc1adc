"""The backend's side of a connection: what the device does, as far as it can be seen from outside.

What a device writes into buffers is looked at before the driver has them back alone: see
SureObserver.fresh.
"""

from collections.abc import Callable, Mapping, Sequence

from virtiopy.check.fields import FIELDS, feature_bit
from virtiopy.check.judge import DeviceJudge
from virtiopy.check.requests import JudgedDevice, head_of, number
from virtiopy.devices.blk import SECTOR_SIZE, RequestType
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId, has_feature
from virtiopy.vhost.user.seenqueue import SeenQueue, SureObserver
from virtiopy.virtqueue.buffers import gather, split_at, total
from virtiopy.virtqueue.queue import Chain, ChainError, Completion, Virtqueue

#: Bytes of a block request's header (5.2.6), and what its status can be without zones.
_BLK_HEADER = 16
_BLK_OK, _BLK_IOERR = 0, 1
_BLK_STATUSES = {0, 1, 2}

#: Bytes of struct virtio_net_hdr (5.1.9), and some of its fields.
_NET_HEADER = 12
_NET_NEEDS_CSUM = 1
_NET_ECN = 0x80

#: gso_type of a received frame: the features that allow it, and the statement.
_NET_GSO: Mapping[int, tuple[tuple[str, ...], str]] = {
    1: (("GUEST_TSO4",), "5.1.9.4.1:7"),
    3: (("GUEST_UFO",), "5.1.9.4.1:8"),
    4: (("GUEST_TSO6",), "5.1.9.4.1:9"),
    5: (("GUEST_USO4", "GUEST_USO6"), "5.1.9.4.1:10"),
}

_CAPACITY = next(one for one in FIELDS[DeviceId.BLOCK] if one.name == "capacity")


class BackendRings(SureObserver):
    """Judges what a backend gives back in the rings of one session.

    `device` is the device's type, None for one that is not known: its rings alone are judged.
    """

    def __init__(
        self,
        judge: DeviceJudge,
        memory: GuestMemory,
        device: DeviceId | None,
        known: JudgedDevice,
    ) -> None:
        self._judge = judge
        self._memory = memory
        self._known = known
        self._malformed: set[Chain] = set()
        judges: Mapping[DeviceId, Callable[[int, Chain, int], None]] = {
            DeviceId.BLOCK: self._blk,
            DeviceId.NETWORK: self._net,
            DeviceId.ENTROPY: self._rng,
        }
        self._answer = None if device is None else judges.get(device)

    def _has(self, *names: str) -> bool:
        return any(has_feature(self._judge.features, feature_bit(name)) for name in names)

    # What is used, and the flags of the used ring

    def rejected(self, queue: Virtqueue, chain: Chain, error: ChainError) -> None:
        """Take note of a chain whose room is not known."""
        self._malformed.add(chain)

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """Judge used elements."""
        for chain, length in completions:
            self._judge.note(f"uses head {chain.token} of queue {queue.index}, {length} bytes")
            self._judge.kept("2.7.8:1")
            if chain in self._malformed:
                self._malformed.discard(chain)
                continue
            room = total(chain.writable)
            self._judge.check(
                "2.7.8.2:2",
                length <= room,
                f"the used element of head {chain.token} in queue {queue.index} says {length} "
                f"bytes, and the chain has room for {room}",
            )

    def stray(self, queue: SeenQueue, head: int, length: int) -> None:
        """Judge a used element that is no chain's."""
        self._judge.broke(
            "2.7.8:1", f"a used element of queue {queue.index} has id {head}, no chain in flight"
        )

    def looked(self, queue: SeenQueue) -> None:
        """Judge the used ring's flags (2.7.10.2)."""
        flags = int.from_bytes(self._memory.read(queue.areas.device, 2), "little")
        if queue.event_idx:
            self._judge.check(
                "2.7.10.2:3",
                flags == 0,
                f"flags in the used ring of queue {queue.index} is {flags} with VIRTIO_F_EVENT_IDX",
            )
        else:
            self._judge.check(
                "2.7.10.2:1",
                flags in (0, 1),
                f"flags in the used ring of queue {queue.index} is {flags}",
            )

    def lost(self, queue: SeenQueue) -> None:
        """Forget what was in flight."""
        self._malformed.clear()

    def closed(self, queue: SeenQueue, *, stopped: bool) -> None:
        """Forget what was in flight."""
        self._malformed.clear()

    def fresh(self, queue: SeenQueue, completions: Sequence[Completion]) -> None:
        """Judge what the device wrote."""
        for chain, length in completions:
            if self._answer is not None and chain not in self._malformed:
                self._answer(queue.index, chain, length)

    # Devices

    def _rng(self, index: int, chain: Chain, length: int) -> None:
        if total(chain.writable):
            self._judge.check("5.4.6.2:1", length > 0, "a buffer is used with no random byte in it")

    def _blk(self, index: int, chain: Chain, length: int) -> None:
        header = head_of(chain, _BLK_HEADER)
        room = total(chain.writable)
        if len(header) < _BLK_HEADER or not room:
            return
        status = gather(split_at(chain.writable, room - 1)[1])[0]
        kind, sector = number(header, 0, 4), number(header, 8, 8)
        if not self._has("VIRTIO_BLK_F_ZONED"):
            self._judge.check(
                "5.2.6:4",
                status in _BLK_STATUSES,
                f"the status of a request of type {kind} is {status}",
            )
        if kind == RequestType.OUT and self._has("VIRTIO_BLK_F_RO"):
            self._judge.check(
                "5.2.6.2:3",
                status == _BLK_IOERR,
                f"the status of a write to a read-only disk is {status}",
            )
        if kind in (RequestType.IN, RequestType.OUT):
            data = total(chain.readable) - _BLK_HEADER + room - 1
            self._beyond(sector, -(-data // SECTOR_SIZE), status)

    def _beyond(self, sector: int, sectors: int, status: int) -> None:
        space = self._known.config_space()[_CAPACITY.offset : _CAPACITY.offset + 8]
        if len(space) < _CAPACITY.width:
            return
        capacity = int.from_bytes(space, "little")
        if sector + sectors > capacity:
            self._judge.check(
                "5.2.6:2",
                status != _BLK_OK,
                f"{sectors} sectors at {sector} are answered with VIRTIO_BLK_S_OK; capacity is "
                f"{capacity}",
            )

    def _net(self, index: int, chain: Chain, length: int) -> None:
        """Judge a received frame, where each has a buffer of its own (5.1.9.4.1)."""
        if index % 2 or self._has("VIRTIO_NET_F_MRG_RXBUF") or total(chain.readable):
            return
        header = gather(split_at(chain.writable, _NET_HEADER)[0])
        if len(header) < _NET_HEADER:
            return
        flags, gso, buffers = header[0], header[1], number(header, 10, 2)
        check = self._judge.check
        check("5.1.9.4.1:1", buffers == 1, f"num_buffers of a received frame is {buffers}")
        if not self._has("VIRTIO_NET_F_GUEST_CSUM"):
            check("5.1.9.4.1:5", flags == 0, f"flags of a received frame is {flags:#x}")
        kind = gso & ~_NET_ECN
        if kind in _NET_GSO:
            features, statement = _NET_GSO[kind]
            check(
                statement,
                self._has(*(f"VIRTIO_NET_F_{name}" for name in features)),
                f"gso_type of a received frame is {kind} without VIRTIO_NET_F_{features[0]}",
            )
        if kind:
            check(
                "5.1.9.4.1:27",
                bool(flags & _NET_NEEDS_CSUM),
                "a received frame with a GSO type has no NEEDS_CSUM",
            )


def judge_offer(judge: DeviceJudge, device: DeviceId | None, offered: int) -> None:
    """Judge the features that a backend offers."""

    def has(name: str) -> bool:
        return has_feature(offered, feature_bit(name))

    judge.check("6.2:1", has("VIRTIO_F_VERSION_1"), "the backend does not offer VIRTIO_F_VERSION_1")
    if device is DeviceId.BLOCK:
        flush = has("VIRTIO_BLK_F_FLUSH")
        judge.check("5.2.5.2:1", flush, "the backend does not offer VIRTIO_BLK_F_FLUSH")
        if has("VIRTIO_BLK_F_CONFIG_WCE"):
            judge.check(
                "5.2.5.2:2",
                flush,
                "the backend offers VIRTIO_BLK_F_CONFIG_WCE without VIRTIO_BLK_F_FLUSH",
            )

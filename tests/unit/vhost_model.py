"""A model of vhost-net: it works rings as the kernel's does, when a test tells it to."""

import contextlib
import os

from tests.unit.net.rig import FakeLink
from virtiopy.devices.net.header import HEADER_SIZE
from virtiopy.errors import ConfigError, HostError
from virtiopy.memory import GuestMemory
from virtiopy.spec import Feature, feature_mask, has_feature
from virtiopy.vhost.kernel.net import RINGS, VhostNet
from virtiopy.vhost.vring import Vring
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, total
from virtiopy.virtqueue.queue import QueueState
from virtiopy.virtqueue.split import SplitQueue

RX, TX = 0, 1
MRG_RXBUF = 15

#: What Linux 6.1's vhost-net has of ours.
FEATURES = feature_mask(
    [
        MRG_RXBUF,
        Feature.VIRTIO_F_VERSION_1,
        Feature.VIRTIO_F_INDIRECT_DESC,
        Feature.VIRTIO_F_EVENT_IDX,
    ]
)


class WireLink(FakeLink):
    """A FakeLink with files that an event loop can watch, readable while frames wait."""

    def __init__(self, pairs: int = 1) -> None:
        super().__init__(pairs=pairs)
        self._files = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(pairs)]
        self._state = os.eventfd(0, os.EFD_NONBLOCK)
        self.longest = self.mtu

    def fileno(self, pair: int) -> int:
        return self._files[pair]

    def state_fileno(self) -> int:
        return self._state

    def worker_file(self, pair: int, mtu: int) -> int:
        if self.longest > mtu:
            raise ConfigError("The MTU is too large: make it smaller.")
        return self.fileno(pair)

    def arrive(self, *frames: bytes, pair: int = 0) -> None:
        self.incoming[pair] += [bytes(HEADER_SIZE) + frame for frame in frames]
        os.eventfd_write(self._files[pair], 1)

    def read(self, pair: int, buffers: Buffers) -> int:
        try:
            return super().read(pair, buffers)
        except BlockingIOError:
            os.eventfd_read(self._files[pair])
            raise

    def set_up(self, up: bool) -> None:
        self.up = up
        os.eventfd_write(self._state, 1)

    def is_up(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._state)
        return self.up

    def close(self) -> None:
        super().close()
        for file in (*self._files, self._state):
            os.close(file)


class VhostModel:
    """The kernel: every VhostNet of a test, the link that they are on, and what they refuse."""

    def __init__(self, link: WireLink) -> None:
        self.link = link
        self.features = FEATURES
        #: Raised by the next ring's start, each time as long as it is set.
        self.refusal: HostError | None = None
        self.opened: list[ModelVhostNet] = []
        #: Rings that were started since the beginning.
        self.starts = 0

    def open(self) -> "ModelVhostNet":
        if self.refusal is not None and not self.opened:
            raise self.refusal
        self.opened.append(ModelVhostNet(self))
        return self.opened[-1]

    def work(self) -> None:
        """Let all of them do what there is to do."""
        for vhost in self.opened:
            vhost.work()

    @property
    def running(self) -> list[tuple[int, int]]:
        """The rings that run: their pair, and RX or TX."""
        return sorted(
            (self.pair_of(vhost.taps[ring]), ring) for vhost in self.opened for ring in vhost.queues
        )

    def pair_of(self, tap: int) -> int:
        return [self.link.fileno(pair) for pair in range(self.link.pairs)].index(tap)


class ModelVhostNet:
    """An open /dev/vhost-net."""

    def __init__(self, kernel: VhostModel) -> None:
        self.kernel = kernel
        self.features = kernel.features
        self.acked = 0
        self.memory: GuestMemory | None = None
        self.queues: dict[int, SplitQueue] = {}
        self.rings: dict[int, Vring] = {}
        self.taps: dict[int, int] = {}
        self.broken: set[int] = set()
        self.busy_poll: dict[int, int] = {}

    def set_busy_poll(self, index: int, microseconds: int) -> None:
        self.busy_poll[index] = microseconds

    def close(self) -> None:
        self.queues.clear()
        self.kernel.opened.remove(self)

    def offered(self, features: int) -> int:
        return VhostNet.offered_with(features, self.features)

    def check_tap(self, tap: int) -> None:
        os.fstat(tap)

    def set_features(self, features: int) -> None:
        if feature_mask([Feature.VIRTIO_F_EVENT_IDX]) & features & ~self.features:
            raise HostError("vhost lacks features that the driver negotiated: use another.")
        self.acked = features

    def set_memory(self, memory: GuestMemory) -> None:
        self.memory = memory

    def start_ring(self, index: int, ring: Vring, tap: int) -> None:
        assert index < RINGS
        assert index not in self.queues
        assert self.memory is not None
        if self.kernel.refusal is not None:
            raise self.kernel.refusal
        # The used index is the ring's own, as vhost_vq_init_access() has it.
        self.queues[index] = SplitQueue(
            self.memory,
            ring.size,
            ring.areas,
            index=index,
            event_idx=has_feature(self.acked, Feature.VIRTIO_F_EVENT_IDX),
            indirect=has_feature(self.acked, Feature.VIRTIO_F_INDIRECT_DESC),
            state=ring.state,
        )
        self.rings[index], self.taps[index] = ring, tap
        self.broken.discard(index)
        self.kernel.starts += 1

    def stop_ring(self, index: int) -> QueueState:
        queue = self.queues.pop(index)
        assert queue.in_flight == 0
        return queue.state

    def work(self) -> None:
        for index, queue in self.queues.items():
            if index in self.broken:
                continue
            queue.disable_kicks()
            while (fault := queue.next_fault()) is None and self._serve_one(index, queue):
                pass
            if fault is not None:
                # The kernel's vq_err(): the chain stays where it is, and the ring is left alone.
                self.broken.add(index)
                error = self.rings[index].error
                assert error is not None
                os.eventfd_write(error, 1)
            queue.enable_kicks()
            if queue.should_interrupt():
                call = self.rings[index].call
                assert call is not None
                os.eventfd_write(call, 1)

    def _serve_one(self, index: int, queue: SplitQueue) -> bool:
        link, pair = self.kernel.link, self.kernel.pair_of(self.taps[index])
        if index == RX and not link.incoming[pair]:
            return False
        chain = queue.pop()
        if chain is None:
            return False
        if index == TX:
            link.sent[pair].append(gather(chain.readable))
            queue.push(chain, 0)
            return True
        frame = link.incoming[pair].popleft()
        merged = [(chain, frame[: total(chain.writable)])]
        left = frame[total(chain.writable) :]
        while left and has_feature(self.acked, MRG_RXBUF):
            more = queue.pop()
            if more is None:
                # Too few: vhost waits for more.
                queue.unpop(len(merged))
                link.incoming[pair].appendleft(frame)
                return False
            merged.append((more, left[: total(more.writable)]))
            left = left[total(more.writable) :]
        for used, part in merged:
            scatter(used.writable, part)
        first = merged[0][0].writable
        scatter(first, gather(first)[:10] + len(merged).to_bytes(2, "little"))
        queue.push_many([(used, len(part)) for used, part in merged])
        return True

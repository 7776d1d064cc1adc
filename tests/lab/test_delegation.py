"""Rings that go between Python and vhost while frames flow both ways."""

import contextlib
import os
import random
import select
from collections.abc import Iterator

import pytest

from tests.lab.network import HEADER_SIZE, TapLink, frame, number_of
from tests.lab.test_vhost_net import BUFFER, MEMORY, QUEUE_SIZE, RX, TX, Side
from tests.patience import PATIENCE
from virtiopy.devices.delegation import DelegatedQueue
from virtiopy.memory import GuestMemory
from virtiopy.spec import Feature, feature_mask
from virtiopy.vhost.kernel.pair import VhostPair
from virtiopy.virtqueue.buffers import gather, scatter
from virtiopy.virtqueue.driver import Allocator, Piece
from virtiopy.virtqueue.queue import Chain
from virtiopy.virtqueue.split import SplitQueue

pytestmark = pytest.mark.lab

SWITCHES = 100
FRAMES = 10_000


class Flow:
    """Driver, wire, and the device side that Python has while vhost has not."""

    def __init__(self, link: TapLink, *, event_idx: bool) -> None:
        self.link = link
        self.memory = GuestMemory.allocate(MEMORY)
        allocator = Allocator(0x1000, MEMORY)
        self.sides = [
            Side(self.memory, allocator, event_idx=event_idx),
            Side(self.memory, allocator, event_idx=event_idx),
        ]
        self.queues = [
            SplitQueue(self.memory, QUEUE_SIZE, side.queue.areas, event_idx=event_idx)
            for side in self.sides
        ]
        features = [Feature.VIRTIO_F_VERSION_1]
        if event_idx:
            features.append(Feature.VIRTIO_F_EVENT_IDX)
        self.features = feature_mask(features)
        self.pair = VhostPair(self.memory, link.tap)
        #: Popped by Python's device side, and not served: by ring.
        self.ahead: list[list[Chain]] = [[], []]
        self.free = list(self.sides[TX].buffers)
        self.lent: list[dict[int, int]] = [{}, {}]
        self.received: list[int] = []
        self.seen: list[int] = []
        link.wire.setblocking(False)
        for address in self.sides[RX].buffers:
            self._lend(address)

    def close(self) -> None:
        self.pair.close()
        for side in self.sides:
            side.close()
        self.memory.close()

    # The driver

    def _lend(self, address: int) -> None:
        head = self.sides[RX].queue.add([Piece(address, BUFFER, writable=True)])
        self.lent[RX][head] = address

    def send(self, number: int) -> bool:
        """Send one frame, if there is a free descriptor."""
        if not self.free:
            return False
        address = self.free.pop()
        data = bytes(HEADER_SIZE) + frame(number)
        self.memory.write(address, data)
        self.lent[TX][self.sides[TX].queue.add([Piece(address, len(data))])] = address
        return True

    def kick(self) -> None:
        for side in self.sides:
            if side.queue.should_kick():
                os.eventfd_write(side.kick, 1)

    def reap(self) -> None:
        """Take what both rings have used, and what came out of the tap."""
        for used in self.sides[TX].queue.take_all_used():
            self.free.append(self.lent[TX].pop(used.head))
        filled = [
            (self.lent[RX].pop(used.head), used.length)
            for used in self.sides[RX].queue.take_all_used()
        ]
        for address, length in filled:
            data = self.memory.read(address, length)[HEADER_SIZE:]
            if (number := number_of(data)) is not None:
                self.received.append(number)
            self._lend(address)
        self.kick()
        with contextlib.suppress(BlockingIOError):
            while (number := number_of(self.link.wire.recv(BUFFER))) is not None:
                self.seen.append(number)

    # The device side in Python, which pops ahead and leaves some unserved

    def serve(self, most: int) -> None:
        for ring, queue in enumerate(self.queues):
            queue.disable_kicks()
            self.ahead[ring] += queue.pop_many()
            for _ in range(most):
                if not self.ahead[ring] or not self._serve_one(ring):
                    break
            queue.enable_kicks()

    def _serve_one(self, ring: int) -> bool:
        chain = self.ahead[ring][0]
        written = 0
        if ring == TX:
            os.write(self.link.tap, gather(chain.readable))
        else:
            try:
                written = scatter(chain.writable, os.read(self.link.tap, BUFFER))
            except BlockingIOError:
                return False
        self.queues[ring].push(self.ahead[ring].pop(0), written)
        return True

    def switch(self) -> None:
        if self.pair.active:
            self.pair.reclaim()
            return
        for queue, ahead in zip(self.queues, self.ahead, strict=True):
            queue.unpop(len(ahead))
        self.ahead = [[], []]
        self.pair.delegate(
            [
                DelegatedQueue(ring, self.queues[ring], side.kick, side.call)
                for ring, side in enumerate(self.sides)
            ],
            self.features,
        )


@pytest.fixture(params=[False, True], ids=["flags", "event_idx"])
def flow(request: pytest.FixtureRequest) -> Iterator[Flow]:
    with TapLink() as link:
        flow = Flow(link, event_idx=request.param)
        yield flow
        flow.close()


def test_switches_in_a_flow_lose_repeat_and_reorder_nothing(flow: Flow) -> None:
    luck = random.Random(1)
    sent = put = switches = rounds = 0
    every = FRAMES // SWITCHES
    while sent < FRAMES or put < FRAMES:
        rounds += 1
        assert rounds < FRAMES, f"stuck after {sent} frames sent, {len(flow.received)} received"
        for _ in range(luck.randrange(every)):
            if sent < FRAMES and flow.send(sent):
                sent += 1
            # No more than the tap holds: it drops what it has no room for, switch or not.
            if put < FRAMES and put - len(flow.received) < 400:
                flow.link.wire.send(frame(put))
                put += 1
        flow.kick()
        if not flow.pair.active:
            flow.serve(luck.randrange(2 * every))
        if luck.random() < 0.5 or switches < sent // every:
            flow.switch()
            switches += 1
        flow.reap()
    if not flow.pair.active:
        flow.switch()

    # vhost ends it.
    rx = flow.sides[RX]
    while True:
        flow.reap()
        if len(flow.seen) == len(flow.received) == FRAMES:
            break
        if not rx.queue.enable_interrupts():
            ready = select.select([rx.call, flow.link.wire.fileno()], [], [], PATIENCE)[0]
            assert ready, (len(flow.seen), len(flow.received))
            if rx.call in ready:
                os.eventfd_read(rx.call)
    assert switches >= SWITCHES
    assert flow.seen == list(range(FRAMES))
    assert flow.received == list(range(FRAMES))

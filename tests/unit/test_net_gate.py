"""Pairs of a network device that a frontend says are used no more: no frame goes astray."""

import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.patience import PATIENCE
from tests.unit.net.rig import MQ, Rig, frame, header
from tests.unit.vhost_user import FEATURES, Driver, Served
from virtiopy.conformance.targets.hosts import Link
from virtiopy.devices.gate import Gate
from virtiopy.devices.net import Net
from virtiopy.devices.net.features import NetFeature
from virtiopy.spec import feature_mask
from virtiopy.vhost.user.messages import Message, Request, RingState
from virtiopy.virtqueue.driver import Piece
from virtiopy.worker.native import open_native

MAC = bytes.fromhex("020000000001")
TAKEN = FEATURES | feature_mask([NetFeature.VIRTIO_NET_F_MQ, NetFeature.VIRTIO_NET_F_MRG_RXBUF])


class Two:
    """A device with two pairs, which a frontend has enabled."""

    def __init__(self, folder: Path, *, native: bool) -> None:
        self.link = Link(pairs=2)
        self.native = native
        self.device = Net(self.link, mac=MAC, queue_size=256)
        self.served = Served(self.device, folder / "net.sock")
        if native:
            self.device.delegate(open_native)
        self.driver = Driver(self.served.connect(), queue_count=4, queue_size=256, features=TAKEN)
        self.driver.start()
        self.rooms: dict[tuple[int, int], Piece] = {}

    def close(self) -> None:
        self.driver.close()
        self.served.close()
        self.link.release()

    def supply(self, queue: int, count: int) -> None:
        for _ in range(count):
            room = self.driver.piece(2048)
            head = self.driver.queues[queue].driver.add([room])
            self.rooms[queue, head] = room
        self.driver.queues[queue].notify()

    def enable(self, pair: int, *, enabled: bool) -> None:
        """Say so of both queues, and wait for no answer, as QEMU."""
        for queue in (2 * pair, 2 * pair + 1):
            state = RingState(queue, int(enabled)).encode()
            self.driver.frontend.connection.send(Message(Request.SET_VRING_ENABLE, state))

    def send(self, queue: int, data: bytes) -> None:
        self.driver.queues[queue].driver.add([self.driver.piece(data)])
        self.driver.queues[queue].notify()

    def collect(self, queue: int, count: int) -> list[bytes]:
        found = []
        for used in self.driver.queues[queue].wait(count):
            room = self.rooms.pop((queue, used.head))
            found.append(self.driver.memory.read(room.address, used.length))
        return found


@pytest.fixture(params=[True, False], ids=["native", "python"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Two]:
    two = Two(tmp_path, native=request.param)
    yield two
    two.close()


def numbered(seed: int, buffers: int = 0) -> bytes:
    return header(num_buffers=buffers) + frame(seed=seed)


def await_read(link: Link, pair: int) -> None:
    """Wait until the device has read what was in a queue of the link."""
    end = time.monotonic() + PATIENCE
    while select.select([link.fileno(pair)], [], [], 0)[0]:
        assert time.monotonic() < end, "nothing reads the link"
        threading.Event().wait(0.001)


@pytest.mark.parametrize("length", [60, 1400], ids=["short", "long"])
def test_a_frame_after_the_message_is_for_the_pairs_that_are_left(
    tmp_path: Path, length: int
) -> None:
    """The thread reads it while the message waits; the driver looks at the first pair alone."""
    two = Two(tmp_path, native=True)
    try:
        two.supply(0, 4)
        two.supply(2, 4)
        # The thread takes long frames another way once it has seen one.
        two.link.inject(header() + frame(3000), 1)
        assert len(two.driver.queues[2].wait(2)) == 2
        with two.device.lock:
            two.enable(1, enabled=False)
            two.link.inject(header() + frame(length, seed=5), 1)
            await_read(two.link, 1)
        assert two.collect(0, 1) == [header(num_buffers=1) + frame(length, seed=5)]
        assert two.driver.queues[2].driver.take_all_used() == []
    finally:
        two.close()


def test_a_message_about_something_else_only_delays_a_frame(two: Two) -> None:
    two.supply(2, 4)
    with two.device.lock:
        two.driver.frontend.connection.send(Message(Request.GET_FEATURES))
        two.link.inject(numbered(1), 1)
        two.link.inject(numbered(2), 1)
    assert two.collect(2, 2) == [numbered(1, 1), numbered(2, 1)]


def test_frames_in_a_queue_that_is_left_come_by_the_first(two: Two) -> None:
    """They had found no buffers; the link would drop them."""
    for seed in (1, 2, 3):
        two.link.inject(numbered(seed), 1)
    two.supply(0, 4)
    two.enable(1, enabled=False)
    assert two.collect(0, 3) == [numbered(1, 1), numbered(2, 1), numbered(3, 1)]
    # And what is in the first queue after them.
    two.link.inject(numbered(4))
    assert two.collect(0, 1) == [numbered(4, 1)]
    assert two.device.facts()["pairs_delegated"] == int(two.native)


def test_pairs_come_and_go_under_traffic_and_no_frame_is_lost_or_repeated(two: Two) -> None:
    seeds = iter(range(1, 1000))
    sent: list[int] = []
    came: list[bytes] = []
    two.supply(0, 200)
    two.supply(2, 50)
    for turn in range(20):
        for pair in (0, 1, 1):
            sent.append(next(seeds))
            two.link.inject(numbered(sent[-1]), pair)
        two.send(3, numbered(turn))
        two.driver.queues[3].wait()
        two.enable(1, enabled=False)
        # What the driver sends from now on, and what comes by the queue that is left.
        two.send(1, numbered(turn))
        two.driver.queues[1].wait()
        two.enable(1, enabled=True)
    while len(came) < len(sent):
        for queue in (0, 2):
            for used in two.driver.queues[queue].driver.take_all_used():
                room = two.rooms.pop((queue, used.head))
                came.append(two.driver.memory.read(room.address, used.length))
    assert sorted(came) == sorted(numbered(seed, 1) for seed in sent)
    assert two.device.counters()["tx_dropped_disabled_queue"] == 0
    assert two.device.counters()["tx_frames"] == 40


def test_frames_come_while_messages_do(two: Two) -> None:
    """They only wait for one another: none is lost, and they stay in their order."""
    two.supply(2, 40)
    for turn in range(40):
        for _ in range(10):
            two.enable(0, enabled=True)
        two.link.inject(numbered(turn), 1)
    assert two.collect(2, 40) == [numbered(turn, 1) for turn in range(40)]


def test_what_is_sent_by_a_pair_that_is_disabled_is_discarded(two: Two) -> None:
    """A thread would send it: the pair is not to be one's any more."""
    two.enable(1, enabled=False)
    two.driver.frontend.get_features()
    two.send(3, numbered(1))
    two.driver.queues[3].wait()
    two.enable(0, enabled=False)
    two.driver.frontend.get_features()
    two.send(1, numbered(2))
    two.driver.queues[1].wait()
    assert two.device.counters()["tx_dropped_disabled_queue"] == 2


def test_what_waits_for_a_driver_that_has_no_buffers_is_limited(two: Two) -> None:
    longest = 65000
    two.device.pairs[0].receiver.put_back(bytes(10))
    for _ in range((16 << 20) // longest + 1):
        two.device.pairs[0].receiver.put_back(bytes(longest))
    assert two.device.counters()["rx_dropped_no_buffer"] == 1


class FakeGate:
    """A gate that the test shuts."""

    is_shut = False


@pytest.fixture
def gated() -> tuple[Rig, FakeGate]:
    """Return a device with two pairs, of which one is used, and what its VMM says."""
    rig, gate = Rig(None, pairs=2), FakeGate()
    rig.transport.lifecycle.gate = rig.device.pairs[1].receiver.gate = cast("Gate", gate)
    rig.driver.start(MQ)
    return rig, gate


def run_soon(rig: Rig) -> None:
    for half in rig.loop.bottom_halves:
        if half.scheduled:
            half.run()


def test_what_is_sent_by_a_pair_that_is_about_to_be_used_is_sent(
    gated: tuple[Rig, FakeGate],
) -> None:
    rig, gate = gated
    gate.is_shut = True
    assert rig.send(numbered(1), queue=3) == []
    run_soon(rig)
    assert rig.link.sent[1] == []
    gate.is_shut = False
    rig.device.set_pairs(2)
    run_soon(rig)
    assert rig.link.sent[1] == [numbered(1)]
    assert rig.device.counters()["tx_dropped_disabled_queue"] == 0


def arrive_while_shut(rig: Rig, gate: FakeGate) -> None:
    """Have a frame come by the second pair, which has a buffer for it, behind a shut gate."""
    rig.use_pairs(2)
    rig.supply(2048, queue=2)
    rig.driver.kick(2)
    gate.is_shut = True
    rig.arrive(frame(), pair=1)


def test_python_gives_the_driver_nothing_while_the_gate_is_shut(
    gated: tuple[Rig, FakeGate],
) -> None:
    rig, gate = gated
    arrive_while_shut(rig, gate)
    run_soon(rig)
    assert rig.received(2) == []
    gate.is_shut = False
    rig.device.set_pairs(1)
    run_soon(rig)
    assert rig.received(2) == []
    rig.supply(2048)
    rig.driver.kick(0)
    assert rig.received(0) == [header(num_buffers=1) + frame()]


def test_python_goes_on_with_the_frame_when_the_gate_opens(gated: tuple[Rig, FakeGate]) -> None:
    rig, gate = gated
    arrive_while_shut(rig, gate)
    gate.is_shut = False
    run_soon(rig)
    assert rig.received(2) == [header(num_buffers=1) + frame()]


def test_a_driver_that_resets_the_device_has_no_frames_of_before(
    gated: tuple[Rig, FakeGate],
) -> None:
    rig, _ = gated
    rig.use_pairs(2)
    rig.arrive(frame(), pair=1)
    rig.device.set_pairs(1)
    rig.driver.reset()
    rig.driver.start(MQ)
    rig.supply(2048)
    rig.driver.kick(0)
    run_soon(rig)
    assert rig.received() == []

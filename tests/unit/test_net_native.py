"""A network device whose pairs a thread in C works: it does with frames what the device does."""

import contextlib
import itertools
import os
import random
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patience import PATIENCE
from tests.unit.vhost_user import FEATURES, Driver, Served, readable
from virtiopy.conformance.targets.hosts import Link
from virtiopy.devices.net import Net, RecordedLink
from virtiopy.devices.net.control import ControlClass, MacCommand, RxCommand
from virtiopy.devices.net.features import NetFeature
from virtiopy.devices.net.header import HEADER_SIZE
from virtiopy.errors import ConfigError
from virtiopy.spec import feature_mask
from virtiopy.virtqueue.driver import Piece, Used
from virtiopy.worker.native import open_native

MAC = bytes.fromhex("020000000001")
OTHER = bytes.fromhex("020000000002")
BROADCAST = b"\xff" * 6
RX, TX, CONTROL = 0, 1, 2
PLAIN = bytes(HEADER_SIZE)
NET = NetFeature
OFFLOADS = feature_mask(
    [
        *(NET.VIRTIO_NET_F_CSUM, NET.VIRTIO_NET_F_HOST_TSO4, NET.VIRTIO_NET_F_HOST_TSO6),
        *(NET.VIRTIO_NET_F_HOST_ECN, NET.VIRTIO_NET_F_GUEST_CSUM, NET.VIRTIO_NET_F_GUEST_TSO4),
    ]
)
MERGEABLE = feature_mask([NET.VIRTIO_NET_F_MRG_RXBUF])
MTU = feature_mask([NET.VIRTIO_NET_F_MTU])
FILTERS = feature_mask(
    [
        *(NET.VIRTIO_NET_F_CTRL_VQ, NET.VIRTIO_NET_F_CTRL_RX, NET.VIRTIO_NET_F_CTRL_RX_EXTRA),
        *(NET.VIRTIO_NET_F_CTRL_VLAN, NET.VIRTIO_NET_F_CTRL_MAC_ADDR),
    ]
)


def frame(number: int, size: int = 60, to: bytes = MAC) -> bytes:
    return (to + OTHER + b"\x08\x00" + number.to_bytes(4, "big")).ljust(size, b"\x5a")


@dataclass
class Rig:
    """A device over vhost-user, its driver, and the other end of its link."""

    folder: Path
    features: int = 0
    native: bool = True
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.link = Link()
        self.device = Net(self.link, mac=MAC, queue_size=64)
        self.served = self.stack.enter_context(
            Served(self.device, self.folder / f"{self.native}.sock")
        )
        self.stack.callback(self.link.release)
        if self.native:
            self.device.delegate(open_native)
        self.driver = self.stack.enter_context(
            Driver(
                *(self.served.connect(),),
                queue_count=3,
                queue_size=64,
                features=FEATURES | self.features,
            )
        )
        self.driver.start()

    def __enter__(self) -> "Rig":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def send(self, data: bytes, *cuts: int) -> None:
        """Send a header and frame, cut into buffers."""
        edges = [0, *cuts, len(data)]
        start = self.driver.piece(data).address
        pieces = [Piece(start + at, end - at) for at, end in itertools.pairwise(edges)]
        self.driver.queues[TX].driver.add(pieces)
        self.driver.queues[TX].notify()

    def supply(self, *sizes: int) -> list[Piece]:
        pieces = [self.driver.piece(size) for size in sizes]
        for piece in pieces:
            self.driver.queues[RX].driver.add([piece])
        self.driver.queues[RX].notify()
        return pieces

    def received(self, count: int = 1) -> list[Used]:
        return self.driver.queues[RX].wait(count)

    def command(self, class_: int, command: int, data: bytes) -> int:
        ack = self.driver.piece(1)
        request = self.driver.piece(bytes([class_, command]) + data)
        self.driver.queues[CONTROL].driver.add([request, ack])
        self.driver.queues[CONTROL].notify()
        self.driver.queues[CONTROL].wait()
        return self.driver.memory.read(ack.address, 1)[0]

    def count(self, name: str) -> int:
        return self.device.counters()[name]

    def await_count(self, name: str, value: int) -> None:
        end = time.monotonic() + PATIENCE
        while self.count(name) != value:
            assert time.monotonic() < end, self.device.counters()
            threading.Event().wait(0.001)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path, MERGEABLE | MTU | FILTERS) as rig:
        yield rig


def test_the_pair_is_delegated(rig: Rig) -> None:
    assert rig.device.facts()["pairs_delegated"] == 1


def test_a_call_eventfd_that_is_set_while_the_thread_works_is_the_threads(rig: Rig) -> None:
    """It had the one of before, which is closed by then, and so another file's number."""
    queue = rig.driver.queues[TX]
    rig.send(PLAIN + frame(1))
    queue.wait()
    other = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        for file in (other, queue.call):
            rig.driver.frontend.set_call(TX, file)
            assert rig.device.facts()["pairs_delegated"] == 1
            queue.driver.enable_interrupts()
            rig.send(PLAIN + frame(2))
            readable(file)
            os.eventfd_read(file)
            queue.driver.take_all_used()
    finally:
        os.close(other)


def test_a_frame_is_sent_however_it_is_cut(rig: Rig) -> None:
    for cuts in ((), (12,), (3, 12, 20), (13,), (11, 13)):
        rig.send(PLAIN + frame(1), *cuts)
        rig.driver.queues[TX].wait()
        assert rig.link.sent() == PLAIN + frame(1)
    assert rig.count("tx_frames") == 5


def test_a_frame_is_received(rig: Rig) -> None:
    [piece] = rig.supply(2048)
    rig.link.inject(PLAIN + frame(7))
    [used] = rig.received()
    assert used.length == HEADER_SIZE + 60
    assert rig.driver.memory.read(piece.address, used.length) == (bytes(10) + b"\1\0" + frame(7))
    assert rig.count("rx_frames") == 1


def test_a_frame_waits_for_a_buffer(rig: Rig) -> None:
    rig.link.inject(PLAIN + frame(7))
    [piece] = rig.supply(2048)
    rig.received()
    assert rig.driver.memory.read(piece.address + HEADER_SIZE, 60) == frame(7)


def test_a_frame_is_put_into_as_many_buffers_as_it_takes(rig: Rig) -> None:
    pieces = rig.supply(*[100] * 20)
    rig.link.inject(PLAIN + frame(7, 300))
    used = rig.received(4)
    assert [one.length for one in used] == [100, 100, 100, 12]
    data = b"".join(rig.driver.memory.read(piece.address, 100) for piece in pieces[:4])
    assert data[:312] == bytes(10) + b"\4\0" + frame(7, 300)


def test_a_frame_that_finds_too_few_buffers_is_kept_for_more(rig: Rig) -> None:
    first = rig.supply(100)
    rig.link.inject(PLAIN + frame(7, 300))
    rig.link.inject(PLAIN + frame(8, 60))
    more = rig.supply(*[100] * 8)
    assert [one.length for one in rig.received(5)] == [100, 100, 100, 12, 72]
    data = b"".join(rig.driver.memory.read(piece.address, 100) for piece in (*first, *more[:3]))
    assert data[:312] == bytes(10) + b"\4\0" + frame(7, 300)


def test_a_frame_for_which_no_ring_has_room_is_dropped(rig: Rig) -> None:
    rig.supply(*[16] * 64)
    rig.link.inject(PLAIN + frame(7, 1400))
    rig.await_count("rx_dropped_no_buffer", 1)
    rig.link.inject(PLAIN + frame(8))
    assert sum(one.length for one in rig.received(5)) == HEADER_SIZE + 60


def test_a_frame_longer_than_its_buffer_is_dropped_without_mergeable_buffers(
    tmp_path: Path,
) -> None:
    with Rig(tmp_path) as rig:
        rig.supply(100)
        rig.link.inject(PLAIN + frame(1, 300))
        rig.link.inject(PLAIN + frame(2, 60))
        assert [one.length for one in rig.received()] == [72]
        assert rig.count("rx_dropped_too_long") == 1


def test_a_buffer_without_room_for_a_header_comes_back_empty(rig: Rig) -> None:
    rig.supply(11, 2048)
    rig.link.inject(PLAIN + frame(1))
    assert [one.length for one in rig.received(2)] == [0, 72]
    assert rig.count("rx_buffers_too_small") == 1


def test_the_filter_that_the_driver_sets_is_kept_to(rig: Rig) -> None:
    rig.supply(*[2048] * 16)
    rig.link.inject(PLAIN + frame(1, to=OTHER))
    rig.link.inject(PLAIN + frame(2, to=BROADCAST))
    assert len(rig.received()) == 1
    assert rig.count("rx_filtered") == 1
    table = struct.pack("<I", 1) + OTHER + struct.pack("<I", 0)
    assert rig.command(ControlClass.MAC, MacCommand.TABLE_SET, table) == 0
    rig.link.inject(PLAIN + frame(3, to=OTHER))
    assert len(rig.received()) == 1
    assert rig.command(ControlClass.RX, RxCommand.NOBCAST, b"\1") == 0
    rig.link.inject(PLAIN + frame(4, to=BROADCAST))
    tagged = MAC + OTHER + b"\x81\x00\x00\x07\x08\x00"
    rig.link.inject(PLAIN + tagged.ljust(60, b"\0"))
    rig.await_count("rx_filtered", 3)
    assert rig.command(ControlClass.VLAN, 0, b"\7\0") == 0
    rig.link.inject(PLAIN + tagged.ljust(60, b"\0"))
    assert len(rig.received()) == 1
    assert rig.device.facts()["pairs_delegated"] == 1
    assert rig.count("rx_frames") == 3


def test_a_malformed_chain_comes_back_and_the_queue_goes_on(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.driver.queues[TX].driver.add([Piece(1 << 50, 100)])
    rig.driver.queues[TX].notify()
    rig.driver.queues[TX].wait()
    rig.send(PLAIN + frame(1))
    assert rig.link.sent() == PLAIN + frame(1)
    rig.device.reclaim()
    assert "rejected: 100 bytes at guest physical address 0x4000000000000" in caplog.text


@pytest.mark.parametrize("index", [RX, TX])
def test_a_broken_ring_needs_a_reset(
    rig: Rig, caplog: pytest.LogCaptureFixture, index: int
) -> None:
    rig.driver.queues[index].driver.available.idx = 20000
    rig.driver.queues[index].notify()
    readable(rig.driver.queues[index].error)
    assert "needs a reset" in caplog.text
    assert "available idx 20000 offers 20000 buffers" in caplog.text
    assert rig.device.facts()["pairs_delegated"] == 0


def test_a_recorded_link_is_worked_by_the_device(tmp_path: Path) -> None:
    class Recorder:
        def record(self, frame: bytes, *, inbound: bool) -> None:
            pass

        def close(self) -> None:
            pass

    ends = Link()
    device = Net(RecordedLink(ends, Recorder()), mac=MAC)
    with contextlib.ExitStack() as stack:
        stack.callback(ends.release)
        stack.enter_context(Served(device, tmp_path / "net.sock"))
        with pytest.raises(ConfigError, match="cannot be recorded"):
            device.delegate(open_native)
        assert device.facts()["pairs_delegated"] == 0


def test_the_mode_changes_under_load_and_no_frame_is_lost_or_repeated(rig: Rig) -> None:
    count = 400
    got: list[bytes] = []

    def take() -> None:
        while len(got) < count and (data := rig.link.sent()) is not None:
            got.append(data)

    def switch() -> None:
        while len(got) < count:
            rig.device.reclaim()
            rig.device.delegate(open_native)

    threads = [threading.Thread(target=work) for work in (take, switch)]
    for thread in threads:
        thread.start()
    queue = rig.driver.queues[TX]
    data = [rig.driver.piece(PLAIN + frame(number)) for number in range(count)]
    for piece in data:
        if not queue.driver.free:
            queue.wait()
        queue.driver.add([piece])
        queue.notify()
    for thread in threads:
        thread.join()
    assert got == [PLAIN + frame(number) for number in range(count)]


def test_buffers_to_receive_into_stay_available_when_the_mode_changes(rig: Rig) -> None:
    rig.supply(*[2048] * 40)
    for number in range(40):
        rig.link.inject(PLAIN + frame(number))
        [used] = rig.received()
        assert used.length == HEADER_SIZE + 60
        if number % 4 == 0:
            rig.device.reclaim()
        elif number % 4 == 2:
            rig.device.delegate(open_native)


# Beside the device itself

HEADERS = st.one_of(
    st.just(PLAIN),
    st.builds(
        lambda *fields: struct.pack("<BBHHHHH", *fields),
        st.sampled_from([0, 1, 1, 2, 3, 0xFF]),
        st.sampled_from([0, 0, 1, 4, 0x81, 0x84, 3, 5]),
        st.sampled_from([0, 54, 0xFFFF]),
        st.sampled_from([0, 1, 500, 1440, 1460, 0xFFFF]),
        st.sampled_from([0, 13, 14, 34, 58, 0xFFFF]),
        st.sampled_from([0, 6, 16, 0xFFFF]),
        st.sampled_from([0, 1, 7]),
    ),
)
TYPES = st.sampled_from([b"\x08\x00", b"\x81\x00", b"\x88\xa8\x00\x01\x81\x00"])
SIZES = st.sampled_from([0, 13, 14, 18, 60, 1513, 1514, 1515, 1518, 1519, 1522, 3000, 9000])
TARGETS = st.sampled_from([MAC, OTHER, BROADCAST, b"\x01" + MAC[1:]])


@st.composite
def sent_frames(draw: st.DrawFn) -> bytes:
    start = draw(TARGETS) + OTHER + draw(TYPES)
    size = draw(SIZES)
    return draw(HEADERS) + start.ljust(size, b"\x33")[:size]


@pytest.mark.timeout(max(900, settings().max_examples // 5))
@settings(deadline=None, max_examples=max(25, settings().max_examples // 8))
@given(
    frames=st.lists(sent_frames(), min_size=1, max_size=12),
    features=st.lists(st.sampled_from([OFFLOADS, MTU, MERGEABLE, FILTERS]), unique=True),
    seed=st.integers(0, 1 << 32),
)
def test_both_do_the_same_with_the_same_frames(
    frames: list[bytes], features: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outcomes = []
    folder = tmp_path_factory.mktemp("rigs")
    for native in (False, True):
        cut = random.Random(seed)
        with Rig(folder, sum(features), native=native) as rig:
            for data in frames:
                cuts = sorted({cut.randrange(1, max(2, len(data))) for _ in range(2)})
                rig.send(data, *(at for at in cuts if at < len(data)))
            rig.driver.queues[TX].wait(len(frames))
            sent = []
            while (one := rig.link.sent(seconds=0)) is not None:
                sent.append(one)
            sizes = [cut.choice([700, 1600, 2048]) for _ in range(60)]
            pieces = rig.supply(*sizes)
            for data in [*frames, PLAIN + frame(99, to=MAC)]:
                rig.link.inject(data)
            # The last of them is received by all.
            received: list[Used] = []
            content: list[bytes] = []
            while not any(frame(99) in one for one in content):
                received += rig.received()
                content = [
                    rig.driver.memory.read(piece.address, one.length)
                    for piece, one in zip(pieces, received, strict=False)
                ]
            outcomes.append((sent, content, rig.device.counters()))
            assert rig.device.facts()["pairs_delegated"] == native
    assert outcomes[1] == outcomes[0]

"""Frames that a thread in C sends to a tap: several by one system call, where there is room."""

import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.namespace import Namespace, needs_taps
from tests.patience import PATIENCE
from tests.unit.vhost_user import FEATURES, Driver, Served
from virtiopy.devices.delegation import Backing
from virtiopy.devices.net import Net
from virtiopy.devices.net.header import HEADER_SIZE, HeaderFlag
from virtiopy.host.tap import Tap
from virtiopy.worker.native import open_native
from virtiopy.worker.net import NativePair

pytestmark = needs_taps

MAC = bytes.fromhex("020000000001")
TX = 1
PLAIN = bytes(HEADER_SIZE)
#: For local experiments (IEEE 802): the kernel does nothing with it.
ETHERTYPE = 0x88B5

#: linux/if_tun.h
TUNSETSNDBUF = 0x400454D4


def frame(number: int, size: int = 60) -> bytes:
    start = b"\xff" * 6 + MAC + struct.pack(">HI", ETHERTYPE, number)
    return start.ljust(size, b"\x5a")


@dataclass
class Rig:
    """A device on a tap, its driver, and a socket that has all frames of the device."""

    folder: Path
    namespace: Namespace
    pairs: list[NativePair] = field(default_factory=list)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.tap = Tap(self.namespace.config(create=True, mtu=9000))
        self.device = Net(self.tap, mac=MAC, queue_size=128)
        served = self.stack.enter_context(Served(self.device, self.folder / "net.sock"))
        self.host = self.stack.enter_context(self.namespace.inside(self._socket))
        self.driver = self.stack.enter_context(
            Driver(served.connect(), queue_count=2, queue_size=128, features=FEATURES)
        )
        self.driver.start()
        self.device.delegate(self._open)

    def _socket(self) -> socket.socket:
        host = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        host.bind((self.tap.name, 0))
        host.settimeout(PATIENCE)
        return host

    def _open(self, backing: Backing) -> NativePair:
        pair = open_native(backing)
        assert isinstance(pair, NativePair)
        self.pairs.append(pair)
        return pair

    def send_all(self, frames: list[bytes]) -> None:
        """Have the thread find all of them available at once, and wait until they are used."""
        queue = self.driver.queues[TX]
        heads = [queue.driver.place([self.driver.piece(data)]) for data in frames]
        queue.driver.make_available(*heads)
        queue.notify()
        queue.wait(len(frames))

    @property
    def system_calls(self) -> int:
        """What the frames have taken, without interrupts."""
        counts = self.pairs[0].ring_counts[TX]
        return counts.system_calls - counts.interrupts

    def received(self, count: int) -> list[bytes]:
        return [self.host.recv(10_000) for _ in range(count)]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Namespace() as namespace:
        made = Rig(tmp_path, namespace)
        with made.stack:
            yield made


def test_frames_that_are_available_together_are_sent_together_in_their_order(rig: Rig) -> None:
    frames = [frame(number, 60 + number) for number in range(100)]
    rig.send_all([PLAIN + data for data in frames])
    assert rig.received(100) == frames
    assert rig.device.counters()["tx_frames"] == 100
    assert 1 <= rig.system_calls < 10


def test_long_frames_between_short_ones_keep_their_place(rig: Rig) -> None:
    frames = [frame(number, 1514 if number % 5 else 60) for number in range(40)]
    frames[10] = frame(10, 9000)
    rig.send_all([PLAIN + data for data in frames])
    assert rig.received(40) == frames
    # One of its own for the long one, which splits a burst.
    assert 1 <= rig.system_calls < 10


def test_what_may_not_be_sent_is_left_out_and_counted(rig: Rig) -> None:
    """The driver has not negotiated CSUM (5.1.9.2.1)."""
    lying = bytes([HeaderFlag.NEEDS_CSUM]) + PLAIN[1:]
    frames = [frame(number) for number in range(30)]
    rig.send_all(
        [
            lying + data if number % 3 == 0 else (PLAIN + data)[: 20 if number % 3 == 1 else None]
            for number, data in enumerate(frames)
        ]
    )
    assert rig.received(10) == frames[2::3]
    counters = rig.device.counters()
    assert counters["tx_frames"] == counters["tx_dropped_header"] == 10
    assert counters["tx_dropped_too_short"] == 10
    assert 1 <= rig.system_calls < 10


def test_an_interface_that_is_down_takes_none(rig: Rig) -> None:
    rig.namespace.ip("link", "set", rig.tap.name, "down")
    rig.send_all([PLAIN + frame(number) for number in range(30)])
    assert rig.device.counters()["tx_dropped_link_down"] == 30


def test_a_tap_whose_queue_has_a_limit_is_given_one_frame_at_a_time(rig: Rig) -> None:
    """Where a frame of several finds no room and the next does, they would change places."""
    fcntl.ioctl(rig.tap.fileno(0), TUNSETSNDBUF, struct.pack("i", 20_000))
    frames = [frame(number) for number in range(100)]
    rig.send_all([PLAIN + data for data in frames])
    assert rig.received(100) == frames
    assert rig.system_calls >= 100

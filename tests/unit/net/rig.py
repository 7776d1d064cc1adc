"""What the tests of the network device share."""

import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from virtiopy.devices.net import Net
from virtiopy.devices.net.control import (
    Ack,
    ControlClass,
    MqCommand,
    RxCommand,
)
from virtiopy.devices.net.features import NetFeature
from virtiopy.devices.net.header import HeaderFlag
from virtiopy.eventloop import READABLE, EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import has_feature
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.buffers import Buffers, scatter
from virtiopy.virtqueue.driver import Allocator, Piece, Used

MAC = bytes.fromhex("020000000001")
OTHER_MAC = bytes.fromhex("020000000002")
GROUP = bytes.fromhex("01005e000001")
BROADCAST = b"\xff" * 6
MTU = 1500
HEADER = 12
LONGEST = MTU + 14
RX, TX, CTRL = 0, 1, 2
F = NetFeature
CSUM, MRG = F.VIRTIO_NET_F_CSUM, F.VIRTIO_NET_F_MRG_RXBUF
CTRL_RX = (F.VIRTIO_NET_F_CTRL_VQ, F.VIRTIO_NET_F_CTRL_RX, F.VIRTIO_NET_F_CTRL_RX_EXTRA)
CTRL_VLAN = (F.VIRTIO_NET_F_CTRL_VQ, F.VIRTIO_NET_F_CTRL_VLAN)
MQ = (F.VIRTIO_NET_F_CTRL_VQ, F.VIRTIO_NET_F_MQ)
ANNOUNCE = (F.VIRTIO_NET_F_CTRL_VQ, F.VIRTIO_NET_F_STATUS, F.VIRTIO_NET_F_GUEST_ANNOUNCE)
TSO = (CSUM, F.VIRTIO_NET_F_HOST_TSO4, F.VIRTIO_NET_F_HOST_TSO6)
GUEST_TSO = (F.VIRTIO_NET_F_GUEST_CSUM, F.VIRTIO_NET_F_GUEST_TSO4, F.VIRTIO_NET_F_GUEST_TSO6)
NEEDS_CSUM = HeaderFlag.NEEDS_CSUM
#: struct virtio_net_config (5.1.4): offset and size of each field
CONFIG_MAC, CONFIG_STATUS, CONFIG_PAIRS, CONFIG_MTU = (0, 6), (6, 2), (8, 2), (10, 2)


def header(  # noqa: PLR0917 - as in the struct
    flags: int = 0,
    gso_type: int = 0,
    hdr_len: int = 0,
    gso_size: int = 0,
    csum_start: int = 0,
    csum_offset: int = 0,
    num_buffers: int = 0,
) -> bytes:
    """struct virtio_net_hdr (5.1.9)."""
    return struct.pack(
        "<BBHHHHH", flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
    )


def frame(
    length: int = 60, destination: bytes = MAC, seed: int = 1, vlan: int | None = None
) -> bytes:
    """An Ethernet frame, every part of which is unlike the others'."""
    start = destination + OTHER_MAC
    if vlan is not None:
        start += b"\x81\x00" + vlan.to_bytes(2, "big")
    start += b"\x88\xb5"
    body = b"".join(struct.pack("<HH", seed & 0xFFFF, n) for n in range(length // 4 + 1))
    return (start + body)[:length]


class FakeLink:
    """A link whose frames come from and go to lists."""

    name = "fake"

    def __init__(self, mtu: int = MTU, pairs: int = 1) -> None:
        self.mtu = mtu
        self.pairs = pairs
        self.incoming: list[deque[bytes]] = [deque() for _ in range(pairs)]
        self.sent: list[list[bytes]] = [[] for _ in range(pairs)]
        self.room = 1 << 30
        self.write_error: OSError | None = None
        self.read_error: OSError | None = None
        self.up = True
        self.offloads: set[str] = set()
        self.enabled = 0
        self.closed = False
        self.meddle: Callable[[], None] = lambda: None

    def fileno(self, pair: int) -> int:
        return 100 + pair

    def state_fileno(self) -> int:
        return 99

    def read(self, pair: int, buffers: Buffers) -> int:
        if self.read_error is not None:
            raise self.read_error
        if not self.incoming[pair]:
            raise BlockingIOError
        return scatter(buffers, self.incoming[pair].popleft())

    def write(self, pair: int, buffers: Sequence[bytes | memoryview]) -> None:
        self.meddle()
        if self.write_error is not None:
            raise self.write_error
        if self.room == 0:
            raise BlockingIOError
        self.room -= 1
        self.sent[pair].append(b"".join(buffers))

    def set_offloads(self, **offloads: bool) -> None:
        self.offloads = {name for name, wanted in offloads.items() if wanted}

    def set_pairs(self, count: int) -> None:
        self.enabled = count

    def worker_file(self, pair: int, mtu: int) -> int:
        return self.fileno(pair)

    def is_up(self) -> bool:
        return self.up

    def dropped(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


class FakeWatch:
    def __init__(self, events: int, callback: Callable[[int], None]) -> None:
        self.events = events
        self.callback = callback
        self.fd = -1


class FakeBottomHalf:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.scheduled = False

    def schedule(self) -> None:
        self.scheduled = True

    def run(self) -> None:
        self.scheduled = False
        self.callback()


class FakeLoop:
    """An event loop whose events the tests make."""

    def __init__(self) -> None:
        self.watches: dict[int, FakeWatch] = {}
        self.bottom_halves: list[FakeBottomHalf] = []

    def watch(self, fd: int, events: int, callback: Callable[[int], None], name: str) -> FakeWatch:
        assert fd not in self.watches
        watch = FakeWatch(events, callback)
        watch.fd = fd
        self.watches[fd] = watch
        return watch

    def unwatch(self, watch: FakeWatch) -> None:
        self.watches.pop(watch.fd, None)

    def bottom_half(self, callback: Callable[[], None], name: str) -> FakeBottomHalf:
        self.bottom_halves.append(FakeBottomHalf(callback))
        return self.bottom_halves[-1]


#: Those of the test that runs.
RIGS: list["Rig"] = []


class Rig:
    """A network device, its link, its loop and its driver."""

    def __init__(
        self,
        features: Iterable[int] | None = (),
        *,
        mtu: int = MTU,
        pairs: int = 1,
        queue_size: int = 64,
    ) -> None:
        self.link = FakeLink(mtu, pairs)
        self.loop = FakeLoop()
        self.device = Net(self.link, mac=MAC, queue_size=queue_size)
        self.memory = GuestMemory.allocate(16 << 20)
        RIGS.append(self)
        self.lines: list[bool] = []
        #: The pieces of each receive buffer, by its head.
        self.buffers: dict[int, list[Piece]] = {}
        self.transport = MmioTransport(self.device, self.memory, LevelInterrupt(self.lines.append))
        self.device.attach(self.transport.lifecycle, cast("EventLoop", self.loop), may_block=False)
        self.driver = MmioDriver(self.transport, self.memory, Allocator(0x10000, 16 << 20))
        if features is not None:
            self.driver.start(features)

    # Transmission

    def send(self, *pieces: bytes, queue: int = TX) -> list[Used]:
        """Make a chain of these pieces available to transmitq1 and kick it."""
        self.offer(*pieces, queue=queue)
        return self.driver.collect(queue)

    def offer(self, *pieces: bytes, queue: int = TX) -> int:
        chain = []
        for piece in pieces:
            address = self.driver.allocator.take(max(1, len(piece)))
            self.memory.write(address, piece)
            chain.append(Piece(address, len(piece)))
        return self.driver.queues[queue].add(chain)

    @property
    def sent(self) -> list[bytes]:
        return self.link.sent[0]

    # Reception

    def supply(self, *sizes: int, queue: int = RX) -> None:
        """Make a receive buffer of these pieces available, and do not kick."""
        pieces = [Piece(self.driver.allocator.take(size), size, writable=True) for size in sizes]
        for piece in pieces:
            self.memory.write(piece.address, b"\xee" * piece.length)
        self.buffers[self.driver.queues[queue].add(pieces)] = pieces

    def arrive(self, *frames: bytes, header_: bytes | None = None, pair: int = 0) -> None:
        """Let frames come, and the loop see them, if it looks."""
        self.link.incoming[pair] += [(header_ or header()) + content for content in frames]
        self.ready(READABLE, pair)

    def ready(self, events: int, pair: int = 0) -> None:
        """Tell the device of events that it waits for."""
        watch = self.loop.watches.get(100 + pair)
        if watch is not None and watch.events & events:
            watch.callback(watch.events & events)

    def watched(self, pair: int = 0) -> int:
        """What the device waits for."""
        watch = self.loop.watches.get(100 + pair)
        return watch.events if watch else 0

    def received(self, queue: int = RX) -> list[bytes]:
        """The contents of the used buffers, as far as they were written."""
        contents = []
        for used in self.driver.queues[queue].take_all_used():
            pieces = self.buffers[used.head]
            content = b"".join(self.memory.read(piece.address, piece.length) for piece in pieces)
            contents.append(content[: used.length])
        return contents

    # Control

    def command(self, class_: int, command: int, data: bytes = b"") -> int:
        """Send a control command; returns its ack."""
        address = self.driver.allocator.take(2 + len(data) + 1)
        self.memory.write(address, bytes([class_, command]) + data + b"\xee")
        queue = max(self.driver.queues) if MQ[1] in self.offered_and_taken() else CTRL
        self.driver.queues[queue].add(
            [Piece(address, 2 + len(data)), Piece(address + 2 + len(data), 1, writable=True)]
        )
        assert [used.length for used in self.driver.collect(queue)] == [1]
        return self.memory.read(address + 2 + len(data), 1)[0]

    def offered_and_taken(self) -> set[int]:
        return {bit for bit in NetFeature if has_feature(self.driver.features, bit)}

    def use_pairs(self, count: int) -> None:
        data = count.to_bytes(2, "little")
        assert self.command(ControlClass.MQ, MqCommand.VQ_PAIRS_SET, data) == Ack.OK

    def reset_queue(self, index: int) -> None:
        self.driver.write(Register.QueueSel, index)
        self.driver.write(Register.QueueReset, 1)

    def mode(self, mode: RxCommand, value: int = 1) -> None:
        assert self.command(ControlClass.RX, mode, bytes([value])) == Ack.OK

    def config(self, field: tuple[int, int]) -> int:
        offset, size = field
        return int.from_bytes(
            b"".join(self.transport.read(Register.Config + offset + n, 1) for n in range(size)),
            "little",
        )

    @property
    def dropped(self) -> dict[str, int]:
        """The counters that are not 0, but for those of what went well."""
        fine = {"rx_frames", "tx_frames", "ctrl_commands"}
        return {k: v for k, v in self.device.counters().items() if v and k not in fine}


def wanted(rig: Rig, content: bytes) -> bool:
    """Say whether a frame gets through to the driver."""
    rig.supply(2048)
    rig.driver.kick(RX)
    before = rig.device.counts.rx_frames
    rig.arrive(content)
    rig.received()
    return rig.device.counts.rx_frames > before


def mac_table(unicast: Sequence[bytes], multicast: Sequence[bytes]) -> bytes:
    """Two of struct virtio_net_ctrl_mac (5.1.9.5.2)."""
    return b"".join(struct.pack("<I", len(macs)) + b"".join(macs) for macs in (unicast, multicast))

"""Network devices with receive-side scaling, which virtiopy's own has not: sound, and with a fault.

As with a tap that has a program for it, the link does the steering, as the device tells it to.
"""

from collections.abc import Sequence

from tests.conformance.mutants import mutants
from tests.conformance.mutants.net_features import Wide
from virtiopy.conformance.drivers.net import HEADER_SIZE
from virtiopy.conformance.drivers.packets import toeplitz
from virtiopy.conformance.targets.builders import MAC, Rig
from virtiopy.conformance.targets.hosts import Link, NetHost
from virtiopy.devices.net.control import Ack
from virtiopy.virtqueue.buffers import gather, scatter
from virtiopy.virtqueue.queue import Chain, Virtqueue

#: The class and the command of MQ_RSS_CONFIG, and VIRTIO_NET_HASH_TYPE_TCPv4.
RSS_CONFIG = bytes([4, 1])
TCPV4 = 1 << 1

#: Where a frame says that TCP over IPv4 is in it, and what of that is hashed.
ETHERTYPE, PROTOCOL = slice(12, 14), 23
ADDRESSES, PORTS = slice(26, 34), slice(34, 38)


class SteeringLink(Link):
    """A link with a steering program: a table, a key, and a queue for frames without a hash."""

    table: Sequence[int] = ()
    key = b""
    unclassified = 0

    def inject_flow(self, data: bytes, flow: int) -> None:
        if self.table:
            self.inject(data, self.queue_of(data[HEADER_SIZE:]))
        else:
            super().inject_flow(data, flow)

    def queue_of(self, frame: bytes) -> int:
        if frame[ETHERTYPE] != b"\x08\x00" or frame[PROTOCOL] != 6:
            return self.unclassified
        return self.table[toeplitz(self.key, frame[ADDRESSES] + frame[PORTS]) % len(self.table)]


class Rss(Wide):
    """Has its link steer."""

    link: SteeringLink

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        command = gather(chain.readable)
        if command[:2] != RSS_CONFIG:
            return super().serve(queue, chain)
        # Hash types, mask, then queues: for frames without a hash, and the table.
        mask = int.from_bytes(command[6:8], "little")
        ids = command[8 : 8 + 2 * (mask + 2)]
        queues = [int.from_bytes(ids[at : at + 2], "little") for at in range(0, len(ids), 2)]
        self.steer(queues[0], queues[1:], command[8 + len(ids) + 3 :])
        return scatter(chain.writable, bytes([Ack.OK]))

    def steer(self, unclassified: int, table: Sequence[int], key: bytes) -> None:
        self.set_pairs(self.max_pairs)
        self.link.unclassified, self.link.table, self.link.key = unclassified, table, key

    def reset_queue(self, index: int) -> None:
        if not self.link.table:
            super().reset_queue(index)
            return
        self.stop_queue(index)
        if index < self.control_index and index % 2 == 0:
            pair = self.pairs[index // 2]
            pair.being_reset, pair.taker = True, None
            self.update_watch(pair)


class ReadsTheKeyBackwards(Rss):
    """Reads the key backwards."""

    def steer(self, unclassified: int, table: Sequence[int], key: bytes) -> None:
        super().steer(unclassified, table, key[::-1])


class HasNoQueueForUnclassifiedFrames(Rss):
    def steer(self, unclassified: int, table: Sequence[int], key: bytes) -> None:
        super().steer(table[0], table, key)


class FindsAnotherQueueForFrames(Rss):
    """Does with RSS what is to be done without."""

    def reset_queue(self, index: int) -> None:
        super(Rss, self).reset_queue(index)


def build_rss(kind: type[Rss] = Rss) -> Rig:
    """Make a network device with two pairs of virtqueues and RSS."""
    link = SteeringLink(pairs=2)
    device = kind(link, mac=MAC, queue_size=128)
    return Rig(device, NetHost(link, device.announce))


MUTANTS = [
    *mutants(
        build_rss,
        [
            ("5.1.9.5.7.3:1", ReadsTheKeyBackwards),
            ("5.1.9.5.7.3:1", HasNoQueueForUnclassifiedFrames),
            ("5.1.9.5.7.3:2", FindsAnotherQueueForFrames),
        ],
    )
]

"""Network devices with features that virtiopy's own has not, sound and with a fault.

The sound ones are here so that the tests for those features run at all.
"""

from collections.abc import Mapping
from typing import ClassVar

from tests.conformance.mutants import mutants
from virtiopy.conformance.clauses.features import FEATURES
from virtiopy.conformance.targets.builders import build_net
from virtiopy.devices.net import FrameLink, Net
from virtiopy.devices.net.control import Ack, CommandError
from virtiopy.spec import feature_mask
from virtiopy.virtqueue.buffers import gather, scatter, total
from virtiopy.virtqueue.queue import Chain, Virtqueue

#: Commands of VIRTIO_NET_CTRL_NOTF_COAL (5.1.9.5.10), and its class.
NOTF_COAL = 6
TX_SET, RX_SET, VQ_SET, VQ_GET = range(4)

#: Bytes of struct virtio_net_ctrl_coal, and of what is before it in virtio_net_ctrl_coal_vq.
COAL, VQ = 8, 4


def net_features(*names: str) -> int:
    """Return the bits of features of network devices."""
    return feature_mask(FEATURES[f"VIRTIO_NET_F_{name}"] for name in names)


# Fields of the configuration space (5.1.4)

#: Those after mtu, in their order: bytes, and a value that is right.
FIELDS = {
    "speed": (4, 10_000),
    "duplex": (1, 1),
    "rss_max_key_size": (1, 40),
    "rss_max_indirection_table_length": (2, 128),
    "supported_hash_types": (4, 1 << 1),
    "supported_tunnel_types": (4, 0),
}


class Wide(Net):
    """Has all fields of the configuration space, and offers the features that they belong to."""

    more: ClassVar[int] = net_features("SPEED_DUPLEX", "HASH_REPORT", "RSS")
    less: ClassVar[int] = 0

    def __init__(self, link: FrameLink, *, mac: bytes, queue_size: int = 256) -> None:
        super().__init__(link, mac=mac, queue_size=queue_size)
        self.features = (self.features | self.more) & ~self.less

    def wrong(self) -> Mapping[str, int]:
        """Return what is wrong, by the field's name."""
        return {}

    def config_space(self) -> bytes:
        rest = b"".join(
            self.wrong().get(field, value).to_bytes(size, "little")
            for field, (size, value) in FIELDS.items()
        )
        return super().config_space() + rest


class HasAShortRssKey(Wide):
    def wrong(self) -> Mapping[str, int]:
        return {"rss_max_key_size": 39}


class HasAShortIndirectionTable(Wide):
    def wrong(self) -> Mapping[str, int]:
        return {"rss_max_indirection_table_length": 127}


class HasASpeedThatIsNone(Wide):
    def wrong(self) -> Mapping[str, int]:
        return {"speed": 0x80000000}


class HasADuplexModeThatIsNone(Wide):
    def wrong(self) -> Mapping[str, int]:
        return {"duplex": 2}


class TellsItsThroughput(Wide):
    """Has for its speed what passes."""

    def wrong(self) -> Mapping[str, int]:
        return {"speed": self.counts.tx_frames}


class ReportsHashesWithoutAControlQueue(Wide):
    less: ClassVar[int] = net_features("CTRL_VQ")


class HasReceiveModesWithoutAControlQueue(Net):
    def __init__(self, link: FrameLink, *, mac: bytes, queue_size: int = 256) -> None:
        super().__init__(link, mac=mac, queue_size=queue_size)
        self.features &= ~net_features("CTRL_VQ")


# Coalescing of notifications (5.1.9.5.10)


class Coalescing(Net):
    """Keeps the parameters of coalescing, and sends as many notifications as ever."""

    def __init__(self, link: FrameLink, *, mac: bytes, queue_size: int = 256) -> None:
        super().__init__(link, mac=mac, queue_size=queue_size)
        self.features |= net_features("NOTF_COAL", "VQ_NOTF_COAL")
        self.for_all = [bytes(COAL), bytes(COAL)]  # receive queues, transmit queues
        self.parameters: dict[int, bytes] = {}

    def reset(self) -> None:
        super().reset()
        self.for_all = [bytes(COAL), bytes(COAL)]
        self.parameters = {}

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        super().start_queue(index, queue)
        self.parameters[index] = self.for_all[index % 2]

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        command = gather(chain.readable)
        if len(command) < 2 or command[0] != NOTF_COAL or not total(chain.writable):
            return super().serve(queue, chain)
        result, ack = bytes(total(chain.writable) - 1), Ack.OK
        try:
            if command[1] == VQ_GET:
                result = self.get(command[2:])
            else:
                self.set(command[1], command[2:])
        except CommandError:
            ack = Ack.ERR
        return scatter(chain.writable, result + bytes([ack]))

    def get(self, data: bytes) -> bytes:
        return self.parameters.get(self.queue_of(data), bytes(COAL))

    def set(self, command: int, data: bytes) -> None:
        if len(data) != (VQ + COAL if command == VQ_SET else COAL):
            raise CommandError("half of the parameters")
        if command == VQ_SET:
            self.parameters[self.queue_of(data)] = data[VQ:]
            return
        ring = int(command == TX_SET)
        self.for_all[ring] = data
        self.parameters.update(dict.fromkeys(range(ring, self.control_index, 2), data))

    def queue_of(self, data: bytes) -> int:
        index = int.from_bytes(data[:2], "little")
        if index not in self.queues or index >= self.control_index:
            raise CommandError("no queue that is enabled")
        return index


class RefusesReserved(Coalescing):
    def queue_of(self, data: bytes) -> int:
        if any(data[2:VQ]):
            raise CommandError("reserved is not 0")
        return super().queue_of(data)


class TakesHalfOfTheParameters(Coalescing):
    def set(self, command: int, data: bytes) -> None:
        super().set(command, data.ljust(VQ + COAL if command == VQ_SET else COAL, b"\0"))


class HasParametersForEveryQueue(Coalescing):
    def queue_of(self, data: bytes) -> int:
        return int.from_bytes(data[:2], "little")


class KeepsTheParametersOfAQueue(Coalescing):
    def start_queue(self, index: int, queue: Virtqueue) -> None:
        before = self.parameters.get(index, bytes(COAL))
        super().start_queue(index, queue)
        self.parameters[index] = before


class ForgetsTheParametersForAll(Coalescing):
    def start_queue(self, index: int, queue: Virtqueue) -> None:
        super().start_queue(index, queue)
        self.parameters[index] = bytes(COAL)


class NotifiesInSpiteOfTheDriver(Coalescing):
    def notify(self, queue: Virtqueue) -> None:
        if any(self.for_all[1]):
            self.host.used_buffer_notification(queue)
        super().notify(queue)


class KeepsParametersOverAReset(Coalescing):
    def reset(self) -> None:
        before = self.parameters
        super().reset()
        self.parameters = before


MUTANTS = [
    *mutants(
        build_net,
        [
            ("5.1.4.1:7", HasAShortRssKey),
            ("5.1.4.1:8", HasAShortIndirectionTable),
            ("5.1.4.1:10", HasASpeedThatIsNone),
            ("5.1.4.1:11", HasADuplexModeThatIsNone),
            ("5.1.4.1:12", TellsItsThroughput),
            ("5.1.4.1:13", ReportsHashesWithoutAControlQueue),
        ],
        Wide,
    ),
    *mutants(build_net, [("5.1.4.1:14", HasReceiveModesWithoutAControlQueue)]),
    *mutants(
        build_net,
        [
            ("5.1.9.5.10.6:1", RefusesReserved),
            ("5.1.9.5.10.6:2", TakesHalfOfTheParameters),
            ("5.1.9.5.10.6:3", TakesHalfOfTheParameters),
            ("5.1.9.5.10.6:4", HasParametersForEveryQueue),
            ("5.1.9.5.10.6:5", KeepsTheParametersOfAQueue),
            ("5.1.9.5.10.6:5", ForgetsTheParametersForAll),
            ("5.1.9.5.10.6:6", KeepsTheParametersOfAQueue),
            ("5.1.9.5.10.6:6", ForgetsTheParametersForAll),
            ("5.1.9.5.10.6:8", NotifiesInSpiteOfTheDriver),
            ("5.1.9.5.10.6:9", KeepsParametersOverAReset),
        ],
        Coalescing,
    ),
]

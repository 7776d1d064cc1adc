"""The network device's control virtqueue, and the receive filter that it sets (5.1.9.5)."""

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from virtiopy.devices.net.features import NetFeature
from virtiopy.devices.net.header import is_vlan_tagged
from virtiopy.spec import has_feature
from virtiopy.virtqueue.buffers import gather, scatter, total
from virtiopy.virtqueue.queue import Chain

log = logging.getLogger(__name__)

#: Bytes of a MAC address.
MAC_SIZE = 6
BROADCAST = b"\xff" * MAC_SIZE

#: The longest command that is read, bytes: a MAC table of more than 10,000 addresses.
MAX_COMMAND = 1 << 16

#: Start, end and meaningful bits of the VLAN ID in a tagged frame.
_VLAN_ID = slice(14, 16)
_VLAN_ID_MASK = 0xFFF
_VLAN_IDS = 1 << 12


class ControlClass(enum.IntEnum):
    """VIRTIO_NET_CTRL_* that are classes of commands (5.1.9.5)."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4


class RxCommand(enum.IntEnum):
    """VIRTIO_NET_CTRL_RX_* (5.1.9.5.1)."""

    PROMISC = 0
    ALLMULTI = 1
    ALLUNI = 2
    NOMULTI = 3
    NOUNI = 4
    NOBCAST = 5


class MacCommand(enum.IntEnum):
    """VIRTIO_NET_CTRL_MAC_* (5.1.9.5.2)."""

    TABLE_SET = 0
    ADDR_SET = 1


class VlanCommand(enum.IntEnum):
    """VIRTIO_NET_CTRL_VLAN_* (5.1.9.5.3)."""

    ADD = 0
    DEL = 1


class AnnounceCommand(enum.IntEnum):
    """VIRTIO_NET_CTRL_ANNOUNCE_* (5.1.9.5.4)."""

    ACK = 0


class MqCommand(enum.IntEnum):
    """VIRTIO_NET_CTRL_MQ_* (5.1.9.5.5)."""

    VQ_PAIRS_SET = 0


class Ack(enum.IntEnum):
    """VIRTIO_NET_OK and VIRTIO_NET_ERR (5.1.9.5)."""

    OK = 0
    ERR = 1


def is_multicast(mac: bytes) -> bool:
    """Say whether this is a group address: multicast or broadcast."""
    return bool(mac[0] & 1)


@dataclass(slots=True)
class ReceiveFilter:
    """Which incoming frames the driver wants.

    Nothing is filtered by address unless `filters_addresses`, nor by VLAN unless `filters_vlans`:
    the driver negotiated CTRL_RX, CTRL_VLAN.
    """

    mac: bytes
    filters_addresses: bool = False
    filters_vlans: bool = False
    modes: set[RxCommand] = field(default_factory=set)
    #: The MAC filter table: empty on reset (5.1.9.5.2.1).
    table: frozenset[bytes] = frozenset()
    #: The VLAN filter table: empty at the start (5.1.9.5.3).
    vlans: set[int] = field(default_factory=set)

    def wants(self, frame: bytes) -> bool:
        """Say whether a frame that begins with these bytes, 18 at least, is to be received."""
        if RxCommand.PROMISC in self.modes:
            return True
        vlan = int.from_bytes(frame[_VLAN_ID], "big") & _VLAN_ID_MASK
        if self.filters_vlans and is_vlan_tagged(frame) and vlan not in self.vlans:
            return False
        return not self.filters_addresses or self._wants_address(frame[:MAC_SIZE])

    def _wants_address(self, destination: bytes) -> bool:
        # Each NO... goes before the ALL... beside it (5.1.9.5.1.1).
        if destination == BROADCAST:
            return RxCommand.NOBCAST not in self.modes
        if is_multicast(destination):
            if RxCommand.NOMULTI in self.modes:
                return False
            return RxCommand.ALLMULTI in self.modes or destination in self.table
        if RxCommand.NOUNI in self.modes:
            return False
        return (
            destination == self.mac or RxCommand.ALLUNI in self.modes or destination in self.table
        )


class Controlled(Protocol):
    """What the commands act on: the network device."""

    driver_features: int
    filter: ReceiveFilter
    max_pairs: int

    def announce_acknowledged(self) -> None:
        """Clear VIRTIO_NET_S_ANNOUNCE."""

    def set_mac(self, mac: bytes) -> None:
        """Take the driver's own address."""

    def set_pairs(self, count: int) -> None:
        """Use the first `count` pairs of virtqueues."""


class CommandError(Exception):
    """A command that is answered with VIRTIO_NET_ERR."""


class Control:
    """Carries out the commands of the control virtqueue: parse, execute, complete."""

    def __init__(self, device: Controlled) -> None:
        self._device = device
        self.commands = 0
        self.refused = 0
        rx, extra = NetFeature.VIRTIO_NET_F_CTRL_RX, NetFeature.VIRTIO_NET_F_CTRL_RX_EXTRA
        vlan = NetFeature.VIRTIO_NET_F_CTRL_VLAN
        # By class and command: the feature that the command needs, and what does it.
        self._commands: dict[tuple[int, int], tuple[NetFeature, Callable[[bytes], None]]] = {
            (ControlClass.RX, RxCommand.PROMISC): (rx, self._mode_setter(RxCommand.PROMISC)),
            (ControlClass.RX, RxCommand.ALLMULTI): (rx, self._mode_setter(RxCommand.ALLMULTI)),
            (ControlClass.RX, RxCommand.ALLUNI): (extra, self._mode_setter(RxCommand.ALLUNI)),
            (ControlClass.RX, RxCommand.NOMULTI): (extra, self._mode_setter(RxCommand.NOMULTI)),
            (ControlClass.RX, RxCommand.NOUNI): (extra, self._mode_setter(RxCommand.NOUNI)),
            (ControlClass.RX, RxCommand.NOBCAST): (extra, self._mode_setter(RxCommand.NOBCAST)),
            (ControlClass.MAC, MacCommand.TABLE_SET): (rx, self._set_table),
            (ControlClass.MAC, MacCommand.ADDR_SET): (
                NetFeature.VIRTIO_NET_F_CTRL_MAC_ADDR,
                self._set_address,
            ),
            (ControlClass.VLAN, VlanCommand.ADD): (vlan, self._add_vlan),
            (ControlClass.VLAN, VlanCommand.DEL): (vlan, self._delete_vlan),
            (ControlClass.ANNOUNCE, AnnounceCommand.ACK): (
                NetFeature.VIRTIO_NET_F_GUEST_ANNOUNCE,
                self._acknowledge_announcement,
            ),
            (ControlClass.MQ, MqCommand.VQ_PAIRS_SET): (
                NetFeature.VIRTIO_NET_F_MQ,
                self._set_pairs,
            ),
        }

    def serve(self, chain: Chain) -> int:
        """Serve one command; returns the bytes written: the ack, if there is room for one."""
        self.commands += 1
        if total(chain.writable) == 0:
            # Nothing can be answered, so nothing is done.
            self.refused += 1
            log.warning("a control command without an ack byte (5.1.9.5)")
            return 0
        try:
            self.execute(*self.parse(chain))
        except CommandError as error:
            self.refused += 1
            log.info("control command refused: %s", error)
            return scatter(chain.writable, bytes([Ack.ERR]))
        return scatter(chain.writable, bytes([Ack.OK]))

    @staticmethod
    def parse(chain: Chain) -> tuple[int, int, bytes]:
        """Return class, command and command-specific-data of struct virtio_net_ctrl."""
        if total(chain.readable) > MAX_COMMAND:
            raise CommandError(f"a command of {total(chain.readable)} bytes")
        data = gather(chain.readable)
        if len(data) < 2:
            raise CommandError("no class and command")
        return data[0], data[1], data[2:]

    def execute(self, class_: int, command: int, data: bytes) -> None:
        """Carry out a command, or raise CommandError."""
        feature, function = self._commands.get((class_, command), (None, None))
        if feature is None or function is None:
            raise CommandError(f"unknown class {class_}, command {command}")
        if not has_feature(self._device.driver_features, feature):
            raise CommandError(f"class {class_}, command {command} without {feature.name}")
        function(data)

    # The commands, given their command-specific-data

    def _mode_setter(self, mode: RxCommand) -> Callable[[bytes], None]:
        def set_mode(data: bytes) -> None:
            if data not in (b"\0", b"\1"):
                raise CommandError(f"{mode.name} is neither 0 nor 1")
            if data == b"\1":
                self._device.filter.modes.add(mode)
            else:
                self._device.filter.modes.discard(mode)

        return set_mode

    def _set_table(self, data: bytes) -> None:
        unicast, rest = _take_macs(data)
        multicast, rest = _take_macs(rest)
        if rest:
            raise CommandError("bytes after the MAC table")
        if any(map(is_multicast, unicast)) or not all(map(is_multicast, multicast)):
            raise CommandError("a MAC address in the other kind's table (5.1.9.5.2.2)")
        self._device.filter.table = frozenset(unicast + multicast)

    def _set_address(self, data: bytes) -> None:
        if len(data) != MAC_SIZE or is_multicast(data) or not any(data):
            raise CommandError("no unicast MAC address")
        self._device.set_mac(data)

    def _add_vlan(self, data: bytes) -> None:
        self._device.filter.vlans.add(_vlan_id(data))

    def _delete_vlan(self, data: bytes) -> None:
        self._device.filter.vlans.discard(_vlan_id(data))

    def _acknowledge_announcement(self, data: bytes) -> None:
        if data:
            raise CommandError("ANNOUNCE_ACK with data")
        self._device.announce_acknowledged()

    def _set_pairs(self, data: bytes) -> None:
        count = int.from_bytes(data, "little")
        if len(data) != 2 or not 1 <= count <= self._device.max_pairs:
            raise CommandError(f"virtqueue_pairs {count} (5.1.9.5.6.1)")
        self._device.set_pairs(count)


def _take_macs(data: bytes) -> tuple[list[bytes], bytes]:
    """Take one struct virtio_net_ctrl_mac off; returns its addresses and what follows it."""
    entries = int.from_bytes(data[:4], "little")
    end = 4 + entries * MAC_SIZE
    if len(data) < 4 or len(data) < end:
        raise CommandError("a truncated MAC table")
    return [data[start : start + MAC_SIZE] for start in range(4, end, MAC_SIZE)], data[end:]


def _vlan_id(data: bytes) -> int:
    vlan = int.from_bytes(data, "little")
    if len(data) != 2 or vlan >= _VLAN_IDS:
        raise CommandError("no VLAN id")
    return vlan

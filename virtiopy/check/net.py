"""Frames and commands of a network device's driver, held against 5.1."""

from collections.abc import Mapping
from typing import ClassVar

from virtiopy.check.fields import FIELDS, feature_bit
from virtiopy.check.judge import DeviceJudge
from virtiopy.check.requests import JudgedDevice, RequestJudge, head_of, number
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.buffers import gather, split_at, total
from virtiopy.virtqueue.queue import Chain, Virtqueue

_NET = "VIRTIO_NET_F_"
_OFFSETS = {field.name: field.offset for field in FIELDS[DeviceId.NETWORK]}

#: struct virtio_net_hdr (5.1.9): without what VIRTIO_NET_F_HASH_REPORT and tunnels add.
_HEADER = 12
_HASH_REPORT = 8

_NEEDS_CSUM, _DATA_VALID, _RSC_INFO, _TUNNEL_CSUM = 1, 2, 4, 8
_GSO_ECN, _TUNNEL_IPV4, _TUNNEL_IPV6 = 0x80, 0x20, 0x40
_TUNNELS = _TUNNEL_IPV4 | _TUNNEL_IPV6

#: gso_type without its bits: its name, the feature, and the statements (may, must not).
_GSO: Mapping[int, tuple[str, str, str, str]] = {
    1: ("TCPV4", "HOST_TSO4", "5.1.9.2.1:6", "5.1.9.2.1:7"),
    4: ("TCPV6", "HOST_TSO6", "5.1.9.2.1:8", "5.1.9.2.1:9"),
    3: ("UDP", "HOST_UFO", "5.1.9.2.1:10", "5.1.9.2.1:11"),
    5: ("UDP_L4", "HOST_USO", "5.1.9.2.1:12", "5.1.9.2.1:13"),
}
_TCP = {1: "HOST_TSO4", 4: "HOST_TSO6"}

#: The place of the flags in a TCP header, its bit CWR, and how far headers go that are looked at.
_TCP_FLAGS, _CWR, _HEADERS_MOST = 13, 0x80, 128

_SEGMENTATION = ("HOST_TSO4", "HOST_TSO6", "HOST_UFO", "HOST_USO")
_GUEST_SEGMENTATION = ("GUEST_TSO4", "GUEST_TSO6", "GUEST_UFO", "GUEST_USO4", "GUEST_USO6")

#: Least bytes of a receive buffer without VIRTIO_NET_F_MRG_RXBUF, besides the header (5.1.9.3.1).
_LARGE_FRAME, _FRAME = 65589, 1514

_ETHERNET_HEADER = 14

#: The Ethernet header with two VLAN tags, bytes: the longest that comes before mtu (5.1.4.1).
_ETHERNET_HEADER_MOST = 22

#: Classes of commands (5.1.9.5), and what each takes: a feature, the statement, and its commands.
_MQ = 4
_COMMANDS: Mapping[int, tuple[tuple[str, str, frozenset[int]], ...]] = {
    0: (
        ("CTRL_RX", "5.1.9.5.1.2:1", frozenset({0, 1})),
        ("CTRL_RX_EXTRA", "5.1.9.5.1.2:2", frozenset({2, 3, 4, 5})),
    ),
    1: (("CTRL_RX", "5.1.9.5.2.2:1", frozenset({0})),),
    4: (("RSS", "5.1.9.5.7.2:1", frozenset({1})),),
    6: (
        ("NOTF_COAL", "5.1.9.5.10.5:2", frozenset({0, 1})),
        ("VQ_NOTF_COAL", "5.1.9.5.10.5:3", frozenset({2, 3})),
    ),
    7: (("HASH_TUNNEL", "5.1.9.4.4.5:1", frozenset({0})),),
}


class NetJudge(RequestJudge):
    """Judges what a network device's driver sends, receives into and commands."""

    device_id: ClassVar[DeviceId] = DeviceId.NETWORK

    def __init__(self, judge: DeviceJudge, device: JudgedDevice) -> None:
        super().__init__(judge, device)
        self._pairs = 1

    def _has(self, *names: str) -> bool:
        return any(self.accepted(feature_bit(_NET + name)) for name in names)

    @property
    def _header(self) -> int:
        return _HEADER + (_HASH_REPORT if self._has("HASH_REPORT") else 0)

    def _is_control(self, index: int) -> bool:
        # After the receive and transmit queues: of max_virtqueue_pairs where MQ or RSS was taken.
        pairs = self.config(_OFFSETS["max_virtqueue_pairs"], 2) if self._has("MQ", "RSS") else 1
        return self._has("CTRL_VQ") and pairs is not None and index == 2 * max(pairs, 1)

    def request(self, queue: Virtqueue, chain: Chain) -> None:
        """Judge one buffer."""
        if self._is_control(queue.index):
            self._command(gather(split_at(chain.readable, 2)[0]), chain)
        elif queue.index % 2:
            self._transmit(queue.index, chain)
        else:
            self._receive(queue.index, chain)

    # Receive buffers (5.1.9.3.1)

    def _receive(self, index: int, chain: Chain) -> None:
        size = total(chain.writable)
        if self._has("MRG_RXBUF"):
            self._judge.check(
                "5.1.9.3.1:3",
                size >= self._header,
                f"a receive buffer of {size} bytes; the header alone has {self._header}",
            )
        else:
            large = self._has(*_GUEST_SEGMENTATION)
            least = self._header + (_LARGE_FRAME if large else _FRAME)
            whole = self._judge.check(
                "5.1.9.3.1:1" if large else "5.1.9.3.1:2",
                size >= least,
                f"a receive buffer of {size} bytes in queue {index}; {least} are asked for",
            )
            mtu = self.config(_OFFSETS["mtu"], 2)
            if whole and self._has("MTU") and mtu is not None:
                self._judge.check(
                    "5.1.4.2:8",
                    size >= self._header + _ETHERNET_HEADER + mtu,
                    f"a receive buffer of {size} bytes; mtu is {mtu}",
                )
        if self._has("MQ") and index:
            self._judge.kept("5.1.9.3.1:5")

    # Frames to send (5.1.9.2.1)

    def _transmit(self, index: int, chain: Chain) -> None:
        header = head_of(chain, _HEADER)
        if len(header) < _HEADER:
            self._judge.broke(
                "5.1.9.2.1:1", f"a frame to send of {len(header)} bytes, less than its header"
            )
            return
        self._judge.kept("5.1.9.2.1:1")
        self._judge.kept("5.1.9.3.1:4")
        flags, gso = header[0], header[1]
        self._header_fields(header, flags, gso, total(chain.readable) - self._header)
        feature = _TCP.get(gso & ~(_GSO_ECN | _TUNNELS))
        if feature is not None and self._has(feature):
            self._congestion(head_of(chain, self._header + _HEADERS_MOST), gso)
        self._queue(index)

    def _header_fields(self, header: bytes, flags: int, gso: int, length: int) -> None:
        check = self._judge.check
        buffers = number(header, 10, 2)
        check("5.1.9.2.1:2", buffers == 0, f"num_buffers is {buffers} in a frame to send")
        check(
            "5.1.9.2.1:45",
            not flags & (_DATA_VALID | _RSC_INFO),
            f"flags is {flags:#x} in a frame to send: DATA_VALID and RSC_INFO are the device's",
        )
        self._tunnel(flags, gso)
        if not self._has("CSUM"):
            check(
                "5.1.9.2.1:3",
                flags & ~(_DATA_VALID | _RSC_INFO | _TUNNEL_CSUM) == 0,
                f"flags is {flags:#x} in a frame to send without VIRTIO_NET_F_CSUM",
            )
        elif flags & _NEEDS_CSUM:
            self._judge.kept("5.1.9.2.1:27")
            start, offset = number(header, 6, 2), number(header, 8, 2)
            check(
                "5.1.9.2.1:30",
                start + offset + 2 <= length,
                f"csum_start {start} and csum_offset {offset} in a frame of {length} bytes",
            )
        self._segmentation(header, flags, gso & ~(_GSO_ECN | _TUNNELS), length)

    def _tunnel(self, flags: int, gso: int) -> None:
        """Judge the bits of UDP tunnels, whose features no device here offers."""
        if self._judge.check(
            "5.1.9.2.1:42", not gso & _TUNNELS, f"gso_type is {gso:#x}, with a bit of UDP tunnels"
        ):
            for statement in ("5.1.9.2.1:17", "5.1.9.2.1:24", "5.1.9.2.1:25", "5.1.9.2.1:46"):
                self._judge.kept(statement)
        if self._judge.check(
            "5.1.9.2.1:43", not flags & _TUNNEL_CSUM, f"flags is {flags:#x}, with UDP_TUNNEL_CSUM"
        ):
            for statement in ("5.1.9.2.1:20", "5.1.9.2.1:22", "5.1.9.2.1:23", "5.1.9.2.1:26"):
                self._judge.kept(statement)

    def _segmentation(self, header: bytes, flags: int, kind: int, length: int) -> None:
        check = self._judge.check
        if not self._has(*_SEGMENTATION) and kind not in _GSO:
            check("5.1.9.2.1:31", kind == 0, f"gso_type is {kind} without a segmentation feature")
        if kind == 0:
            self._length(length)
            return
        if kind in _GSO:
            name, feature, may, must_not = _GSO[kind]
            if not self._has(feature):
                self._judge.broke(must_not, f"gso_type is {name} without VIRTIO_NET_F_{feature}")
                return
            self._judge.kept(may)
        check("5.1.9.2.1:32", bool(flags & _NEEDS_CSUM), "a frame to segment without NEEDS_CSUM")
        size, headers = number(header, 4, 2), number(header, 2, 2)
        check("5.1.9.2.1:33", size > 0, "a frame to segment with gso_size 0")
        check(
            "5.1.9.2.1:35",
            headers > 0,
            f"a frame to segment with hdr_len {headers}",
        )

    def _congestion(self, frame: bytes, gso: int) -> None:
        """Judge a TCP segment to cut that has the bit of congestion notification (CWR)."""
        flags_at = self._header + number(frame, 6, 2) + _TCP_FLAGS
        if flags_at >= len(frame) or not frame[flags_at] & _CWR:
            return
        if self._has("HOST_ECN"):
            self._judge.check(
                "5.1.9.2.1:15", bool(gso & _GSO_ECN), "a TCP frame with CWR, without GSO_ECN"
            )
        else:
            self._judge.broke(
                "5.1.9.2.1:14", "a TCP frame with CWR to segment, without VIRTIO_NET_F_HOST_ECN"
            )

    def _length(self, length: int) -> None:
        mtu = self.config(_OFFSETS["mtu"], 2)
        if self._has("MTU") and mtu is not None:
            self._judge.check(
                "5.1.4.2:9",
                length <= mtu + _ETHERNET_HEADER_MOST,
                f"a frame of {length} bytes; mtu is {mtu}",
            )

    def _queue(self, index: int) -> None:
        if not self._has("MQ"):
            return
        pair = index // 2
        statement = "5.1.9.5.6.1:3" if self._pairs == 1 else "5.1.9.5.6.1:4"
        self._judge.check(
            statement,
            pair < self._pairs,
            f"a frame in transmitq{pair + 1}; the driver has enabled {self._pairs} pairs",
        )

    # Commands (5.1.9.5)

    def _command(self, command: bytes, chain: Chain) -> None:
        if len(command) < 2:
            return
        kind, number_ = command
        for feature, statement, commands in _COMMANDS.get(kind, ()):
            if number_ in commands:
                self._judge.check(
                    statement,
                    self._has(feature),
                    f"command {number_} of class {kind} without VIRTIO_NET_F_{feature}",
                )
        if (kind, number_) == (_MQ, 0):
            self._set_pairs(number(head_of(chain, 4), 2, 2))
        elif (kind, number_) == (1, 0):
            self._mac_table(gather(split_at(chain.readable, 2)[1]))

    def _set_pairs(self, pairs: int) -> None:
        most = self.config(_OFFSETS["max_virtqueue_pairs"], 2)
        if most is not None and self._judge.check(
            "5.1.9.5.6.1:2",
            1 <= pairs <= most,
            f"VQ_PAIRS_SET {pairs}; max_virtqueue_pairs is {most}",
        ):
            self._pairs = pairs
            missing = [index for index in range(2 * pairs) if index not in self._device.queues]
            self._judge.check(
                "5.1.9.5.6.1:1",
                not missing,
                f"VQ_PAIRS_SET {pairs}, and queues {missing} are not configured",
            )

    def _mac_table(self, table: bytes) -> None:
        unicast = number(table, 0, 4)
        second = 4 + 6 * unicast
        multicast = number(table, second, 4)
        self._judge.check(
            "5.1.9.5.2.2:3",
            len(table) >= second + 4 and len(table) == second + 4 + 6 * multicast,
            f"MAC_TABLE_SET of {len(table)} bytes for {unicast} and {multicast} addresses",
        )
        if not unicast or not multicast:
            self._judge.kept("5.1.9.5.2.2:4")

    def config_written(self, offset: int) -> None:
        """Judge a write of the configuration space."""
        self._judge.broke(
            "5.1.4.2:1", f"the driver writes byte {offset} of the configuration space"
        )

    def finish(self, *, by_driver: bool) -> None:
        """Begin the driver's next life."""
        self._pairs = 1

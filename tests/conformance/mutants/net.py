"""Network devices with a fault."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from tests.conformance.faults import FaultyChain, Proxy, QueueProxy, faulty
from tests.conformance.mutants import mutants, over_queue
from virtiopy._native import ffi
from virtiopy.conformance.drivers.net import UNKNOWN_GSO, Gso
from virtiopy.conformance.targets.builders import build_net
from virtiopy.devices.net import FrameLink, Net
from virtiopy.devices.net.control import ReceiveFilter
from virtiopy.devices.net.features import Terms
from virtiopy.devices.net.header import (
    GSO_NONE,
    HEADER_SIZE,
    HeaderError,
    HeaderFlag,
    TxRules,
)
from virtiopy.devices.net.path import Receiver
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, split_at, total
from virtiopy.virtqueue.queue import Chain, Virtqueue

#: Where struct virtio_net_hdr says how many buffers a frame has.
NUM_BUFFERS = slice(10, 12)

# The configuration space (5.1.4)


class _Configuration(Net):
    """Writes over fields of the configuration space."""

    def fields(self) -> Mapping[str, int]:
        """Return what is wrong, by the field's name."""
        raise NotImplementedError

    def config_space(self) -> bytes:
        config = ffi.new("struct virtio_net_config *")
        right = super().config_space()
        ffi.buffer(config)[: len(right)] = right
        for field, value in self.fields().items():
            setattr(config, field, value)
        return bytes(ffi.buffer(config))[: len(right)]


class HasNoPairs(_Configuration):
    def fields(self) -> Mapping[str, int]:
        return {"max_virtqueue_pairs": 0}


class HasTheMtuOfAModem(_Configuration):
    def fields(self) -> Mapping[str, int]:
        return {"mtu": 67}


class HasAnMtuTooSmallForIpv6(_Configuration):
    def fields(self) -> Mapping[str, int]:
        return {"mtu": 1279}


class ShrinksItsMtu(_Configuration):
    """Finds out, by sending, that the path takes less."""

    def fields(self) -> Mapping[str, int]:
        return {"mtu": self.mtu - self.counts.tx_frames}


# Sending (5.1.9.2)


class _Terms(Net):
    """Changes the terms on which frames pass."""

    def changed(self, terms: Terms) -> Terms:
        """Return other terms than those agreed on."""
        raise NotImplementedError

    def negotiated(self, driver_features: int) -> None:
        super().negotiated(driver_features)
        self.terms = self.changed(self.terms)


class PassesFramesAboveTheMtu(_Terms):
    def changed(self, terms: Terms) -> Terms:
        return replace(terms, rx_mtu=None)


class CountsTheEthernetHeaderAsPayload(_Terms):
    """Sends no frame above the MTU, with its header."""

    def changed(self, terms: Terms) -> Terms:
        mtu = terms.tx.mtu
        return replace(terms, tx=replace(terms.tx, mtu=None if mtu is None else mtu - 14))


class _StrictRules(TxRules):
    def check(self, header: bytes, frame: Buffers, frame_length: int) -> bytes:
        if header[0] > HeaderFlag.NEEDS_CSUM | HeaderFlag.DATA_VALID:
            raise HeaderError("an unknown flag")
        return super().check(header, frame, frame_length)


class _EagerRules(TxRules):
    def check(self, header: bytes, frame: Buffers, frame_length: int) -> bytes:
        if any(header[6:10]):
            header = bytes([header[0] | HeaderFlag.NEEDS_CSUM]) + header[1:]
        return super().check(header, frame, frame_length)


class _TrustingRules(TxRules):
    def check(self, header: bytes, frame: Buffers, frame_length: int) -> bytes:
        hdr_len = int.from_bytes(header[2:4], "little")
        if header[1] != GSO_NONE and not 54 <= hdr_len <= frame_length:
            raise HeaderError("a wrong hdr_len")
        return super().check(header, frame, frame_length)


class _RashRules(TxRules):
    def check(self, header: bytes, frame: Buffers, frame_length: int) -> bytes:
        safe = super().check(header, frame, frame_length)
        return bytes([safe[0] or HeaderFlag.DATA_VALID]) + safe[1:]


class _Rules(_Terms):
    rules: ClassVar[type[TxRules]]

    def changed(self, terms: Terms) -> Terms:
        tx = terms.tx
        return replace(terms, tx=self.rules(tx.checksum, tx.gso_types, tx.mtu))


class RefusesUnknownFlags(_Rules):
    rules = _StrictRules


class ReadsCsumStartWithoutNeedsCsum(_Rules):
    rules = _EagerRules


class TrustsHdrLen(_Rules):
    rules = _TrustingRules


class VouchesForChecksums(_Rules):
    rules = _RashRules


class OnLink(Net):
    """Has a link with a fault."""

    fault: ClassVar[type[Proxy]]

    def __init__(self, link: FrameLink, *, mac: bytes, queue_size: int = 256) -> None:
        super().__init__(faulty(link, self.fault), mac=mac, queue_size=queue_size)


class _Fragmenter(Proxy):
    """Sends what is long in two pieces."""

    def write(self, pair: int, buffers: Sequence[bytes | memoryview]) -> None:
        data = b"".join(buffers)
        header, frame = data[:HEADER_SIZE], data[HEADER_SIZE:]
        parts = [frame[:1000], frame[:14] + frame[1000:]] if len(frame) > 1000 else [frame]
        for part in parts:
            self.real.write(pair, [header, part])


class Fragments(OnLink):
    fault = _Fragmenter


# Receive buffers (5.1.9.3, 5.1.9.4)


class _Receiving(Net):
    receiver: ClassVar[type[Receiver]]

    def __init__(self, link: FrameLink, *, mac: bytes, queue_size: int = 256) -> None:
        super().__init__(link, mac=mac, queue_size=queue_size)
        for pair in self.pairs:
            pair.receiver = self.receiver(link, pair.index, self.counts)


class SpreadsFramesUnasked(_Terms):
    """Takes several buffers for a frame without MRG_RXBUF."""

    def changed(self, terms: Terms) -> Terms:
        return replace(terms, mergeable=True)


class _Miscounter(Receiver):
    def start(self, queue: Virtqueue, terms: Terms, filter_: ReceiveFilter) -> None:
        super().start(queue, terms, filter_)
        self.mergeable = terms.mergeable

    def header(self, start: bytes, count: int) -> bytes:
        return super().header(start, count if self.mergeable else 0)


class LeavesNumBuffersAt0(_Receiving):
    """Counts buffers only where there may be several."""

    receiver = _Miscounter


class _LateCounter(Receiver):
    def header(self, start: bytes, count: int) -> bytes:
        return super().header(start, max(1, count - 1))


class CountsTheBuffersAfterTheFirst(_Receiving):
    receiver = _LateCounter


class LeavesRoomInBuffers(QueueProxy):
    """Uses no buffer to its end."""

    def popped(self, chain: Chain) -> FaultyChain:
        room = max(HEADER_SIZE, total(chain.writable) - 4)
        return FaultyChain(chain, chain.readable, split_at(chain.writable, room)[0])


class UsesBuffersBeforeThereAreEnough(QueueProxy):
    """Uses what buffers there are, and loses the rest of a frame that needs more."""

    def pop_many(self, limit: int | None = None) -> list[FaultyChain]:
        chains = super().pop_many(limit)
        if not chains and self.real.in_flight:
            return [FaultyChain(None, [], [memoryview(bytearray(1 << 16))])]
        return chains

    def pushed(self, completions: list[tuple[FaultyChain, int]]) -> None:
        while completions:
            first = completions[0][0].writable
            count = int.from_bytes(gather(first)[NUM_BUFFERS], "little")
            frame, completions = completions[:count], completions[count:]
            real = sum(chain.real is not None for chain, _ in frame)
            scatter(split_at(first, NUM_BUFFERS.start)[1], real.to_bytes(2, "little"))


# Offloads of received frames (5.1.9.4.1)


class _FlagPasser(Receiver):
    """Passes these flags whatever was negotiated."""

    flags: ClassVar[int]

    def header(self, start: bytes, count: int) -> bytes:
        header = super().header(start, count)
        return bytes([header[0] | start[0] & self.flags]) + header[1:]


class _DataValid(_FlagPasser):
    flags = HeaderFlag.DATA_VALID


class PassesDataValid(_Receiving):
    receiver = _DataValid


class _RscInfo(_FlagPasser):
    flags = 4


class PassesRscInfo(_Receiving):
    receiver = _RscInfo


class _UdpTunnelCsum(_FlagPasser):
    flags = 8


class PassesUdpTunnelCsum(_Receiving):
    receiver = _UdpTunnelCsum


class _Security(_FlagPasser):
    flags = 16


class PassesSecurity(_Receiving):
    receiver = _Security


class _SecurityErr(_FlagPasser):
    flags = 32


class PassesSecurityErr(_Receiving):
    receiver = _SecurityErr


class PassesPartialChecksums(_Terms):
    """Has frames with partial checksums passed to any driver."""

    def changed(self, terms: Terms) -> Terms:
        return replace(terms, rx_checksum=True)


class _Passes(_Terms):
    """Has frames with these values of gso_type passed to any driver."""

    gso_types: ClassVar[frozenset[int]]

    def changed(self, terms: Terms) -> Terms:
        return replace(terms, rx_gso_types=terms.rx_gso_types | self.gso_types)


class PassesTcpv4(_Passes):
    gso_types = frozenset([Gso.TCPV4, Gso.TCPV4 | Gso.ECN])


class PassesTcpv6(_Passes):
    gso_types = frozenset([Gso.TCPV6, Gso.TCPV6 | Gso.ECN])


class PassesUdp(_Passes):
    gso_types = frozenset([Gso.UDP, Gso.UDP | Gso.ECN])


class PassesUdpL4(_Passes):
    gso_types = frozenset([Gso.UDP_L4, Gso.UDP_L4 | Gso.ECN])


class PassesWhatItDoesNotKnow(_Passes):
    gso_types = frozenset([UNKNOWN_GSO])


class PassesEcn(_Terms):
    """Has ECN passed to every driver that takes large frames."""

    def changed(self, terms: Terms) -> Terms:
        more = {Gso.TCPV4 | Gso.ECN} if Gso.TCPV4 in terms.rx_gso_types else set()
        return replace(terms, rx_gso_types=terms.rx_gso_types | more)


#: The bits of gso_type that say that a frame is in a tunnel.
_TUNNELLED = Gso.UDP_TUNNEL_IPV4 | Gso.UDP_TUNNEL_IPV6


class PassesTunnels(_Passes):
    gso_types = frozenset(
        Gso.TCPV4 | bits for bits in (Gso.UDP_TUNNEL_IPV4, Gso.UDP_TUNNEL_IPV6, _TUNNELLED)
    )


class _TunnelHider(Receiver):
    def header(self, start: bytes, count: int) -> bytes:
        return super().header(start[:1] + bytes([start[1] & ~_TUNNELLED]) + start[2:], count)


class HidesTunnels(PassesTunnels, _Receiving):
    """Takes a frame in a tunnel for one that is in none."""

    receiver = _TunnelHider


class _OuterSumHider(_TunnelHider):
    def may_offload(self, flags: int, gso_type: int, gso_size: bytes) -> bool:
        return bool(flags & 8) or super().may_offload(flags, gso_type, gso_size)


class LeavesOuterChecksums(_Receiving):
    """Takes no heed of tunnels whose outer checksum is to be completed."""

    receiver = _OuterSumHider


class _BelieverOfFlags(Receiver):
    def may_offload(self, flags: int, gso_type: int, gso_size: bytes) -> bool:
        return any(gso_size) or super().may_offload(flags, gso_type, gso_size)


class BelievesTheFlagsOfItsLink(_Receiving):
    receiver = _BelieverOfFlags


class _BelieverOfSizes(Receiver):
    def may_offload(self, flags: int, gso_type: int, gso_size: bytes) -> bool:
        needs_csum = bool(flags & HeaderFlag.NEEDS_CSUM)
        return needs_csum or super().may_offload(flags, gso_type, gso_size)


class BelievesTheSizesOfItsLink(_Receiving):
    receiver = _BelieverOfSizes


class _Embellisher(Receiver):
    """Says of every frame that its checksum is right."""

    def header(self, start: bytes, count: int) -> bytes:
        # Without GUEST_CSUM no flag passes.
        return super().header(bytes([start[0] or HeaderFlag.DATA_VALID]) + start[1:], count)


class SaysThatAllChecksumsAreRight(_Receiving):
    receiver = _Embellisher


class _Shifter(Receiver):
    def header(self, start: bytes, count: int) -> bytes:
        if start[0] & HeaderFlag.NEEDS_CSUM:
            csum_start = int.from_bytes(start[6:8], "little") - 14
            start = start[:6] + csum_start.to_bytes(2, "little") + b"\x10\0" + start[10:]
        return super().header(start, count)


class CountsCsumStartFromTheIpHeader(_Receiving):
    receiver = _Shifter


class _Eraser(Proxy):
    """Leaves no sum of the pseudo header where the checksum goes."""

    def read(self, pair: int, buffers: Buffers) -> int:
        length: int = self.real.read(pair, buffers)
        header = gather(split_at(buffers, HEADER_SIZE)[0])
        if header[0] & HeaderFlag.NEEDS_CSUM:
            place = sum(int.from_bytes(header[at : at + 2], "little") for at in (6, 8))
            scatter(split_at(buffers, HEADER_SIZE + place)[1], b"\0\0")
        return length


class LeavesNoSumOfThePseudoHeader(OnLink):
    fault = _Eraser


class _Optimist(Receiver):
    """Has the driver sum up every frame, for it will come out right."""

    def header(self, start: bytes, count: int) -> bytes:
        return super().header(bytes([start[0] | HeaderFlag.NEEDS_CSUM]) + start[1:], count)


class HasEveryChecksumCompleted(_Receiving):
    receiver = _Optimist


class _EcnLoser(Receiver):
    def header(self, start: bytes, count: int) -> bytes:
        return super().header(start[:1] + bytes([start[1] & 0x7F]) + start[2:], count)


class SaysNothingOfEcn(_Receiving):
    receiver = _EcnLoser


class _HdrLenLoser(Receiver):
    def header(self, start: bytes, count: int) -> bytes:
        return super().header(start[:2] + b"\0\0" + start[4:], count)


class SaysNothingOfHdrLen(_Receiving):
    receiver = _HdrLenLoser


MUTANTS = [
    *mutants(
        build_net,
        [
            ("5.1.4.1:1", HasNoPairs),
            ("5.1.4.1:2", HasTheMtuOfAModem),
            ("5.1.4.1:3", HasAnMtuTooSmallForIpv6),
            ("5.1.4.1:4", ShrinksItsMtu),
            ("5.1.4.1:5", PassesFramesAboveTheMtu),
            ("5.1.4.1:6", CountsTheEthernetHeaderAsPayload),
            ("5.1.9.2:1", Fragments),
            ("5.1.9.2.2:1", RefusesUnknownFlags),
            ("5.1.9.2.2:2", ReadsCsumStartWithoutNeedsCsum),
            ("5.1.9.2.2:6", TrustsHdrLen),
            ("5.1.9.2.2:7", TrustsHdrLen),
            ("5.1.9.2.2:12", VouchesForChecksums),
            ("5.1.9.3.2:1", CountsTheBuffersAfterTheFirst),
            ("5.1.9.3.2:2", SpreadsFramesUnasked),
            ("5.1.9.4.1:1", LeavesNumBuffersAt0),
            ("5.1.9.4.1:2", CountsTheBuffersAfterTheFirst),
            ("5.1.9.4.1:5", PassesDataValid),
            ("5.1.9.4.1:6", PassesPartialChecksums),
            ("5.1.9.4.1:7", PassesTcpv4),
            ("5.1.9.4.1:8", PassesUdp),
            ("5.1.9.4.1:9", PassesTcpv6),
            ("5.1.9.4.1:10", PassesUdpL4),
            ("5.1.9.4.1:11", PassesTunnels),
            ("5.1.9.4.1:12", PassesUdpTunnelCsum),
            ("5.1.9.4.1:13", PassesEcn),
            ("5.1.9.4.1:14", SaysNothingOfEcn),
            ("5.1.9.4.1:18", HasEveryChecksumCompleted),
            ("5.1.9.4.1:19", LeavesNoSumOfThePseudoHeader),
            ("5.1.9.4.1:20", CountsCsumStartFromTheIpHeader),
            ("5.1.9.4.1:21", HidesTunnels),
            ("5.1.9.4.1:25", LeavesOuterChecksums),
            ("5.1.9.4.1:26", PassesWhatItDoesNotKnow),
            ("5.1.9.4.1:27", BelievesTheFlagsOfItsLink),
            ("5.1.9.4.1:28", BelievesTheSizesOfItsLink),
            ("5.1.9.4.1:30", PassesRscInfo),
            ("5.1.9.4.1:31", SaysNothingOfHdrLen),
            ("5.1.9.4.1:33", SaysThatAllChecksumsAreRight),
            ("5.1.9.4.1:39", PassesSecurity),
            ("5.1.9.4.1:42", PassesSecurityErr),
        ],
    ),
    *over_queue(
        0,
        build_net,
        [
            ("5.1.9.4.1:3", LeavesRoomInBuffers),
            ("5.1.9.4.1:4", UsesBuffersBeforeThereAreEnough),
        ],
    ),
]

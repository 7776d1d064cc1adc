"""Pairs of a network device's virtqueues for a thread in C (net.c)."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import fields

from virtiopy._native import CData, ffi, lib
from virtiopy.closing import Closing
from virtiopy.devices.delegation import DelegatedQueue
from virtiopy.devices.net.backing import FrameRules, LinkBacking
from virtiopy.devices.net.control import ReceiveFilter, RxCommand
from virtiopy.devices.net.features import Terms
from virtiopy.devices.net.header import HEADER_SIZE, GsoType
from virtiopy.devices.net.path import NetCounters
from virtiopy.errors import HostError
from virtiopy.virtqueue.native import NativeQueue
from virtiopy.worker.thread import POLL_US, NativeRing, RingCounts, WorkerThread

#: The longest chains that a worker is given: each may be cut where regions of memory meet.
_LONGEST_CHAIN = 512

#: What only a device that works its pairs itself comes to.
_DEVICES_OWN = {"rx_dropped_queue_reset", "tx_dropped_disabled_queue"}
_COUNTED = [one.name for one in fields(NetCounters) if one.name not in _DEVICES_OWN]

_MODES = {
    RxCommand.PROMISC: lib.VP_FILTER_PROMISC,
    RxCommand.ALLMULTI: lib.VP_FILTER_ALLMULTI,
    RxCommand.ALLUNI: lib.VP_FILTER_ALLUNI,
    RxCommand.NOMULTI: lib.VP_FILTER_NOMULTI,
    RxCommand.NOUNI: lib.VP_FILTER_NOUNI,
    RxCommand.NOBCAST: lib.VP_FILTER_NOBCAST,
}

_GSO_TYPES = {
    int(GsoType.TCPV4): lib.VP_GSO_TCPV4,
    int(GsoType.TCPV6): lib.VP_GSO_TCPV6,
    GsoType.TCPV4 | GsoType.ECN: lib.VP_GSO_TCPV4 << lib.VP_GSO_ECN,
    GsoType.TCPV6 | GsoType.ECN: lib.VP_GSO_TCPV6 << lib.VP_GSO_ECN,
}


class _Port:
    """One ring of a pair, and what C knows of it."""

    def __init__(self, queue: DelegatedQueue, file: int, error: int) -> None:
        assert isinstance(queue.queue, NativeQueue)
        self._queue = queue
        self._native = queue.queue
        self._error = error
        #: struct vp_port
        self.native: CData = ffi.new("struct vp_port *")
        self.native.fd = file
        self._ring: NativeRing | None = None
        self._seen = dict.fromkeys(_COUNTED, 0)

    def start(self, thread: WorkerThread, filter_: CData) -> None:
        ring = NativeRing(self._native, self._queue.kick, self._queue.call)
        self.native.filter = filter_
        lib.vp_ring_serve_net(ring.native, self.native, self._queue.ring)
        ring.native.error = self._error
        ring.kept += [self, filter_]
        ring.start(thread)
        self._ring = ring

    def stop(self) -> None:
        if self._ring is not None:
            # Nothing of a frame is handed up.
            assert not self._ring.stop()
            self._ring = None

    def take_frame(self) -> bytes | None:
        """Take the frame that was received and not given to the driver, if there is one."""
        length, self.native.parked = self.native.parked, 0
        return bytes(ffi.buffer(self.native.frame, length)) if length else None

    @property
    def ring_counts(self) -> RingCounts:
        assert self._ring is not None
        return self._ring.counts

    def collect(self, counts: NetCounters) -> None:
        for name in _COUNTED:
            now = getattr(self.native.counts, name)
            setattr(counts, name, getattr(counts, name) + now - self._seen[name])
            self._seen[name] = now


class NativePair(Closing):
    """Works a pair of virtqueues with a thread of its own: a FrameWorker.

    Raises HostError where there can be no thread.
    """

    name = "native"

    def __init__(self, backing: LinkBacking) -> None:
        assert backing.rules is not None
        self._rules: FrameRules = backing.rules
        self._file = backing.file
        self._gate = backing.gate
        self._put_back = backing.put_back
        self._ports: list[_Port] = []
        self._filter_key: object = None
        self._filter = ffi.new("struct vp_filter *")
        with contextlib.ExitStack() as opened:
            poll_us = POLL_US if backing.busy_poll is None else backing.busy_poll
            self._thread = opened.enter_context(WorkerThread(poll_us))
            self.errors: Sequence[int] = [_eventfd(opened) for _ in range(2)]
            self._opened = opened.pop_all()

    def close(self) -> None:
        """End the thread, which has no virtqueues any more."""
        self._opened.close()

    def offered(self, features: int) -> int:
        """Return all: there is no feature that the device has and this worker has not."""
        return features

    def delegate(self, queues: Sequence[DelegatedQueue], driver_features: int) -> None:
        """Take virtqueues; raises HostError for those that only the device can work."""
        terms = self._rules.terms
        for one in queues:
            if not isinstance(one.queue, NativeQueue):
                raise HostError(
                    "A queue that is watched is worked by Python: leave the watching out, or use "
                    "another mode."
                )
            if one.queue.longest_chain > _LONGEST_CHAIN:
                raise HostError(
                    f"A queue whose chains may have {one.queue.longest_chain} descriptors is "
                    f"worked by Python: {_LONGEST_CHAIN} are the most for native mode."
                )
        if terms.header_size != HEADER_SIZE:
            raise HostError("A legacy driver's frames are worked by Python: use another mode.")
        self._describe_filter()
        self._ports = [_Port(one, self._file, self.errors[one.ring]) for one in queues]
        for port in self._ports:
            _describe(port.native, terms)
            if self._gate is not None:
                port.native.gate = self._gate.native
            port.start(self._thread, self._filter)

    def reclaim(self) -> None:
        """Give them back: what was popped and not used is available again."""
        for port in self._ports:
            port.stop()
            frame = port.take_frame()
            if frame is not None and self._put_back is not None:
                self._put_back(frame)
        self.collect()
        self._ports = []

    def refresh(self) -> None:
        """Take the receive filter as it is now: the rings stand still meanwhile."""
        if _key(self._rules.filter) == self._filter_key:
            return
        for port in self._ports:
            port.stop()
        self._describe_filter()
        for port in self._ports:
            port.start(self._thread, self._filter)

    def collect(self) -> None:
        """Add what was moved since the last call to the device's counters."""
        for port in self._ports:
            port.collect(self._rules.counts)

    @property
    def ring_counts(self) -> list[RingCounts]:
        """What each ring of those that it has cost since it was started."""
        return [port.ring_counts for port in self._ports]

    def _describe_filter(self) -> None:
        filter_ = self._rules.filter
        self._filter_key = _key(filter_)
        native = ffi.new("struct vp_filter *")
        native.by_address = filter_.filters_addresses
        native.by_vlan = filter_.filters_vlans
        native.modes = sum(bit for mode, bit in _MODES.items() if mode in filter_.modes)
        native.mac = filter_.mac
        for vlan in filter_.vlans:
            native.vlans[vlan // 8] |= 1 << vlan % 8
        self._table = ffi.new("uint8_t[]", b"".join(sorted(filter_.table)))
        native.table = self._table
        native.table_count = len(filter_.table)
        self._filter = native


def _eventfd(opened: contextlib.ExitStack) -> int:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    opened.callback(os.close, fd)
    return fd


def _key(filter_: ReceiveFilter) -> object:
    return (
        *(filter_.mac, filter_.filters_addresses, filter_.filters_vlans),
        *(frozenset(filter_.modes), filter_.table, frozenset(filter_.vlans)),
    )


def _describe(native: CData, terms: Terms) -> None:
    native.mergeable = terms.mergeable
    native.rx_checksum = terms.rx_checksum
    native.rx_gso = sum(_GSO_TYPES[kind] for kind in terms.rx_gso_types)
    native.tx_checksum = terms.tx.checksum
    native.tx_gso = sum(_GSO_TYPES[kind] for kind in terms.tx.gso_types)
    native.has_mtu = terms.rx_mtu is not None
    native.mtu = terms.rx_mtu or 0
    native.enough = terms.rx_longest if terms.mergeable else terms.header_size

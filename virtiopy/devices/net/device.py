"""The network device (5.1): features, configuration, virtqueues, and when each is worked."""

import contextlib
import logging
import select
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import IntFlag
from typing import ClassVar

from virtiopy._native import ffi
from virtiopy.devices.base import DeviceHost, Fact, VirtioDevice
from virtiopy.devices.delegation import OpenWorker
from virtiopy.devices.net.control import MAC_SIZE, Control, ReceiveFilter, is_multicast
from virtiopy.devices.net.delegation import PairWorkers
from virtiopy.devices.net.features import NetFeature, Terms, unmet_requirements
from virtiopy.devices.net.link import FrameLink
from virtiopy.devices.net.pair import Pair, redirect
from virtiopy.devices.net.path import NetCounters
from virtiopy.errors import DriverError, VirtiopyError
from virtiopy.eventloop import READABLE, WRITABLE, EventLoop, Watch
from virtiopy.spec import DeviceId, feature_mask, has_feature
from virtiopy.virtqueue.queue import Chain, Virtqueue

log = logging.getLogger(__name__)

#: MTUs that a device may offer, bytes (5.1.4.1).
MTU_MIN = 68
MTU_MAX = 65535

#: The most pairs of virtqueues (5.1.9.5.6).
PAIRS_MAX = 0x8000

#: What is offered, but for MQ, which takes a link with several queues.
_MQ = NetFeature.VIRTIO_NET_F_MQ
_FEATURES = feature_mask(set(NetFeature) - {_MQ})

#: The fields up to `mtu`: those after it belong to features that are not offered.
_CONFIG_SIZE = ffi.offsetof("struct virtio_net_config", "speed")

_LINK_FAILED = select.EPOLLERR | select.EPOLLHUP


class Status(IntFlag):
    """VIRTIO_NET_S_* (5.1.4)."""

    LINK_UP = 1
    ANNOUNCE = 2


class Net(VirtioDevice):
    """A network device on `link`, whose MAC address is `mac`, 6 bytes.

    It has as many pairs of virtqueues as the link has queues, `queue_size` entries each, and the
    link's MTU. Others who work its queues poll for `busy_poll` microseconds before they sleep, or
    for as long as they are used to.
    """

    device_id: ClassVar[DeviceId] = DeviceId.NETWORK
    serves_legacy_drivers = True
    feature_bits = NetFeature

    queues_in_one = 2
    workers: ClassVar[frozenset[str]] = frozenset({"vhost", "native"})

    #: VMMs keep controlq for themselves.
    vmm_features = feature_mask([NetFeature.VIRTIO_NET_F_CTRL_VQ])

    def __init__(
        self, link: FrameLink, *, mac: bytes, queue_size: int = 256, busy_poll: int | None = None
    ) -> None:
        super().__init__()
        if len(mac) != MAC_SIZE or is_multicast(mac):
            raise ValueError(f"{mac.hex(':')} is no unicast MAC address")
        if not MTU_MIN <= link.mtu <= MTU_MAX or not 1 <= link.pairs <= PAIRS_MAX:
            raise ValueError(f"a link with an MTU of {link.mtu} and {link.pairs} queues")
        self.link = link
        #: Does not change (5.1.4.1), even if the link's does.
        self.mtu = link.mtu
        self.max_pairs = link.pairs
        self.busy_poll = busy_poll
        self.queue_sizes = [queue_size] * (2 * link.pairs + 1)
        self.features = _FEATURES
        if link.pairs > 1:
            self.features |= feature_mask([_MQ])
        self.counts = NetCounters()
        self.control = Control(self)
        self.filter = ReceiveFilter(mac)
        self._initial_mac = mac
        self.pairs = [Pair(index, link, self.counts) for index in range(link.pairs)]
        #: What driver and device agreed on for the frames.
        self.terms = Terms.of(0, self.mtu)
        self._status = Status.LINK_UP if link.is_up() else Status(0)
        self._state_watch: Watch | None = None
        self._link_failed = False
        # As many pairs as the link's frames come by.
        self._used_pairs = link.pairs
        self._workers = PairWorkers(self)

    # Feature bits (5.1.3)

    def offered(self, features: int) -> int:
        """Leave out what the worker of the queues has not."""
        return self._workers.offered(features)

    def accepts(self, driver_features: int) -> bool:
        """Check what features require of each other (5.1.3.1)."""
        return not unmet_requirements(driver_features)

    def objections(self, driver_features: int) -> Sequence[str]:
        """Say what is missing (5.1.3.1)."""
        return unmet_requirements(driver_features)

    def negotiated(self, driver_features: int) -> None:
        """Agree with driver and link on what may be in frames."""
        super().negotiated(driver_features)
        self.terms = Terms.of(driver_features, self.mtu)
        # What a VMM is commanded in the device's place is not told here.
        commanded = self._has(NetFeature.VIRTIO_NET_F_CTRL_VQ)
        self.filter.filters_addresses = commanded and self._has(NetFeature.VIRTIO_NET_F_CTRL_RX)
        self.filter.filters_vlans = commanded and self._has(NetFeature.VIRTIO_NET_F_CTRL_VLAN)
        self._set_offloads()

    def _set_offloads(self) -> None:
        self.link.set_offloads(
            checksum=self._has(NetFeature.VIRTIO_NET_F_GUEST_CSUM),
            tso4=self._has(NetFeature.VIRTIO_NET_F_GUEST_TSO4),
            tso6=self._has(NetFeature.VIRTIO_NET_F_GUEST_TSO6),
            ecn=self._has(NetFeature.VIRTIO_NET_F_GUEST_ECN),
        )

    def _has(self, feature: NetFeature) -> bool:
        return has_feature(self.driver_features, feature)

    # Configuration space (5.1.4)

    def config_space(self) -> bytes:
        """Return struct virtio_net_config, as far as the offered features go."""
        config = ffi.new("struct virtio_net_config *")
        config.mac = self.filter.mac
        config.status = int(self._status)
        config.max_virtqueue_pairs = self.max_pairs
        config.mtu = self.mtu
        return bytes(ffi.buffer(config)[:_CONFIG_SIZE])

    def facts(self) -> Mapping[str, Fact]:
        """Tell the MAC address and the link's state, and the fates of frames and commands."""
        return {
            "mac": self.filter.mac.hex(":"),
            "link": "up" if self._status & Status.LINK_UP else "down",
            "pairs_delegated": sum(pair.delegated for pair in self.pairs),
            "delegations": self._workers.count,
            **({"delegation_refused": self.refusal} if self.refusal else {}),
            **self.counters(),
        }

    def counters(self) -> dict[str, int]:
        """Return NetCounters by name, what the link dropped, and the control commands."""
        with self.lock:
            self._workers.collect()
        return {
            **asdict(self.counts),
            "rx_dropped_by_link": self.link.dropped(),
            "ctrl_commands": self.control.commands,
            "ctrl_refused": self.control.refused,
        }

    # Life

    def attach(
        self, host: DeviceHost, loop: EventLoop | None = None, *, may_block: bool = True
    ) -> None:
        """Follow the link's state from now on."""
        super().attach(host, loop, may_block=may_block)
        # The first pair is always used.
        for pair in self.pairs[1:]:
            pair.receiver.gate = host.gate
        if loop is None:
            return
        self._state_watch = loop.watch(
            self.link.state_fileno(),
            READABLE,
            lambda events: self.link_changed(),
            f"{self.link.name} state",
        )

    def activate(self, queues: Mapping[int, Virtqueue]) -> None:
        """Start; only the first pair is used until the driver asks for more (5.1.9.5.6.2)."""
        super().activate(queues)
        self.refusal = None
        for index, queue in queues.items():
            if pair := self._pair_of(index):
                pair.queues[index % 2] = queue
                pair.start(index % 2, self.terms, self.filter)
        self.set_pairs(1)
        for pair in self.pairs:
            # Buffers may be there already, from before DRIVER_OK, when no kick may come.
            self._guarded(self._receive, pair)

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        """Take a queue that the driver enables while the device runs."""
        super().start_queue(index, queue)
        if pair := self._pair_of(index):
            self._workers.reclaim(pair)
            self._drop_waiting()
            pair.queues[index % 2] = queue
            pair.start(index % 2, self.terms, self.filter)
            pair.being_reset = pair.being_reset and index % 2 == 1
            self._redirect()
            self._delegate_if_due(pair)
            self._guarded(self._receive, pair)

    def stop_queue(self, index: int) -> None:
        """Forget a queue and its buffers; frames for it stay in the link."""
        super().stop_queue(index)
        if pair := self._pair_of(index):
            self._workers.reclaim(pair)
            pair.stop(index % 2)
            pair.queues.pop(index % 2, None)
            # Frames of another pair's may have been coming here.
            self._redirect()
            self._delegate_if_due(pair)

    def reset_queue(self, index: int) -> None:
        """Forget a queue and its buffers; with MQ, frames for it go elsewhere (5.1.9.5.6.2)."""
        self.stop_queue(index)
        if (pair := self._pair_of(index)) and not index % 2 and self._has(_MQ):
            pair.being_reset = True
            self._redirect()

    def _redirect(self) -> None:
        redirect(self.pairs)
        for pair in self.pairs:
            self.update_watch(pair)

    def _drop_waiting(self) -> None:
        """Drop the frames that came while all receive queues were being reset."""
        for pair in self.pairs:
            if pair.taker is None:
                self._drop(pair)

    def _drop(self, pair: Pair) -> None:
        try:
            pair.receiver.drop()
        except OSError as error:
            self._link_is_gone(str(error))

    def halt(self) -> None:
        """Have no worker work the queues any more."""
        super().halt()
        self._stop()

    def reset(self) -> None:
        """Forget the driver, its queues and filters; the MAC address is the first again."""
        self._stop()
        super().reset()
        for pair in self.pairs:
            pair.queues.clear()
        self.terms = Terms.of(0, self.mtu)
        self.filter = ReceiveFilter(self._initial_mac)
        self._status &= ~Status.ANNOUNCE
        self._set_offloads()
        self.set_pairs(1)

    def close(self) -> None:
        """Give up the link."""
        if self._state_watch is not None and self.loop is not None:
            self.loop.unwatch(self._state_watch)
            self._state_watch = None
        self._workers.close()
        self.link.close()

    # Virtqueues (5.1.2): receiveq1, transmitq1, ... and after them controlq

    @property
    def control_index(self) -> int:
        """The index of controlq, with what was negotiated."""
        pairs = self.max_pairs if self._has(_MQ) else 1
        return 2 * pairs

    def _pair_of(self, index: int) -> Pair | None:
        return self.pairs[index // 2] if index < self.control_index else None

    def set_pairs(self, count: int) -> None:
        """Use the first `count` pairs: frames come by no others, and none is sent from others."""
        self._use_pairs(count, range(count))

    def _use_pairs(self, count: int, sending: Container[int]) -> None:
        """Have frames come by the first `count` pairs, and be sent by those that are `sending`."""
        fewer = count < self._used_pairs
        for pair in self.pairs:
            pair.transmitter.enabled = pair.index in sending
            # What the first sends while others leave the link could be answered to those.
            if fewer or not pair.transmitter.enabled:
                self._workers.reclaim(pair)
        first = self.pairs[0]
        for pair in self.pairs[count : self._used_pairs]:
            # What is in a queue that is left, the link drops.
            pair.receiver.hand_over(first.receiver)
        self._used_pairs = count
        self.link.set_pairs(count)
        self._redirect()
        for pair in self.pairs:
            self._delegate_if_due(pair)
        if first.receiver.has_frames and first.receiver.queue is not None:
            self.handle_soon(first.receiver.queue)

    # Other workers of the queues

    def delegate(self, open_worker: OpenWorker) -> None:
        """Have a worker for each pair of virtqueues, with the pair's queue of the link."""
        with self.lock:
            self.refusal = None
            # By a call before, of which DRIVER_OK has shown that it is refused.
            were_open = self._workers.are_open
            if not were_open:
                self._workers.open(open_worker)
            try:
                for pair in self.pairs:
                    self._guarded(self._delegate, pair)
            except VirtiopyError as error:
                if were_open:
                    self._refused(error)
                else:
                    self._workers.close()
                raise

    @contextlib.contextmanager
    def undelegated(self, index: int) -> Iterator[None]:
        """Have the device itself have the pair of a queue meanwhile."""
        pair = self._pair_of(index)
        was_delegated = pair is not None and pair.delegated
        if pair is not None:
            self._workers.reclaim(pair)
        yield
        if pair is not None and was_delegated:
            self._delegate_if_due(pair)

    def reclaim(self) -> None:
        """Work all pairs of virtqueues in the device."""
        with self.lock:
            self.refusal = None
            self._workers.close()

    def _delegate(self, pair: Pair) -> None:
        self._workers.delegate(pair)
        self._redirect()

    def _delegate_if_due(self, pair: Pair) -> None:
        """Delegate a pair where that is wanted; `refusal` says why it cannot be done."""
        if pair.worker is None or self.refusal is not None:
            return
        try:
            self._guarded(self._delegate, pair)
        except VirtiopyError as error:
            self._refused(error)

    def _refused(self, error: VirtiopyError) -> None:
        """Work all pairs here until the driver starts the device again, and say why."""
        self.refusal = str(error)
        log.warning("%s is worked by the device itself: %s", self.link.name, error)
        for pair in self.pairs:
            self._workers.reclaim(pair)

    @property
    def may_be_worked(self) -> bool:
        """Whether there is anything to be done with queues and link."""
        return not self.halted and not self._link_failed

    def go_on(self, pair: Pair) -> None:
        """Work a pair that was reclaimed; its queues have been kicked."""
        for ring in pair.queues:
            pair.start(ring, self.terms, self.filter)
        self._redirect()

    def discards_while_disabled(self, index: int) -> bool:
        """Say so of a transmitq: see `enable_queues`."""
        return index % 2 == 1

    def enable_queues(self, indexes: Iterable[int]) -> None:
        """Use the pairs whose queues these are: a frontend may keep controlq to itself.

        What is sent by a transmitq that is none of them is discarded.
        """
        enabled = {index for index in indexes if index < self.control_index}
        count = len({index // 2 for index in enabled}) or self._used_pairs
        self._use_pairs(count, {index // 2 for index in enabled if index % 2})

    # Operation (5.1.9)

    def handle(self, queue: Virtqueue) -> None:
        """Serve a kick. Raises QueueError."""
        pair = self._pair_of(queue.index)
        try:
            if pair is None:
                if queue.index == self.control_index and self._has(NetFeature.VIRTIO_NET_F_CTRL_VQ):
                    super().handle(queue)
            elif queue.index % 2:
                self._transmit(pair)
            else:
                self._receive(pair, kicked=True)
        except DriverError:
            self._stop()
            raise

    def handle_again(self, queue: Virtqueue) -> None:
        """Go on where the budget ended. Raises QueueError."""
        pair = self._pair_of(queue.index)
        if pair is None or queue.index % 2:
            self.handle(queue)
        else:
            self._guarded(self._receive, pair)

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        """Serve a control command (5.1.9.5)."""
        written = self.control.serve(chain)
        self._workers.refresh()
        return written

    def _receive(self, pair: Pair, *, kicked: bool = False) -> None:
        if pair.receiver.queue is None or self._link_failed:
            return
        queue = pair.receiver.queue
        try:
            if pair.receiver.run(kicked=kicked) or pair.receiver.can_go_on:
                self.handle_soon(queue)
        except OSError as error:
            self._link_is_gone(str(error))
        self.notify(queue)
        for source in pair.receiver.sources:
            self.update_watch(self.pairs[source])
        self._delegate_if_due(pair)

    def _transmit(self, pair: Pair) -> None:
        queue = pair.transmitter.queue
        if queue is None:
            return
        gate = self.host.gate
        if not pair.transmitter.enabled and gate is not None and gate.is_shut:
            # The message may be that the frames of this queue are to be sent.
            self.handle_soon(queue)
            return
        if pair.transmitter.run():
            self.handle_soon(queue)
        self.notify(queue)
        self.update_watch(pair)
        self._delegate_if_due(pair)

    def _guarded(self, work: Callable[[Pair], None], pair: Pair) -> None:
        """Do what no kick asked for, so that no other caller takes the driver's faults."""
        try:
            work(pair)
        except DriverError as error:
            self._stop()
            self.host.needs_reset(str(error))

    # What is watched of the link

    def update_watch(self, pair: Pair) -> None:
        """Wait for what the pair can go on with, and for nothing else."""
        events = 0 if self._link_failed else pair.wanted_events()
        if pair.watch is not None:
            pair.watch.events = events
        elif events and self.loop is not None:
            pair.watch = self.loop.watch(
                self.link.fileno(pair.index),
                events,
                lambda happened: self._on_ready(pair, happened),
                f"{self.link.name} queue {pair.index}",
            )

    def _on_ready(self, pair: Pair, events: int) -> None:
        """Take what the loop saw of the link's queue."""
        with self.lock:
            if events & _LINK_FAILED:
                self._link_is_gone("it is no more")
                return
            if events & READABLE:
                if pair.taker is None:
                    self._drop(pair)
                else:
                    self._guarded(self._receive, pair.taker)
            if events & WRITABLE:
                self._guarded(self._transmit, pair)

    def _stop(self) -> None:
        """Forget all buffers, and leave the link alone."""
        for pair in self.pairs:
            pair.reclaim()
            pair.being_reset = False
            pair.taker = pair
            for ring in range(2):
                pair.stop(ring)
            pair.receiver.forget_frames()
            if pair.watch is not None and self.loop is not None:
                self.loop.unwatch(pair.watch)
                pair.watch = None

    def _link_is_gone(self, reason: str) -> None:
        """Go on without a link: for the driver it is down, and stays so."""
        log.warning("the link %s failed: %s", self.link.name, reason)
        self._link_failed = True
        for pair in self.pairs:
            self._workers.reclaim(pair)
            if pair.watch is not None and self.loop is not None:
                self.loop.unwatch(pair.watch)
                pair.watch = None
        self._set_status(self._status & ~Status.LINK_UP)

    # The link's state (5.1.4), and announcements (5.1.9.5.4)

    def link_changed(self) -> None:
        """Ask the link for its state, and tell the driver if it is another."""
        with self.lock:
            is_up = self.link.is_up() and not self._link_failed
            if is_up == bool(self._status & Status.LINK_UP):
                return
            status = self._status ^ Status.LINK_UP
            if is_up and self._has(NetFeature.VIRTIO_NET_F_GUEST_ANNOUNCE):
                # What is behind the link may be another network than before.
                status |= Status.ANNOUNCE
            log.info("the link %s is %s", self.link.name, "up" if is_up else "down")
            self._set_status(status)

    def announce(self) -> None:
        """Ask the driver to send gratuitous packets, where it knows how (5.1.9.5.4)."""
        with self.lock:
            if self._has(NetFeature.VIRTIO_NET_F_GUEST_ANNOUNCE):
                self._set_status(self._status | Status.ANNOUNCE)

    def set_mac(self, mac: bytes) -> None:
        """Take the address that the driver has set (5.1.9.5.2)."""
        self.filter.mac = mac
        self.host.config_changed(notify=False)

    def announce_acknowledged(self) -> None:
        """Clear VIRTIO_NET_S_ANNOUNCE: the driver has seen it."""
        self._set_status(self._status & ~Status.ANNOUNCE, notify=False)

    def _set_status(self, status: Status, *, notify: bool = True) -> None:
        if status != self._status:
            self._status = status
            self.host.config_changed(notify=notify)

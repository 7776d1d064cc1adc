"""Receive-side scaling: which queue a frame goes to by its hash (5.1.9.5.7)."""

from collections.abc import Sequence

import pytest

from virtiopy.conformance.drivers.inbox import Inbox
from virtiopy.conformance.drivers.net import NO_OFFLOADS, OTHER_MAC, Command, NetDriver
from virtiopy.conformance.drivers.packets import Packet, hashed, packet, toeplitz
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.sessions.base import Session
from virtiopy.transport.driver import MmioDriver

RSS = "VIRTIO_NET_F_RSS"
MQ = "VIRTIO_NET_F_MQ"

#: Fields of the configuration space.
MAX_VIRTQUEUE_PAIRS = 8, 2
SUPPORTED_HASH_TYPES = 20, 4

#: VIRTIO_NET_HASH_TYPE_TCPv4.
TCPV4 = 1 << 1

KEY = bytes(range(1, 41))
ENTRIES = 16
FLOWS = 32


def start(session: Session, net: NetDriver) -> int:
    """Start a driver with RSS; returns the number of receive queues."""
    net.start(net.with_features(RSS))
    pairs = session.config(*MAX_VIRTQUEUE_PAIRS)
    if pairs < 2:
        raise NotApplicableError("the device has one pair of virtqueues")
    if not session.config(*SUPPORTED_HASH_TYPES) & TCPV4:
        raise NotApplicableError("the device calculates no hash of TCP over IPv4")
    return pairs


def configure(net: NetDriver, table: Sequence[int], unclassified: int, pairs: int) -> None:
    """Set struct virtio_net_rss_config; queues are counted from 0 for receiveq1."""
    ids = [unclassified, *table, pairs]
    net.control(
        Command.MQ_RSS_CONFIG,
        TCPV4.to_bytes(4, "little")
        + (len(table) - 1).to_bytes(2, "little")
        + b"".join(value.to_bytes(2, "little") for value in ids)
        + bytes([len(KEY)])
        + KEY,
    )


def flows(net: NetDriver, kind: str) -> list[Packet]:
    """Return a frame of each of many flows."""
    return [
        packet(kind, b"flow", destination=net.mac, source=OTHER_MAC, ports=(1000 + flow, 9))
        for flow in range(FLOWS)
    ]


def queue_of(made: Packet, table: Sequence[int]) -> int:
    """Return the queue that a frame's hash selects."""
    return table[toeplitz(KEY, hashed(made)) % len(table)]


def inject(net: NetDriver, frames: Sequence[Packet]) -> None:
    """Have the link receive frames of many flows."""
    for flow, made in enumerate(frames):
        net.link.inject_flow(NO_OFFLOADS.encode() + made.frame, flow)


def check_received(net: NetDriver, inboxes: Sequence[Inbox], expected: dict[bytes, int]) -> None:
    """Wait until all frames have come, and see that each did on its queue."""
    came: dict[bytes, int] = {}

    def look() -> bool:
        for queue, inbox in enumerate(inboxes):
            came.update((received.frame, queue) for received in inbox.take())
        return len(came) >= len(expected)

    net.session.wait("the frames of all flows", look)
    wrong = sum(came[frame] != queue for frame, queue in expected.items() if frame in came)
    assert not wrong, f"{wrong} of {len(expected)} frames came on another queue"
    assert set(came) == set(expected), "other frames came"


@pytest.mark.clause("5.1.9.5.7.3:1")
@pytest.mark.feature(RSS, MQ)
def test_the_hash_of_a_frame_selects_its_queue(session: Session, net: NetDriver) -> None:
    pairs = start(session, net)
    inboxes = [Inbox(net, queue=2 * pair) for pair in range(pairs)]
    for table in ([0] * ENTRIES, [n % pairs for n in range(ENTRIES)], [pairs - 1] * ENTRIES):
        configure(net, table, 0, pairs)
        frames = flows(net, "tcp")
        inject(net, frames)
        check_received(net, inboxes, {made.frame: queue_of(made, table) for made in frames})


@pytest.mark.clause("5.1.9.5.7.3:1")
@pytest.mark.feature(RSS, MQ)
def test_a_frame_without_a_hash_goes_to_the_queue_for_those(
    session: Session, net: NetDriver
) -> None:
    pairs = start(session, net)
    inboxes = [Inbox(net, queue=2 * pair) for pair in range(pairs)]
    for unclassified in (pairs - 1, 0):
        table = [pairs - 1 - unclassified] * ENTRIES
        configure(net, table, unclassified, pairs)
        frames = flows(net, "udp")
        inject(net, frames)
        check_received(net, inboxes, {made.frame: unclassified for made in frames})


@pytest.mark.clause("5.1.9.5.7.3:2")
@pytest.mark.feature(RSS, MQ, "VIRTIO_F_RING_RESET")
def test_a_frame_for_a_queue_that_is_being_reset_is_dropped(
    session: Session, net: NetDriver, registers: MmioDriver
) -> None:
    pairs = start(session, net)
    inboxes = [Inbox(net, queue=2 * pair) for pair in range(pairs)]
    table = [n % pairs for n in range(ENTRIES)]
    configure(net, table, 0, pairs)
    last = pairs - 1
    session.reset_queue(2 * last)
    frames = flows(net, "tcp")
    inject(net, frames)
    expected = {made.frame: queue_of(made, table) for made in frames}
    kept = {frame: queue for frame, queue in expected.items() if queue != last}
    assert 0 < len(kept) < len(frames), f"{len(kept)} of {len(frames)} flows keep their queue"
    check_received(net, inboxes[:last], kept)
    session.never(
        "a frame for a queue that is being reset came on another",
        lambda: any(inbox.take() for inbox in inboxes[:last]),
    )
    session.set_up_queue(2 * last)
    inboxes[last] = Inbox(net, queue=2 * last)
    configure(net, [last] * ENTRIES, last, pairs)
    marker = net.frame(destination=net.mac)
    net.link.inject_flow(NO_OFFLOADS.encode() + marker, 0)
    came = [received.frame for received in inboxes[last].until(marker)]
    assert came == [marker], f"{len(came) - 1} frames were kept"

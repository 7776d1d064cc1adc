"""Which receive queue a frame goes to (5.1.9.5.6), and announcements (5.1.9.5.4)."""

import pytest

from virtiopy.conformance.drivers.inbox import Inbox
from virtiopy.conformance.drivers.net import NO_OFFLOADS, RECEIVEQ, Command, NetDriver
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.targets.hosts import NetHost
from virtiopy.transport.driver import MmioDriver

MQ = "VIRTIO_NET_F_MQ"
RING_RESET = "VIRTIO_F_RING_RESET"

#: Flows that the link has, and the field of the configuration space with the pairs.
FLOWS = 16
MAX_VIRTQUEUE_PAIRS = 8, 2

STATUS = 6, 2
ANNOUNCE = 2


def receive_queues(session: Session) -> list[int]:
    """Return the indexes of all receive queues; not applicable where there is only one."""
    pairs = session.config(*MAX_VIRTQUEUE_PAIRS)
    if pairs < 2:
        raise NotApplicableError("the device has one pair of virtqueues")
    return [2 * pair for pair in range(pairs)]


def set_pairs(net: NetDriver, count: int) -> None:
    """Have the device use so many pairs."""
    net.control(Command.MQ_VQ_PAIRS_SET, count.to_bytes(2, "little"))


def inject_flows(net: NetDriver, frames: list[bytes]) -> None:
    """Have the link receive a frame of each flow."""
    for flow, frame in enumerate(frames):
        net.link.inject_flow(NO_OFFLOADS.encode() + frame, flow)


def check_first_only(net: NetDriver, inboxes: list[Inbox]) -> None:
    """Have frames of many flows received, on the first queue and no other."""
    first, *others = inboxes
    frames = [net.frame(destination=net.mac) for _ in range(FLOWS)]
    inject_flows(net, frames)
    got = first.until(frames[-1])
    missing = set(frames) - {received.frame for received in got}
    elsewhere = [received.frame for inbox in others for received in inbox.take()]
    assert not elsewhere, f"{len(elsewhere)} of {FLOWS} frames came on another queue"
    assert not missing, f"{len(missing)} of {FLOWS} frames did not come on the first queue"


@pytest.mark.clause("5.1.9.5.6.2:1")
@pytest.mark.feature(MQ)
def test_only_the_first_queue_receives_at_the_start(
    session: Session, net: NetDriver, registers: MmioDriver
) -> None:
    net.start()
    check_first_only(net, [Inbox(net, queue=index) for index in receive_queues(session)])


@pytest.mark.clause("5.1.9.5.6.2:1")
@pytest.mark.feature(MQ)
def test_only_the_first_queue_receives_after_a_reset(
    session: Session, net: NetDriver, registers: MmioDriver
) -> None:
    net.start()
    set_pairs(net, len(receive_queues(session)))
    net.start()
    check_first_only(net, [Inbox(net, queue=index) for index in receive_queues(session)])


@pytest.mark.clause("5.1.9.5.6.2:2")
@pytest.mark.feature(MQ)
def test_fewer_queues_receive_once_their_number_is_set(session: Session, net: NetDriver) -> None:
    net.start()
    queues = receive_queues(session)
    inboxes = [Inbox(net, queue=index) for index in queues]
    set_pairs(net, len(queues))
    frames = {net.frame(destination=net.mac) for _ in range(FLOWS)}
    inject_flows(net, list(frames))
    came: set[bytes] = set()

    def look() -> bool:
        came.update(received.frame for inbox in inboxes for received in inbox.take())
        return came >= frames

    session.wait("the frames of all flows, on whatever queue", look)
    set_pairs(net, 1)
    check_first_only(net, inboxes)


@pytest.mark.clause("5.1.9.5.6.2:3")
@pytest.mark.feature(MQ, RING_RESET)
def test_another_queue_receives_while_one_is_reset(
    session: Session, net: NetDriver, registers: MmioDriver
) -> None:
    net.start()
    queues = receive_queues(session)
    set_pairs(net, len(queues))
    inboxes = {index: Inbox(net, queue=index) for index in queues}
    for index in queues:
        session.reset_queue(index)
        frames = [net.frame(destination=net.mac) for _ in range(FLOWS)]
        inject_flows(net, frames)
        others = [inbox for other, inbox in inboxes.items() if other != index]
        came: set[bytes] = set()

        def look(others: list[Inbox] = others, came: set[bytes] = came) -> int:
            came.update(received.frame for inbox in others for received in inbox.take())
            return len(came) == FLOWS

        session.wait(f"all frames, while queue {index} was reset", look)
        session.set_up_queue(index)
        inboxes[index] = Inbox(net, queue=index)


@pytest.mark.clause("5.1.9.5.6.2:4")
@pytest.mark.feature(MQ, RING_RESET)
def test_frames_are_dropped_while_all_receive_queues_are_reset(
    session: Session, net: NetDriver, registers: MmioDriver
) -> None:
    net.start()
    for index in receive_queues(session):
        session.reset_queue(index)
    lost = [net.frame(destination=net.mac) for _ in range(FLOWS)]
    inject_flows(net, lost)
    for index in receive_queues(session):
        session.set_up_queue(index)
    inbox = Inbox(net, queue=RECEIVEQ)
    came = [received.frame for received in inbox.before()]
    assert not came, f"{len(came)} of {FLOWS} frames were kept"


@pytest.mark.clause("5.1.9.5.4.2:1")
@pytest.mark.feature("VIRTIO_NET_F_GUEST_ANNOUNCE")
def test_the_announce_bit_is_clear_once_it_is_acknowledged(
    session: Session, net: NetDriver
) -> None:
    net.start()
    host = session.host
    if not isinstance(host, NetHost) or host.announce is None:
        raise NotApplicableError("the suite cannot have the device ask for an announcement")
    for _ in range(2):
        host.announce()
        session.wait("the ANNOUNCE bit", lambda: session.config(*STATUS) & ANNOUNCE)
        net.control(Command.ANNOUNCE_ACK)
        assert not session.config(*STATUS) & ANNOUNCE

"""Coalescing of notifications: how its parameters are set and told (5.1.9.5.10)."""

import pytest

from virtiopy.conformance.drivers.base import Request
from virtiopy.conformance.drivers.net import RECEIVEQ, TRANSMITQ, Ack, Command, NetDriver
from virtiopy.conformance.sessions.base import Session
from virtiopy.transport.driver import MmioDriver
from virtiopy.virtqueue.layout import VIRTQ_AVAIL_F_NO_INTERRUPT

NOTF_COAL = "VIRTIO_NET_F_NOTF_COAL"
VQ_NOTF_COAL = "VIRTIO_NET_F_VQ_NOTF_COAL"
RING_RESET = "VIRTIO_F_RING_RESET"
EVENT_IDX = "VIRTIO_F_EVENT_IDX"

#: max_packets and max_usecs.
Parameters = tuple[int, int]
FEW, MANY, NONE = (4, 50), (32, 200), (0, 0)

#: An index that no virtqueue has.
NO_QUEUE = 0xFFFE


def start(session: Session, net: NetDriver) -> None:
    """Start a driver that takes what there is of coalescing."""
    names = [name for name in (NOTF_COAL, VQ_NOTF_COAL) if session.offers(name)]
    net.start(net.with_features(*names))


def coal(parameters: Parameters) -> bytes:
    """Return struct virtio_net_ctrl_coal."""
    return b"".join(value.to_bytes(4, "little") for value in parameters)


def queue_of(index: int, reserved: int = 0) -> bytes:
    """Return the first fields of struct virtio_net_ctrl_coal_vq."""
    return index.to_bytes(2, "little") + reserved.to_bytes(2, "little")


def get(net: NetDriver, index: int, *, ack: int = Ack.OK) -> Parameters:
    """Ask for the parameters of a virtqueue.

    They are device-writable fields of the command's data, which the ack follows (5.1.9.5).
    """

    def check(content: bytes, length: int) -> None:
        assert content[-1] == ack, f"ack {content[-1]}, not {ack}"

    queue = net.control_queue
    assert queue is not None
    data = bytes(Command.NOTF_COAL_VQ_GET.value) + queue_of(index)
    content = net.do(Request(queue, data, len(coal(NONE)) + 1, check))
    return int.from_bytes(content[:4], "little"), int.from_bytes(content[4:8], "little")


@pytest.mark.clause("5.1.9.5.10.6:1")
@pytest.mark.feature(VQ_NOTF_COAL)
@pytest.mark.parametrize("reserved", [0, 1, 0xFFFF])
def test_the_reserved_field_makes_no_difference(
    session: Session, net: NetDriver, reserved: int
) -> None:
    start(session, net)
    net.control(Command.NOTF_COAL_VQ_SET, queue_of(TRANSMITQ, reserved) + coal(FEW))
    assert get(net, TRANSMITQ) == FEW


@pytest.mark.clause("5.1.9.5.10.6:2")
@pytest.mark.feature(NOTF_COAL)
@pytest.mark.parametrize("command", [Command.NOTF_COAL_TX_SET, Command.NOTF_COAL_RX_SET])
def test_half_of_the_parameters_for_all_queues_is_refused(
    session: Session, net: NetDriver, command: Command
) -> None:
    start(session, net)
    net.control(command, coal(FEW))
    net.control(command, coal(MANY)[:4], ack=Ack.ERR)


@pytest.mark.clause("5.1.9.5.10.6:3")
@pytest.mark.feature(VQ_NOTF_COAL)
def test_half_of_the_parameters_of_a_queue_is_refused(session: Session, net: NetDriver) -> None:
    start(session, net)
    net.control(Command.NOTF_COAL_VQ_SET, queue_of(TRANSMITQ) + coal(FEW))
    net.control(Command.NOTF_COAL_VQ_SET, queue_of(TRANSMITQ) + coal(MANY)[:4], ack=Ack.ERR)
    assert get(net, TRANSMITQ) == FEW


@pytest.mark.clause("5.1.9.5.10.6:4")
@pytest.mark.feature(VQ_NOTF_COAL)
def test_only_transmit_and_receive_queues_have_parameters(session: Session, net: NetDriver) -> None:
    start(session, net)
    controlq = net.control_queue
    assert controlq is not None
    for index in (controlq, NO_QUEUE):
        net.control(Command.NOTF_COAL_VQ_SET, queue_of(index) + coal(FEW), ack=Ack.ERR)
        get(net, index, ack=Ack.ERR)


@pytest.mark.clause("5.1.9.5.10.6:4")
@pytest.mark.feature(VQ_NOTF_COAL, RING_RESET)
def test_a_queue_that_is_not_enabled_has_no_parameters(
    session: Session, net: NetDriver, registers: MmioDriver
) -> None:
    start(session, net)
    session.reset_queue(RECEIVEQ)
    net.control(Command.NOTF_COAL_VQ_SET, queue_of(RECEIVEQ) + coal(FEW), ack=Ack.ERR)
    get(net, RECEIVEQ, ack=Ack.ERR)


def enable_again(session: Session, net: NetDriver, index: int, command: Command) -> None:
    """Check what a virtqueue has after it was reset, without parameters for all and with some."""
    start(session, net)
    net.control(Command.NOTF_COAL_VQ_SET, queue_of(index) + coal(FEW))
    session.reset_queue(index)
    session.set_up_queue(index)
    assert get(net, index) == NONE
    if not session.has(NOTF_COAL):
        return
    net.control(command, coal(MANY))
    net.control(Command.NOTF_COAL_VQ_SET, queue_of(index) + coal(FEW))
    session.reset_queue(index)
    session.set_up_queue(index)
    assert get(net, index) == MANY


@pytest.mark.clause("5.1.9.5.10.6:5")
@pytest.mark.feature(VQ_NOTF_COAL, RING_RESET)
def test_a_transmit_queue_that_is_enabled_again_has_the_parameters_for_all(
    session: Session, net: NetDriver, registers: MmioDriver
) -> None:
    enable_again(session, net, TRANSMITQ, Command.NOTF_COAL_TX_SET)


@pytest.mark.clause("5.1.9.5.10.6:6")
@pytest.mark.feature(VQ_NOTF_COAL, RING_RESET)
def test_a_receive_queue_that_is_enabled_again_has_the_parameters_for_all(
    session: Session, net: NetDriver, registers: MmioDriver
) -> None:
    enable_again(session, net, RECEIVEQ, Command.NOTF_COAL_RX_SET)


@pytest.mark.clause("5.1.9.5.10.6:8")
@pytest.mark.feature(NOTF_COAL)
@pytest.mark.parametrize("parameters", [(1, 1), (2, 1000), FEW])
def test_notifications_that_are_suppressed_are_not_brought_about(
    session: Session, net: NetDriver, parameters: Parameters
) -> None:
    net.start(net.with_features(NOTF_COAL), without=[EVENT_IDX])
    net.control(Command.NOTF_COAL_TX_SET, coal(parameters))
    # The answer's own notification follows the used entry, and over MMIO it is of any queue.
    assert net.control_queue is not None
    session.wait_notification(net.control_queue)
    session.queues[TRANSMITQ].available.flags = VIRTQ_AVAIL_F_NO_INTERRUPT
    for _ in range(8):
        net.good()
    session.never(
        "a notification came that is suppressed", lambda: session.take_notifications(TRANSMITQ)
    )


@pytest.mark.clause("5.1.9.5.10.6:9")
@pytest.mark.feature(VQ_NOTF_COAL)
def test_all_parameters_are_0_after_a_reset(session: Session, net: NetDriver) -> None:
    start(session, net)
    for index in (TRANSMITQ, RECEIVEQ):
        net.control(Command.NOTF_COAL_VQ_SET, queue_of(index) + coal(FEW))
    start(session, net)
    assert [get(net, index) for index in (TRANSMITQ, RECEIVEQ)] == [NONE, NONE]

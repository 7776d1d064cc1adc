"""Frames in receive buffers: one each, or spread over several (5.1.9.3, 5.1.9.4)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.inbox import Inbox
from virtiopy.conformance.drivers.net import HEADER_SIZE, NO_OFFLOADS, RECEIVEQ, Header, NetDriver
from virtiopy.conformance.problems import about
from virtiopy.conformance.sessions.base import Session

MRG_RXBUF = "VIRTIO_NET_F_MRG_RXBUF"

#: Bytes of frames that every link lets through.
SIZES = (60, 61, 200, 999, 1500, 1514)


@pytest.mark.clause("5.1.9.3.2:2", "5.1.9.4.1:1")
def test_without_mrg_rxbuf_a_frame_takes_one_buffer_and_says_so(net: NetDriver) -> None:
    net.start(without=[MRG_RXBUF])
    inbox = Inbox(net)
    for size in SIZES:
        frame = net.frame(size, destination=net.mac)
        net.link.inject(NO_OFFLOADS.encode() + frame)
        parts = inbox.parts(HEADER_SIZE + size)
        with about("5.1.9.4.1:1"):
            same(Header.decode(parts[0][0]).num_buffers, 1, "num_buffers")
        with about("5.1.9.3.2:2"):
            same([length for _, length in parts], [HEADER_SIZE + size], "the used lengths")


@pytest.mark.clause("5.1.9.3.2:2")
def test_without_mrg_rxbuf_no_frame_goes_on_in_a_second_buffer(net: NetDriver) -> None:
    net.start(without=[MRG_RXBUF])
    inbox = Inbox(net, sizes=[200] * 16)
    frame = net.frame(1000, destination=net.mac)
    parts = inbox.outcome(frame)
    assert len(parts) <= 1, f"a frame of {len(frame)} bytes is in {len(parts)} buffers of 200"


@pytest.mark.clause("5.1.9.3.2:1", "5.1.9.4.1:2", "5.1.9.4.1:3")
@pytest.mark.feature(MRG_RXBUF)
@pytest.mark.parametrize(
    "sizes",
    [[128] * 32, [2048] * 8, [HEADER_SIZE] * 60, [64, 300, 100, 1514, 77] * 6],
    ids=["small", "large", "as small as the header", "mixed"],
)
def test_with_mrg_rxbuf_all_buffers_of_a_frame_but_the_last_are_full(
    net: NetDriver, sizes: list[int]
) -> None:
    net.start()
    inbox = Inbox(net, sizes=sizes)
    for size in SIZES:
        if HEADER_SIZE + size > sum(sizes):
            continue
        frame = net.frame(size, destination=net.mac)
        net.link.inject(NO_OFFLOADS.encode() + frame)
        parts = inbox.parts(HEADER_SIZE + size)
        with about("5.1.9.3.2:1"):
            same(Header.decode(parts[0][0]).num_buffers, len(parts), "num_buffers")
        with about("5.1.9.4.1:3"):
            full = all(length == len(content) for content, length in parts[:-1])
            assert full, "a buffer before the last is not full"


@pytest.mark.clause("5.1.9.4.1:2")
@pytest.mark.feature(MRG_RXBUF)
def test_a_frame_that_fills_its_buffers_just_so_takes_no_other(net: NetDriver) -> None:
    net.start()
    inbox = Inbox(net, sizes=[100] * 16)
    frame = net.frame(3 * 100 - HEADER_SIZE, destination=net.mac)
    net.link.inject(NO_OFFLOADS.encode() + frame)
    parts = inbox.parts(HEADER_SIZE + len(frame))
    same(Header.decode(parts[0][0]).num_buffers, 3, "num_buffers")
    same([length for _, length in parts], [100, 100, 100], "the used lengths")


@pytest.mark.clause("5.1.9.4.1:4")
@pytest.mark.feature(MRG_RXBUF)
def test_all_buffers_of_a_frame_are_used_together(session: Session, net: NetDriver) -> None:
    net.start()
    inbox = Inbox(net, sizes=[100] * 32)
    for _ in range(50):
        frame = net.frame(1000, destination=net.mac)
        net.link.inject(NO_OFFLOADS.encode() + frame)
        [received] = inbox.until(frame)
        assert received.together, "some of a frame's buffers were used, and others were not yet"


@pytest.mark.clause("5.1.9.4.1:4")
@pytest.mark.feature(MRG_RXBUF)
def test_no_buffer_of_a_frame_is_used_while_there_are_too_few(
    session: Session, net: NetDriver
) -> None:
    net.start()
    inbox = Inbox(net, sizes=[100] * 2)
    queue = session.queues[RECEIVEQ]
    net.link.inject(NO_OFFLOADS.encode() + net.frame(1000, destination=net.mac))
    session.never(
        "the first buffers of a frame were used without the others", lambda: queue.used_idx
    )
    for _ in range(30):
        inbox.supply(100)
    # The frame itself may be lost by now; what comes has to be whole.
    for received in inbox.before():
        same(sum(received.lengths), HEADER_SIZE + 1000, "the used lengths, together")
        assert received.together, "some of a frame's buffers were used, and others were not yet"

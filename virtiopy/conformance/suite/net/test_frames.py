"""Network devices: frames come as they are, once, and in their order, both ways (5.1.9)."""

import pytest

from virtiopy.conformance.drivers.base import Framing
from virtiopy.conformance.drivers.inbox import BUFFERS, Inbox
from virtiopy.conformance.drivers.net import HEADER_SIZE, RECEIVE_SIZE, Command, NetDriver
from virtiopy.conformance.effort import Effort
from virtiopy.conformance.models.framework import FrameWork
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.sessions.base import Session

MRG_RXBUF = "VIRTIO_NET_F_MRG_RXBUF"

#: Where frames are cut, with their header: at its end, and in odd places.
CUTS = ((HEADER_SIZE,), (1, 5, HEADER_SIZE + 1), (HEADER_SIZE, 26, 27, 100), range(7, 400, 31))


# Frames that the driver sends


@pytest.mark.clause("5.1.9.2:1")
def test_frames_of_every_length_go_out_as_they_are(net: NetDriver) -> None:
    net.start()
    work = FrameWork(net)
    work.send(work.sizes())
    work.nothing_more()


@pytest.mark.clause("5.1.9.2:1")
def test_frames_in_several_descriptors_go_out_as_they_are(net: NetDriver) -> None:
    net.start()
    work = FrameWork(net)
    sizes = (14, 15, 60, 61, 127, 128, 1000, work.longest - 1, work.longest)
    for cuts in CUTS:
        work.send(sizes, framing=Framing(cuts, None))


# Frames that the link receives


@pytest.mark.clause("5.1.9.4:1")
def test_frames_of_every_length_come_in_as_they_are(net: NetDriver) -> None:
    net.start()
    work = FrameWork(net)
    work.receive(Inbox(net), work.sizes())


@pytest.mark.clause("5.1.9.4:1")
@pytest.mark.feature(MRG_RXBUF)
@pytest.mark.parametrize(
    "sizes",
    [[128] * 60, [HEADER_SIZE + 1, 700, 64, 33] * 15, [1514] * 16],
    ids=["small", "mixed", "large"],
)
def test_frames_come_in_as_they_are_over_several_buffers(net: NetDriver, sizes: list[int]) -> None:
    net.start()
    work = FrameWork(net)
    lengths = [14, 15, 60, 115, 116, 117, 128, 244, 245, 1000, work.longest - 1, work.longest]
    work.receive(Inbox(net, sizes=sizes), lengths, together=2)


# Both ways, and by several pairs


@pytest.mark.clause("5.1.9.2:1", "5.1.9.4:1")
@pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "one buffer each"])
def test_random_frames_go_both_ways(
    session: Session, net: NetDriver, effort: Effort, *, mergeable: bool
) -> None:
    if mergeable:
        session.require(MRG_RXBUF)
    net.start(without=[] if mergeable else [MRG_RXBUF])
    work = FrameWork(net)
    inbox = Inbox(net, sizes=[300] * 60 if mergeable else [RECEIVE_SIZE] * BUFFERS)
    for random in effort.rounds():
        for _ in range(20):
            work.send(work.some(random, random.randint(1, 16)))
            together = random.randint(1, 5 if mergeable else BUFFERS)
            work.receive(inbox, work.some(random, together), together=together)
    work.nothing_more()


@pytest.mark.clause("5.1.9.2:1")
@pytest.mark.feature("VIRTIO_NET_F_MQ")
def test_every_pair_sends_its_own_frames(session: Session, net: NetDriver, effort: Effort) -> None:
    net.start()
    pairs = session.config(8, 2)
    if pairs < 2 or net.link.pairs < pairs:
        raise NotApplicableError("there is one pair of virtqueues")
    net.control(Command.MQ_VQ_PAIRS_SET, pairs.to_bytes(2, "little"))
    work = FrameWork(net)
    for random in effort.rounds():
        for _ in range(10):
            for pair in sorted({0, pairs // 2, pairs - 1}):
                work.send(work.some(random, 8), pair)

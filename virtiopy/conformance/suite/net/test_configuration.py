"""The configuration space of network devices (5.1.4)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.inbox import Inbox
from virtiopy.conformance.drivers.net import SENT, NetDriver
from virtiopy.conformance.drivers.packets import ETHERNET_HEADER
from virtiopy.conformance.problems import BlockedError, NotApplicableError
from virtiopy.conformance.sessions.base import Session

#: Fields of struct virtio_net_config: offset and size, bytes.
STATUS = 6, 2
MAX_VIRTQUEUE_PAIRS = 8, 2
MTU = 10, 2
SPEED = 12, 4
DUPLEX = 16, 1
RSS_MAX_KEY_SIZE = 17, 1
RSS_MAX_INDIRECTION_TABLE_LENGTH = 18, 2

LINK_UP = 1


@pytest.mark.clause("5.1.4.1:1")
@pytest.mark.feature("VIRTIO_NET_F_MQ")
def test_there_are_1_to_0x8000_pairs_of_virtqueues(session: Session, net: NetDriver) -> None:
    session.negotiate()
    pairs = session.config(*MAX_VIRTQUEUE_PAIRS)
    assert 1 <= pairs <= 0x8000, f"max_virtqueue_pairs is {pairs}"


@pytest.mark.clause("5.1.4.1:2")
@pytest.mark.feature("VIRTIO_NET_F_MTU")
def test_the_mtu_is_68_at_least(session: Session, net: NetDriver) -> None:
    session.negotiate()
    assert (mtu := session.config(*MTU)) >= 68, f"mtu is {mtu}"


@pytest.mark.clause("5.1.4.1:3")
@pytest.mark.feature("VIRTIO_NET_F_MTU")
def test_the_mtu_is_large_enough_for_ipv6(session: Session, net: NetDriver) -> None:
    session.negotiate()
    assert (mtu := session.config(*MTU)) >= 1280, f"mtu is {mtu}"


@pytest.mark.clause("5.1.4.1:4")
@pytest.mark.feature("VIRTIO_NET_F_MTU")
def test_the_mtu_never_changes(session: Session, net: NetDriver) -> None:
    first = session.config(*MTU)
    net.start()
    assert session.config(*MTU) == first, "it is another after DRIVER_OK"
    for request in net.requests():
        net.do(request)
    assert session.config(*MTU) == first, "it is another after some work"
    net.start(without=["VIRTIO_NET_F_MTU"])
    assert session.config(*MTU) == first, "it is another after a reset"


@pytest.mark.clause("5.1.4.1:5")
@pytest.mark.feature("VIRTIO_NET_F_MTU")
def test_no_frame_above_the_mtu_is_received(session: Session, net: NetDriver) -> None:
    net.start()
    longest = session.config(*MTU) + ETHERNET_HEADER
    inbox = Inbox(net)
    for size in (longest + 1, longest + 100):
        assert not inbox.gets(net.frame(size, destination=net.mac)), f"{size} bytes were received"
    assert inbox.gets(net.frame(longest, destination=net.mac)), f"{longest} bytes were not"


@pytest.mark.clause("5.1.4.1:6")
@pytest.mark.feature("VIRTIO_NET_F_MTU")
def test_a_frame_of_the_mtu_is_sent_in_one_piece(session: Session, net: NetDriver) -> None:
    net.start()
    longest = session.config(*MTU) + ETHERNET_HEADER
    frame = net.frame()
    if [out for _, out in net.outcome(frame)] != [frame]:
        raise BlockedError(SENT)
    for size in (longest - 1, longest):
        frame = net.frame(size)
        assert [out for _, out in net.outcome(frame)] == [frame], f"a frame of {size} bytes"


@pytest.mark.clause("5.1.4.1:7")
def test_the_rss_key_may_have_40_bytes(session: Session, net: NetDriver) -> None:
    if not (session.offers("VIRTIO_NET_F_RSS") or session.offers("VIRTIO_NET_F_HASH_REPORT")):
        raise NotApplicableError("neither VIRTIO_NET_F_RSS nor HASH_REPORT was offered")
    assert (size := session.config(*RSS_MAX_KEY_SIZE)) >= 40, f"rss_max_key_size is {size}"


@pytest.mark.clause("5.1.4.1:8")
@pytest.mark.feature("VIRTIO_NET_F_RSS")
def test_the_indirection_table_may_have_128_entries(session: Session, net: NetDriver) -> None:
    length = session.config(*RSS_MAX_INDIRECTION_TABLE_LENGTH)
    assert length >= 128, f"rss_max_indirection_table_length is {length}"


@pytest.mark.clause("5.1.4.1:10")
@pytest.mark.feature("VIRTIO_NET_F_SPEED_DUPLEX")
def test_the_speed_is_a_number_or_unknown(session: Session, net: NetDriver) -> None:
    session.negotiate(net.with_features("VIRTIO_NET_F_SPEED_DUPLEX"))
    speed = session.config(*SPEED)
    # With the digits that are too many in the text of 1.4 taken away.
    assert speed <= 0x7FFFFFFF or speed == 0xFFFFFFFF, f"speed is {speed:#x}"


@pytest.mark.clause("5.1.4.1:11")
@pytest.mark.feature("VIRTIO_NET_F_SPEED_DUPLEX")
def test_the_duplex_mode_is_full_half_or_unknown(session: Session, net: NetDriver) -> None:
    session.negotiate(net.with_features("VIRTIO_NET_F_SPEED_DUPLEX"))
    # Which of the first two is which 5.1.4 and 5.1.4.1 do not agree on.
    duplex = session.config(*DUPLEX)
    assert duplex in {0, 1, 0xFF}, f"duplex is {duplex:#x}"


@pytest.mark.clause("5.1.4.1:12")
@pytest.mark.feature("VIRTIO_NET_F_SPEED_DUPLEX", "VIRTIO_NET_F_STATUS")
def test_speed_and_duplex_mode_stay_while_the_link_is_up(session: Session, net: NetDriver) -> None:
    net.start(net.with_features("VIRTIO_NET_F_SPEED_DUPLEX"))
    before = session.config(*SPEED), session.config(*DUPLEX)
    for request in net.requests():
        net.do(request)
    if not session.config(*STATUS) & LINK_UP:
        raise NotApplicableError("the link is down")
    same((session.config(*SPEED), session.config(*DUPLEX)), before, "speed and duplex")


@pytest.mark.clause("5.1.4.1:13")
@pytest.mark.feature("VIRTIO_NET_F_HASH_REPORT")
def test_hashes_are_reported_by_a_device_with_a_control_queue(
    session: Session, net: NetDriver
) -> None:
    assert session.offers("VIRTIO_NET_F_CTRL_VQ"), "VIRTIO_NET_F_CTRL_VQ was not offered"


@pytest.mark.clause("5.1.4.1:14")
@pytest.mark.feature("VIRTIO_NET_F_CTRL_RX_EXTRA")
def test_more_receive_modes_are_offered_by_a_device_with_a_control_queue(
    session: Session, net: NetDriver
) -> None:
    assert session.offers("VIRTIO_NET_F_CTRL_VQ"), "VIRTIO_NET_F_CTRL_VQ was not offered"

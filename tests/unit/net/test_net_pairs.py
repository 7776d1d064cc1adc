"""The network device (5.1): several pairs of queues (5.1.9.5.6)."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.net.rig import (
    BROADCAST,
    CTRL_RX,
    GROUP,
    MAC,
    MQ,
    MRG,
    TSO,
    FakeLink,
    Rig,
    frame,
    header,
)
from virtiopy.devices.net import Net
from virtiopy.devices.net.control import (
    Ack,
    ControlClass,
    MqCommand,
    RxCommand,
)
from virtiopy.virtqueue.buffers import total


def test_only_the_first_pair_is_used_by_default() -> None:
    rig = Rig(MQ, pairs=2)
    assert rig.link.enabled == 1
    rig.send(header() + frame(), queue=3)
    assert rig.link.sent == [[], []]
    assert rig.dropped == {"tx_dropped_disabled_queue": 1}


def test_pairs_are_used_from_the_command_on_and_until_a_reset() -> None:
    rig = Rig(MQ, pairs=2)
    assert rig.command(ControlClass.MQ, MqCommand.VQ_PAIRS_SET, b"\2\0") == Ack.OK
    assert rig.link.enabled == 2
    rig.send(header() + frame(seed=1), queue=1)
    rig.send(header() + frame(seed=2), queue=3)
    assert rig.link.sent == [[header() + frame(seed=1)], [header() + frame(seed=2)]]
    rig.supply(2048, queue=2)
    rig.driver.kick(2)
    rig.arrive(frame(seed=3), pair=1)
    assert rig.received(queue=2) == [header(num_buffers=1) + frame(seed=3)]
    rig.driver.reset()
    assert rig.link.enabled == 1


def test_without_mq_controlq_is_the_third_queue_whatever_the_device_has() -> None:
    rig = Rig(CTRL_RX, pairs=4)
    rig.mode(RxCommand.PROMISC)
    assert rig.device.filter.modes == {RxCommand.PROMISC}


@pytest.mark.parametrize("index", [3, 4, 8])
def test_a_kick_of_a_queue_that_the_features_leave_out_does_nothing(index: int) -> None:
    rig = Rig(pairs=4)
    rig.driver.kick(index)
    assert rig.dropped == {}


@pytest.mark.parametrize(
    "mac", [b"", MAC[:5], GROUP, BROADCAST], ids=["none", "short", "group", "broadcast"]
)
def test_a_device_is_not_made_with_a_bad_mac_address(mac: bytes) -> None:
    with pytest.raises(ValueError, match="unicast"):
        Net(FakeLink(), mac=mac)


@pytest.mark.parametrize("mtu", [67, 65536])
def test_a_device_is_not_made_with_an_mtu_that_cannot_be_offered(mtu: int) -> None:
    with pytest.raises(ValueError, match="MTU"):
        Net(FakeLink(mtu), mac=MAC)


@given(data=st.binary(max_size=200), features=st.sampled_from([(), TSO, (*TSO, MRG)]))
def test_whatever_is_sent_the_buffer_comes_back_and_the_device_lives(
    data: bytes, features: Iterable[int]
) -> None:
    rig = Rig(features)
    assert [used.length for used in rig.send(data)] == [0]
    assert total([memoryview(content) for content in rig.sent]) in (0, len(data))
    rig.send(header() + frame())
    assert rig.sent[-1] == header() + frame()

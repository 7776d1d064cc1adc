"""The network device (5.1): features and the configuration space."""

from collections.abc import Iterable

import pytest

from tests.unit.net.rig import (
    CONFIG_MAC,
    CONFIG_MTU,
    CONFIG_PAIRS,
    CONFIG_STATUS,
    GUEST_TSO,
    MAC,
    F,
    Rig,
)
from virtiopy._native import lib
from virtiopy.devices.net.control import (
    Ack,
    AnnounceCommand,
    ControlClass,
    MacCommand,
    MqCommand,
    RxCommand,
    VlanCommand,
)
from virtiopy.devices.net.device import Status
from virtiopy.devices.net.features import REQUIREMENTS, NetFeature
from virtiopy.devices.net.header import GsoType, HeaderFlag
from virtiopy.spec import has_feature
from virtiopy.transport.driver import NegotiationError

# Numbers


def test_the_feature_bits_are_the_kernels() -> None:
    assert {feature.name: int(feature) for feature in NetFeature} == {
        feature.name: getattr(lib, feature.name) for feature in NetFeature
    }


@pytest.mark.parametrize(
    ("prefix", "members"),
    [
        ("VIRTIO_NET_CTRL_", ControlClass),
        ("VIRTIO_NET_CTRL_RX_", RxCommand),
        ("VIRTIO_NET_CTRL_MAC_", MacCommand),
        ("VIRTIO_NET_CTRL_VLAN_", VlanCommand),
        ("VIRTIO_NET_CTRL_ANNOUNCE_", AnnounceCommand),
        ("VIRTIO_NET_CTRL_MQ_", MqCommand),
        ("VIRTIO_NET_", Ack),
        ("VIRTIO_NET_S_", Status),
        ("VIRTIO_NET_HDR_F_", HeaderFlag),
        ("VIRTIO_NET_HDR_GSO_", GsoType),
    ],
)
def test_every_other_number_is_the_kernels(prefix: str, members: Iterable[int]) -> None:
    for member in members:
        assert int(member) == getattr(lib, f"{prefix}{member.name}")  # type: ignore[attr-defined]


# Features and configuration space


def test_a_device_with_one_pair_offers_no_mq_and_has_three_queues() -> None:
    rig = Rig(None)
    assert not has_feature(rig.driver.offered_features(), F.VIRTIO_NET_F_MQ)
    assert [rig.driver.queue_size_max(n) for n in range(4)] == [64, 64, 64, 0]


def test_every_feature_can_be_taken_together() -> None:
    rig = Rig(None, pairs=2)
    rig.driver.negotiate()
    assert rig.offered_and_taken() == set(NetFeature)


@pytest.mark.parametrize("feature", REQUIREMENTS)
def test_a_feature_without_what_it_requires_is_refused(feature: NetFeature) -> None:
    rig = Rig(None, pairs=2)
    with pytest.raises(NegotiationError):
        rig.driver.negotiate([feature])


def test_the_configuration_space_has_mac_status_pairs_and_mtu() -> None:
    rig = Rig(mtu=9000, pairs=3)
    assert rig.config(CONFIG_MAC).to_bytes(6, "little") == MAC
    assert rig.config(CONFIG_STATUS) == Status.LINK_UP
    assert rig.config(CONFIG_PAIRS) == 3
    assert rig.config(CONFIG_MTU) == 9000


def test_the_driver_cannot_write_the_configuration_space() -> None:
    rig = Rig()
    for offset in range(12):
        rig.driver.write_config(offset, 1, 0x55)
    assert rig.config(CONFIG_MAC).to_bytes(6, "little") == MAC


@pytest.mark.parametrize(
    ("features", "offloads"),
    [
        ((), set()),
        ((F.VIRTIO_NET_F_GUEST_CSUM,), {"checksum"}),
        (GUEST_TSO, {"checksum", "tso4", "tso6"}),
        ((*GUEST_TSO, F.VIRTIO_NET_F_GUEST_ECN), {"checksum", "tso4", "tso6", "ecn"}),
    ],
)
def test_the_link_is_told_what_the_driver_takes(
    features: Iterable[int], offloads: set[str]
) -> None:
    assert Rig(features).link.offloads == offloads


def test_a_reset_takes_the_offloads_back() -> None:
    rig = Rig(GUEST_TSO)
    rig.driver.reset()
    assert rig.link.offloads == set()

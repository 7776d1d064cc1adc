"""The network device's feature bits, and what they mean for frames (5.1.3)."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from virtiopy.devices.net.header import (
    ETHERNET_HEADER,
    HEADER_SIZE,
    LEGACY_HEADER_SIZE,
    MAX_GSO_FRAME,
    VLAN_TAG,
    GsoType,
    TxRules,
)
from virtiopy.spec import Feature, has_feature


class NetFeature(enum.IntEnum):
    """Feature bits (5.1.3)."""

    VIRTIO_NET_F_CSUM = 0
    VIRTIO_NET_F_GUEST_CSUM = 1
    VIRTIO_NET_F_MTU = 3
    VIRTIO_NET_F_MAC = 5
    VIRTIO_NET_F_GUEST_TSO4 = 7
    VIRTIO_NET_F_GUEST_TSO6 = 8
    VIRTIO_NET_F_GUEST_ECN = 9
    VIRTIO_NET_F_HOST_TSO4 = 11
    VIRTIO_NET_F_HOST_TSO6 = 12
    VIRTIO_NET_F_HOST_ECN = 13
    VIRTIO_NET_F_MRG_RXBUF = 15
    VIRTIO_NET_F_STATUS = 16
    VIRTIO_NET_F_CTRL_VQ = 17
    VIRTIO_NET_F_CTRL_RX = 18
    VIRTIO_NET_F_CTRL_VLAN = 19
    VIRTIO_NET_F_CTRL_RX_EXTRA = 20
    VIRTIO_NET_F_GUEST_ANNOUNCE = 21
    VIRTIO_NET_F_MQ = 22
    VIRTIO_NET_F_CTRL_MAC_ADDR = 23


_TSO = (NetFeature.VIRTIO_NET_F_GUEST_TSO4, NetFeature.VIRTIO_NET_F_GUEST_TSO6)
_HOST_TSO = (NetFeature.VIRTIO_NET_F_HOST_TSO4, NetFeature.VIRTIO_NET_F_HOST_TSO6)

#: What each feature requires: one at least of these (5.1.3.1).
REQUIREMENTS: Mapping[NetFeature, tuple[NetFeature, ...]] = {
    NetFeature.VIRTIO_NET_F_GUEST_TSO4: (NetFeature.VIRTIO_NET_F_GUEST_CSUM,),
    NetFeature.VIRTIO_NET_F_GUEST_TSO6: (NetFeature.VIRTIO_NET_F_GUEST_CSUM,),
    NetFeature.VIRTIO_NET_F_GUEST_ECN: _TSO,
    NetFeature.VIRTIO_NET_F_HOST_TSO4: (NetFeature.VIRTIO_NET_F_CSUM,),
    NetFeature.VIRTIO_NET_F_HOST_TSO6: (NetFeature.VIRTIO_NET_F_CSUM,),
    NetFeature.VIRTIO_NET_F_HOST_ECN: _HOST_TSO,
    NetFeature.VIRTIO_NET_F_CTRL_RX: (NetFeature.VIRTIO_NET_F_CTRL_VQ,),
    NetFeature.VIRTIO_NET_F_CTRL_VLAN: (NetFeature.VIRTIO_NET_F_CTRL_VQ,),
    NetFeature.VIRTIO_NET_F_CTRL_RX_EXTRA: (NetFeature.VIRTIO_NET_F_CTRL_VQ,),
    NetFeature.VIRTIO_NET_F_GUEST_ANNOUNCE: (NetFeature.VIRTIO_NET_F_CTRL_VQ,),
    NetFeature.VIRTIO_NET_F_MQ: (NetFeature.VIRTIO_NET_F_CTRL_VQ,),
    NetFeature.VIRTIO_NET_F_CTRL_MAC_ADDR: (NetFeature.VIRTIO_NET_F_CTRL_VQ,),
}


def unmet_requirements(features: int) -> list[str]:
    """Say which of `features` come without what they require, one clause each (5.1.3.1)."""
    return [
        f"the driver accepts {feature.name} without {' or '.join(kind.name for kind in needed)}"
        for feature, needed in REQUIREMENTS.items()
        if has_feature(features, feature)
        and not any(has_feature(features, required) for required in needed)
    ]


@dataclass(slots=True, frozen=True)
class Terms:
    """What was negotiated, as far as frames are concerned.

    `header_size` is that of the driver's headers, bytes. In received frames `rx_checksum` allows
    partial checksums, and `rx_gso_types` are the values of gso_type other than NONE; `rx_longest`
    is the longest one with its header, bytes.
    """

    header_size: int
    mergeable: bool
    rx_mtu: int | None
    rx_checksum: bool
    rx_gso_types: frozenset[int]
    rx_longest: int
    tx: TxRules

    @classmethod
    def of(cls, features: int, mtu: int) -> Self:
        """Read them off the feature bits; `mtu` is the link's."""
        gso_types = _gso_types(features, *_TSO, NetFeature.VIRTIO_NET_F_GUEST_ECN)
        told_mtu = mtu if has_feature(features, NetFeature.VIRTIO_NET_F_MTU) else None
        longest = MAX_GSO_FRAME if gso_types else mtu + ETHERNET_HEADER + VLAN_TAG
        mergeable = has_feature(features, NetFeature.VIRTIO_NET_F_MRG_RXBUF)
        has_count = mergeable or has_feature(features, Feature.VIRTIO_F_VERSION_1)
        return cls(
            header_size=HEADER_SIZE if has_count else LEGACY_HEADER_SIZE,
            mergeable=mergeable,
            rx_mtu=told_mtu,
            rx_checksum=has_feature(features, NetFeature.VIRTIO_NET_F_GUEST_CSUM),
            rx_gso_types=gso_types,
            rx_longest=HEADER_SIZE + longest,
            tx=TxRules(
                checksum=has_feature(features, NetFeature.VIRTIO_NET_F_CSUM),
                gso_types=_gso_types(features, *_HOST_TSO, NetFeature.VIRTIO_NET_F_HOST_ECN),
                mtu=told_mtu,
            ),
        )


def _gso_types(features: int, tso4: int, tso6: int, ecn: int) -> frozenset[int]:
    """Return what gso_type can be besides NONE."""
    types = set()
    if has_feature(features, tso4):
        types.add(int(GsoType.TCPV4))
    if has_feature(features, tso6):
        types.add(int(GsoType.TCPV6))
    if has_feature(features, ecn):
        types |= {kind | GsoType.ECN for kind in types}
    return frozenset(types)

"""Feature bits by name (2.2, 5.1.3, 5.2.3, 5.3.3, 5.5.3, 6): all that the specification has.

It knows more of them than any device of virtiopy's offers: a test names what it needs.
"""

from collections.abc import Iterable

from virtiopy.spec import DeviceId, Feature, feature_mask

_NET = {
    "CSUM": 0,
    "GUEST_CSUM": 1,
    "CTRL_GUEST_OFFLOADS": 2,
    "MTU": 3,
    "MAC": 5,
    "GUEST_TSO4": 7,
    "GUEST_TSO6": 8,
    "GUEST_ECN": 9,
    "GUEST_UFO": 10,
    "HOST_TSO4": 11,
    "HOST_TSO6": 12,
    "HOST_ECN": 13,
    "HOST_UFO": 14,
    "MRG_RXBUF": 15,
    "STATUS": 16,
    "CTRL_VQ": 17,
    "CTRL_RX": 18,
    "CTRL_VLAN": 19,
    "CTRL_RX_EXTRA": 20,
    "GUEST_ANNOUNCE": 21,
    "MQ": 22,
    "CTRL_MAC_ADDR": 23,
    "DEVICE_STATS": 50,
    "HASH_TUNNEL": 51,
    "VQ_NOTF_COAL": 52,
    "NOTF_COAL": 53,
    "GUEST_USO4": 54,
    "GUEST_USO6": 55,
    "HOST_USO": 56,
    "HASH_REPORT": 57,
    "GUEST_HDRLEN": 59,
    "RSS": 60,
    "RSC_EXT": 61,
    "STANDBY": 62,
    "SPEED_DUPLEX": 63,
    "RSS_CONTEXT": 64,
    "GUEST_UDP_TUNNEL_GSO": 65,
    "GUEST_UDP_TUNNEL_GSO_CSUM": 66,
    "HOST_UDP_TUNNEL_GSO": 67,
    "HOST_UDP_TUNNEL_GSO_CSUM": 68,
    "OUT_NET_HEADER": 69,
    "IPSEC": 70,
}

_BLK = {
    "SIZE_MAX": 1,
    "SEG_MAX": 2,
    "GEOMETRY": 4,
    "RO": 5,
    "BLK_SIZE": 6,
    "FLUSH": 9,
    "TOPOLOGY": 10,
    "CONFIG_WCE": 11,
    "MQ": 12,
    "DISCARD": 13,
    "WRITE_ZEROES": 14,
    "LIFETIME": 15,
    "SECURE_ERASE": 16,
    "ZONED": 17,
}

_CONSOLE = {"SIZE": 0, "MULTIPORT": 1, "EMERG_WRITE": 2}

_BALLOON = {
    "MUST_TELL_HOST": 0,
    "STATS_VQ": 1,
    "DEFLATE_ON_OOM": 2,
    "FREE_PAGE_HINT": 3,
    "PAGE_POISON": 4,
    "PAGE_REPORTING": 5,
}

_BY_PREFIX = {
    "VIRTIO_NET_F_": _NET,
    "VIRTIO_BLK_F_": _BLK,
    "VIRTIO_CONSOLE_F_": _CONSOLE,
    "VIRTIO_BALLOON_F_": _BALLOON,
}

_OF_DEVICE = {
    DeviceId.NETWORK: "VIRTIO_NET_F_",
    DeviceId.BLOCK: "VIRTIO_BLK_F_",
    DeviceId.CONSOLE: "VIRTIO_CONSOLE_F_",
    DeviceId.BALLOON: "VIRTIO_BALLOON_F_",
}

#: Bit numbers by the specification's names.
FEATURES = {feature.name: int(feature) for feature in Feature} | {
    prefix + name: bit for prefix, bits in _BY_PREFIX.items() for name, bit in bits.items()
}


def names(features: int, device_id: DeviceId) -> list[str]:
    """Name the bits of a feature set of a device, in ascending order; unknown ones by number."""
    prefix = _OF_DEVICE.get(device_id, "-")
    known = {bit: name for name, bit in FEATURES.items() if name.startswith((prefix, "VIRTIO_F_"))}
    bits = [bit for bit in range(features.bit_length()) if features >> bit & 1]
    return [known.get(bit, f"bit {bit}") for bit in bits]


def bits(features: Iterable[int | str]) -> list[int]:
    """Return bit numbers; names may stand for them. Raises KeyError for names that are none."""
    return [FEATURES[feature] if isinstance(feature, str) else int(feature) for feature in features]


def of_device(device_id: DeviceId) -> int:
    """Return every feature bit that means something to a device of this type."""
    mine = (_OF_DEVICE.get(device_id, "-"), "VIRTIO_F_")
    return feature_mask(bit for name, bit in FEATURES.items() if name.startswith(mine))


#: What features require (5.1.3.1): of each set one at least. CTRL_RX_EXTRA is not in that list; it
#: is in ours for what its commands are sent by.
_REQUIREMENTS: dict[str, tuple[set[str], ...]] = {
    "GUEST_TSO4": ({"GUEST_CSUM"},),
    "GUEST_TSO6": ({"GUEST_CSUM"},),
    "GUEST_ECN": ({"GUEST_TSO4", "GUEST_TSO6"},),
    "GUEST_UFO": ({"GUEST_CSUM"},),
    "GUEST_USO4": ({"GUEST_CSUM"},),
    "GUEST_USO6": ({"GUEST_CSUM"},),
    "GUEST_UDP_TUNNEL_GSO": ({"GUEST_TSO4"}, {"GUEST_TSO6"}, {"GUEST_USO4"}, {"GUEST_USO6"}),
    "GUEST_UDP_TUNNEL_GSO_CSUM": ({"GUEST_UDP_TUNNEL_GSO"},),
    "HOST_TSO4": ({"CSUM"},),
    "HOST_TSO6": ({"CSUM"},),
    "HOST_ECN": ({"HOST_TSO4", "HOST_TSO6"},),
    "HOST_UFO": ({"CSUM"},),
    "HOST_USO": ({"CSUM"},),
    "HOST_UDP_TUNNEL_GSO": ({"HOST_TSO4"}, {"HOST_TSO6"}, {"HOST_USO"}),
    "HOST_UDP_TUNNEL_GSO_CSUM": ({"HOST_UDP_TUNNEL_GSO"},),
    "CTRL_RX": ({"CTRL_VQ"},),
    "CTRL_VLAN": ({"CTRL_VQ"},),
    "CTRL_RX_EXTRA": ({"CTRL_VQ"},),
    "GUEST_ANNOUNCE": ({"CTRL_VQ"},),
    "MQ": ({"CTRL_VQ"},),
    "CTRL_MAC_ADDR": ({"CTRL_VQ"},),
    "NOTF_COAL": ({"CTRL_VQ"},),
    "RSC_EXT": ({"HOST_TSO4", "HOST_TSO6"},),
    "RSS": ({"CTRL_VQ"},),
    "VQ_NOTF_COAL": ({"CTRL_VQ"},),
    "HASH_TUNNEL": ({"CTRL_VQ"}, {"RSS", "HASH_REPORT"}),
    "RSS_CONTEXT": ({"CTRL_VQ"}, {"RSS"}),
}


def lacking(features: int, device_id: DeviceId) -> int:
    """Return those features of a set that lack others which they require."""
    if device_id is not DeviceId.NETWORK:
        return 0
    return feature_mask(
        _NET[name]
        for name, sets in _REQUIREMENTS.items()
        if features >> _NET[name] & 1
        and not all(any(features >> _NET[other] & 1 for other in one) for one in sets)
    )


def valid_subset(features: int, device_id: DeviceId) -> int:
    """Return a feature set without what lacks others that it requires."""
    while unmet := lacking(features, device_id):
        features &= ~unmet
    return features

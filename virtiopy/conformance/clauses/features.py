"""Feature bits by name (2.2): all that the specification has, offered or not."""

from collections.abc import Iterable

from virtiopy.devices.registry import entry_of
from virtiopy.spec import DeviceId, feature_mask, has_feature
from virtiopy.statements.index import load_index

#: Bit numbers by the specification's names.
FEATURES = load_index().features


def names(features: int, device_id: DeviceId) -> list[str]:
    """Name the bits of a feature set of a device, in ascending order; unknown ones by number."""
    known = {bit: name for name, bit in _meaningful(device_id).items()}
    bits = [bit for bit in range(features.bit_length()) if features >> bit & 1]
    return [known.get(bit, f"bit {bit}") for bit in bits]


def bits(features: Iterable[int | str]) -> list[int]:
    """Return bit numbers; names may stand for them. Raises KeyError for names that are none."""
    return [FEATURES[feature] if isinstance(feature, str) else int(feature) for feature in features]


def of_device(device_id: DeviceId) -> int:
    """Return every feature bit that means something to a device of this type."""
    return feature_mask(_meaningful(device_id).values())


def _meaningful(device_id: DeviceId) -> dict[str, int]:
    """Return the feature bits that mean something to a device type, by name."""
    entry = entry_of(device_id)
    mine = ("VIRTIO_F_",) if entry is None else ("VIRTIO_F_", entry.feature_prefix)
    found = {name: bit for name, bit in FEATURES.items() if name.startswith(mine)}
    if entry is not None:
        # Where the specification has no section of such a device.
        own = entry.device_class.feature_bits or ()
        found.update((bit.name, bit.value) for bit in own)
    return found


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

    def has(name: str) -> bool:
        return has_feature(features, FEATURES[f"VIRTIO_NET_F_{name}"])

    return feature_mask(
        FEATURES[f"VIRTIO_NET_F_{name}"]
        for name, sets in _REQUIREMENTS.items()
        if has(name) and not all(any(map(has, alternatives)) for alternatives in sets)
    )


def valid_subset(features: int, device_id: DeviceId) -> int:
    """Return a feature set without what lacks others that it requires."""
    while unmet := lacking(features, device_id):
        features &= ~unmet
    return features

"""Devices that do not offer one feature: a variant for each that a device has.

Each is called without-NAME, after the specification's name of the feature. What requires the
feature is not offered either (2.2.2).
"""

from collections.abc import Iterable, Mapping, Sequence

from virtiopy.check.dress import Dressing
from virtiopy.check.fields import REQUIRED_FEATURES, defined_features, feature_bit, is_feature
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError
from virtiopy.spec import has_feature

#: What the names of these variants begin with.
PREFIX = "without-"

#: Features that a device has to offer, and why.
_KEPT: Mapping[str, str] = {
    "VIRTIO_F_VERSION_1": "each device that is no legacy device offers it (6.2)",
    "VIRTIO_BLK_F_RO": "a disk that is read-only says so (5.2.3)",
}

#: What a device offers with another feature only: one at least of these (5.1.3.1, 5.1.4, 5.2.5.2).
_NEEDED: Mapping[str, Sequence[str]] = {
    **REQUIRED_FEATURES,
    "VIRTIO_NET_F_CTRL_RX_EXTRA": ("VIRTIO_NET_F_CTRL_VQ",),
    "VIRTIO_NET_F_HASH_REPORT": ("VIRTIO_NET_F_CTRL_VQ",),
    "VIRTIO_BLK_F_CONFIG_WCE": ("VIRTIO_BLK_F_FLUSH",),
}


class Withholding(Dressing):
    """Does not offer the feature `name`, nor what requires it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bit = feature_bit(name)
        self._acted = False

    @property
    def has_acted(self) -> bool:
        """Whether the device would have offered it to the driver."""
        return self._acted

    def device(self, device: VirtioDevice) -> None:
        """Have the device offer less."""
        names = defined_features(device.device_id)
        if names.get(self._bit) != self._name:
            return
        offered = device.offered

        def offer(features: int) -> int:
            found = offered(features)
            self._acted |= has_feature(found, self._bit)
            return _consistent(found & ~(1 << self._bit), names)

        device.offered = offer  # type: ignore[method-assign]


def _consistent(features: int, names: Mapping[int, str]) -> int:
    """Take features away that come without what they require, until none is left."""
    bits = {name: bit for bit, name in names.items()}
    while True:
        unmet = [
            bits[name]
            for name, needed in _NEEDED.items()
            if name in bits
            and has_feature(features, bits[name])
            and not any(has_feature(features, bits[one]) for one in needed)
        ]
        if not unmet:
            return features
        for bit in unmet:
            features &= ~(1 << bit)


def feature_of(variant: str) -> str:
    """Return the feature that a variant withholds; raises ConfigError where there is none such."""
    name = variant.removeprefix(PREFIX)
    if name in _KEPT:
        raise ConfigError(f"There is no device variant {variant!r}: {_KEPT[name]}.")
    if not is_feature(name):
        raise ConfigError(
            f"There is no device variant {variant!r}: give a feature by the specification's name, "
            f"as {PREFIX}VIRTIO_F_EVENT_IDX."
        )
    return name


def variants_of(offered: Iterable[str]) -> Sequence[str]:
    """Return the names of the variants for a device that offers these features, by name."""
    found = dict.fromkeys(name for name in offered if is_feature(name) and name not in _KEPT)
    return [f"{PREFIX}{name}" for name in found]

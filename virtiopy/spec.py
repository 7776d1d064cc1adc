"""Numbers of the virtio specification that every layer shares (1.4 CS01: 2.1, 5, 6)."""

import enum
from collections.abc import Iterable


class DeviceStatus(enum.IntFlag):
    """Bits of the device status field (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    SUSPEND = 16
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class DeviceId(enum.IntEnum):
    """Device types (5)."""

    NETWORK = 1
    BLOCK = 2
    CONSOLE = 3
    ENTROPY = 4
    BALLOON = 5


class Feature(enum.IntEnum):
    """Feature bits that belong to no device type (6); the values are bit numbers."""

    VIRTIO_F_INDIRECT_DESC = 28
    VIRTIO_F_EVENT_IDX = 29
    VIRTIO_F_VERSION_1 = 32
    VIRTIO_F_ACCESS_PLATFORM = 33
    VIRTIO_F_RING_PACKED = 34
    VIRTIO_F_IN_ORDER = 35
    VIRTIO_F_ORDER_PLATFORM = 36
    VIRTIO_F_SR_IOV = 37
    VIRTIO_F_NOTIFICATION_DATA = 38
    VIRTIO_F_NOTIF_CONFIG_DATA = 39
    VIRTIO_F_RING_RESET = 40
    VIRTIO_F_ADMIN_VQ = 41
    VIRTIO_F_SUSPEND = 43


def feature_mask(bits: Iterable[int]) -> int:
    """Return the 64-bit feature set in which just the feature bits numbered `bits` are set."""
    mask = 0
    for bit in bits:
        mask |= 1 << bit
    return mask


def has_feature(features: int, bit: int) -> bool:
    """Say whether feature bit number `bit` is set in `features`."""
    return bool(features >> bit & 1)


def feature_names(features: int, own: type[enum.IntEnum] | None = None) -> list[str]:
    """Name the bits of a feature set, in ascending order; those of no name are given by number.

    `own` are the device type's own feature bits.
    """
    names = {bit.value: bit.name for kind in (Feature, own) if kind is not None for bit in kind}
    bits = [bit for bit in range(features.bit_length()) if has_feature(features, bit)]
    return [names.get(bit, f"feature bit {bit}") for bit in bits]

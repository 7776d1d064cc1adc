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
    """Device types (5): all that have a number, whether virtiopy has such a device or not."""

    NETWORK = 1
    BLOCK = 2
    CONSOLE = 3
    ENTROPY = 4
    BALLOON = 5
    IO_MEMORY = 6
    RPMSG = 7
    SCSI_HOST = 8
    NINE_P = 9
    MAC80211_WLAN = 10
    RPROC_SERIAL = 11
    CAIF = 12
    MEMORY_BALLOON = 13
    GPU = 16
    RTC = 17
    INPUT = 18
    SOCKET = 19
    CRYPTO = 20
    SIGNAL_DISTRIBUTION = 21
    PSTORE = 22
    IOMMU = 23
    MEMORY = 24
    SOUND = 25
    FILE_SYSTEM = 26
    PMEM = 27
    RPMB = 28
    MAC80211_HWSIM = 29
    VIDEO_ENCODER = 30
    VIDEO_DECODER = 31
    SCMI = 32
    NITRO_SECURE_MODULE = 33
    I2C_ADAPTER = 34
    WATCHDOG = 35
    CAN = 36
    PARAMETER_SERVER = 38
    AUDIO_POLICY = 39
    BLUETOOTH = 40
    GPIO = 41
    RDMA = 42
    CAMERA = 43
    ISM = 44
    SPI = 45
    TEE = 46
    CPU_BALLOON = 47
    MEDIA = 48
    USB = 49


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

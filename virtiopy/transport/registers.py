"""The registers of virtio over MMIO, version 2 (4.2.2), by the specification's names."""

import enum

MAGIC_VALUE = 0x7472_6976
VERSION = 2
VENDOR_ID = int.from_bytes(b"VPY1", "little")

#: Bytes of a device's register range.
REGISTER_RANGE = 0x1000

#: What length and address of a shared memory region that does not exist read as, 64 bits (4.2.2).
NO_SHARED_MEMORY = 0xFFFF_FFFF_FFFF_FFFF


class Register(enum.IntEnum):
    """The control registers, by the specification's names (4.2.2)."""

    MagicValue = 0x000
    Version = 0x004
    DeviceID = 0x008
    VendorID = 0x00C
    DeviceFeatures = 0x010
    DeviceFeaturesSel = 0x014
    DriverFeatures = 0x020
    DriverFeaturesSel = 0x024
    QueueSel = 0x030
    QueueSizeMax = 0x034
    QueueSize = 0x038
    QueueReady = 0x044
    QueueNotify = 0x050
    InterruptStatus = 0x060
    InterruptACK = 0x064
    Status = 0x070
    QueueDescLow = 0x080
    QueueDescHigh = 0x084
    QueueDriverLow = 0x090
    QueueDriverHigh = 0x094
    QueueDeviceLow = 0x0A0
    QueueDeviceHigh = 0x0A4
    SHMSel = 0x0AC
    SHMLenLow = 0x0B0
    SHMLenHigh = 0x0B4
    SHMBaseLow = 0x0B8
    SHMBaseHigh = 0x0BC
    QueueReset = 0x0C0
    ConfigGeneration = 0x0FC
    Config = 0x100


#: Registers that only legacy devices have (4.2.4), by offset.
LEGACY_REGISTERS = {0x028: "GuestPageSize", 0x03C: "QueueAlign", 0x040: "QueuePFN"}


class Interrupt(enum.IntFlag):
    """Bits of InterruptStatus (4.2.2)."""

    USED_BUFFER = 1
    CONFIG_CHANGE = 2

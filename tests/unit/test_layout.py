import enum

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from virtiopy._native import ffi, lib
from virtiopy.devices import blk
from virtiopy.devices.blk import BlkFeature, RequestType
from virtiopy.spec import DeviceId, DeviceStatus, Feature, feature_mask, has_feature
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue import layout
from virtiopy.virtqueue.layout import (
    QUEUE_SIZE_MAX,
    Area,
    AreaLayout,
    DescriptorFlag,
    RingFormat,
    need_event,
    valid_queue_size,
)

# Our names are the specification's, the kernel's headers have older ones: the numbers are equal.


@pytest.mark.parametrize(
    ("ours", "kernels"),
    [
        (layout.VIRTQ_DESC_F_NEXT, "VRING_DESC_F_NEXT"),
        (layout.VIRTQ_DESC_F_WRITE, "VRING_DESC_F_WRITE"),
        (layout.VIRTQ_DESC_F_INDIRECT, "VRING_DESC_F_INDIRECT"),
        (DescriptorFlag.NEXT, "VRING_DESC_F_NEXT"),
        (DescriptorFlag.WRITE, "VRING_DESC_F_WRITE"),
        (DescriptorFlag.INDIRECT, "VRING_DESC_F_INDIRECT"),
        (layout.VIRTQ_AVAIL_F_NO_INTERRUPT, "VRING_AVAIL_F_NO_INTERRUPT"),
        (layout.VIRTQ_USED_F_NO_NOTIFY, "VRING_USED_F_NO_NOTIFY"),
        (Feature.VIRTIO_F_INDIRECT_DESC, "VIRTIO_RING_F_INDIRECT_DESC"),
        (Feature.VIRTIO_F_EVENT_IDX, "VIRTIO_RING_F_EVENT_IDX"),
        (Feature.VIRTIO_F_VERSION_1, "VIRTIO_F_VERSION_1"),
        (Feature.VIRTIO_F_ACCESS_PLATFORM, "VIRTIO_F_ACCESS_PLATFORM"),
        (Feature.VIRTIO_F_RING_PACKED, "VIRTIO_F_RING_PACKED"),
        (Feature.VIRTIO_F_IN_ORDER, "VIRTIO_F_IN_ORDER"),
        (Feature.VIRTIO_F_ORDER_PLATFORM, "VIRTIO_F_ORDER_PLATFORM"),
        (Feature.VIRTIO_F_SR_IOV, "VIRTIO_F_SR_IOV"),
        (Feature.VIRTIO_F_RING_RESET, "VIRTIO_F_RING_RESET"),
        (DeviceStatus.ACKNOWLEDGE, "VIRTIO_CONFIG_S_ACKNOWLEDGE"),
        (DeviceStatus.DRIVER, "VIRTIO_CONFIG_S_DRIVER"),
        (DeviceStatus.DRIVER_OK, "VIRTIO_CONFIG_S_DRIVER_OK"),
        (DeviceStatus.FEATURES_OK, "VIRTIO_CONFIG_S_FEATURES_OK"),
        (DeviceStatus.DEVICE_NEEDS_RESET, "VIRTIO_CONFIG_S_NEEDS_RESET"),
        (DeviceStatus.FAILED, "VIRTIO_CONFIG_S_FAILED"),
        (DeviceId.NETWORK, "VIRTIO_ID_NET"),
        (DeviceId.BLOCK, "VIRTIO_ID_BLOCK"),
        (DeviceId.CONSOLE, "VIRTIO_ID_CONSOLE"),
        (DeviceId.ENTROPY, "VIRTIO_ID_RNG"),
        (DeviceId.BALLOON, "VIRTIO_ID_BALLOON"),
        (Register.MagicValue, "VIRTIO_MMIO_MAGIC_VALUE"),
        (Register.Version, "VIRTIO_MMIO_VERSION"),
        (Register.DeviceID, "VIRTIO_MMIO_DEVICE_ID"),
        (Register.VendorID, "VIRTIO_MMIO_VENDOR_ID"),
        (Register.DeviceFeatures, "VIRTIO_MMIO_DEVICE_FEATURES"),
        (Register.DeviceFeaturesSel, "VIRTIO_MMIO_DEVICE_FEATURES_SEL"),
        (Register.DriverFeatures, "VIRTIO_MMIO_DRIVER_FEATURES"),
        (Register.DriverFeaturesSel, "VIRTIO_MMIO_DRIVER_FEATURES_SEL"),
        (Register.QueueSel, "VIRTIO_MMIO_QUEUE_SEL"),
        (Register.QueueSizeMax, "VIRTIO_MMIO_QUEUE_NUM_MAX"),
        (Register.QueueSize, "VIRTIO_MMIO_QUEUE_NUM"),
        (Register.QueueReady, "VIRTIO_MMIO_QUEUE_READY"),
        (Register.QueueNotify, "VIRTIO_MMIO_QUEUE_NOTIFY"),
        (Register.InterruptStatus, "VIRTIO_MMIO_INTERRUPT_STATUS"),
        (Register.InterruptACK, "VIRTIO_MMIO_INTERRUPT_ACK"),
        (Register.Status, "VIRTIO_MMIO_STATUS"),
        (Register.QueueDescLow, "VIRTIO_MMIO_QUEUE_DESC_LOW"),
        (Register.QueueDescHigh, "VIRTIO_MMIO_QUEUE_DESC_HIGH"),
        (Register.QueueDriverLow, "VIRTIO_MMIO_QUEUE_AVAIL_LOW"),
        (Register.QueueDriverHigh, "VIRTIO_MMIO_QUEUE_AVAIL_HIGH"),
        (Register.QueueDeviceLow, "VIRTIO_MMIO_QUEUE_USED_LOW"),
        (Register.QueueDeviceHigh, "VIRTIO_MMIO_QUEUE_USED_HIGH"),
        (Register.SHMSel, "VIRTIO_MMIO_SHM_SEL"),
        (Register.SHMLenLow, "VIRTIO_MMIO_SHM_LEN_LOW"),
        (Register.SHMLenHigh, "VIRTIO_MMIO_SHM_LEN_HIGH"),
        (Register.SHMBaseLow, "VIRTIO_MMIO_SHM_BASE_LOW"),
        (Register.SHMBaseHigh, "VIRTIO_MMIO_SHM_BASE_HIGH"),
        (Register.ConfigGeneration, "VIRTIO_MMIO_CONFIG_GENERATION"),
        (Register.Config, "VIRTIO_MMIO_CONFIG"),
        (Interrupt.USED_BUFFER, "VIRTIO_MMIO_INT_VRING"),
        (Interrupt.CONFIG_CHANGE, "VIRTIO_MMIO_INT_CONFIG"),
        (BlkFeature.VIRTIO_BLK_F_SIZE_MAX, "VIRTIO_BLK_F_SIZE_MAX"),
        (BlkFeature.VIRTIO_BLK_F_SEG_MAX, "VIRTIO_BLK_F_SEG_MAX"),
        (BlkFeature.VIRTIO_BLK_F_RO, "VIRTIO_BLK_F_RO"),
        (BlkFeature.VIRTIO_BLK_F_BLK_SIZE, "VIRTIO_BLK_F_BLK_SIZE"),
        (BlkFeature.VIRTIO_BLK_F_FLUSH, "VIRTIO_BLK_F_FLUSH"),
        (BlkFeature.VIRTIO_BLK_F_TOPOLOGY, "VIRTIO_BLK_F_TOPOLOGY"),
        (BlkFeature.VIRTIO_BLK_F_CONFIG_WCE, "VIRTIO_BLK_F_CONFIG_WCE"),
        (BlkFeature.VIRTIO_BLK_F_MQ, "VIRTIO_BLK_F_MQ"),
        (BlkFeature.VIRTIO_BLK_F_DISCARD, "VIRTIO_BLK_F_DISCARD"),
        (BlkFeature.VIRTIO_BLK_F_WRITE_ZEROES, "VIRTIO_BLK_F_WRITE_ZEROES"),
        (BlkFeature.VIRTIO_BLK_F_SECURE_ERASE, "VIRTIO_BLK_F_SECURE_ERASE"),
        (RequestType.IN, "VIRTIO_BLK_T_IN"),
        (RequestType.OUT, "VIRTIO_BLK_T_OUT"),
        (RequestType.FLUSH, "VIRTIO_BLK_T_FLUSH"),
        (RequestType.GET_ID, "VIRTIO_BLK_T_GET_ID"),
        (RequestType.DISCARD, "VIRTIO_BLK_T_DISCARD"),
        (RequestType.WRITE_ZEROES, "VIRTIO_BLK_T_WRITE_ZEROES"),
        (RequestType.SECURE_ERASE, "VIRTIO_BLK_T_SECURE_ERASE"),
        (blk.Status.OK, "VIRTIO_BLK_S_OK"),
        (blk.Status.IOERR, "VIRTIO_BLK_S_IOERR"),
        (blk.Status.UNSUPP, "VIRTIO_BLK_S_UNSUPP"),
        (blk.FLAG_UNMAP, "VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP"),
        (blk.ID_BYTES, "VIRTIO_BLK_ID_BYTES"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_our_number_is_the_kernels(ours: int, kernels: str) -> None:
    assert int(ours) == getattr(lib, kernels)


# What is not in the kernel's headers of this machine, from the specification's text.
@pytest.mark.parametrize(
    ("ours", "specs"),
    [
        pytest.param(DeviceStatus.SUSPEND, 16, id="2.1-SUSPEND"),
        pytest.param(Feature.VIRTIO_F_NOTIFICATION_DATA, 38, id="6-NOTIFICATION_DATA"),
        pytest.param(Feature.VIRTIO_F_NOTIF_CONFIG_DATA, 39, id="6-NOTIF_CONFIG_DATA"),
        pytest.param(Feature.VIRTIO_F_ADMIN_VQ, 41, id="6-ADMIN_VQ"),
        pytest.param(Feature.VIRTIO_F_SUSPEND, 43, id="6-SUSPEND"),
        pytest.param(Register.QueueReset, 0x0C0, id="4.2.2-QueueReset"),
        pytest.param(BlkFeature.VIRTIO_BLK_F_GEOMETRY, 4, id="5.2.3-GEOMETRY"),
        pytest.param(BlkFeature.VIRTIO_BLK_F_LIFETIME, 15, id="5.2.3-LIFETIME"),
        pytest.param(BlkFeature.VIRTIO_BLK_F_ZONED, 17, id="5.2.3-ZONED"),
        pytest.param(RequestType.GET_LIFETIME, 10, id="5.2.6-GET_LIFETIME"),
    ],
)
def test_our_number_is_the_specifications(ours: int, specs: int) -> None:
    assert int(ours) == specs


@pytest.mark.parametrize(
    "numbers",
    [DeviceStatus, DeviceId, Feature, Register, Interrupt, BlkFeature, RequestType, blk.Status],
)
def test_no_two_names_have_one_number(numbers: type[enum.Enum]) -> None:
    assert len(numbers.__members__) == len({member.value for member in numbers})


# The parts and their fields (2.7, 2.7.5)


@pytest.mark.parametrize(
    ("struct", "size"),
    [
        ("struct vring_desc", 16),
        ("struct vring_avail", 4),
        ("struct vring_used_elem", 8),
        ("struct vring_used", 4),
        ("struct virtio_blk_outhdr", 16),
        ("struct virtio_blk_discard_write_zeroes", 16),
    ],
)
def test_a_struct_has_the_size_that_the_spec_gives_it(struct: str, size: int) -> None:
    assert ffi.sizeof(struct) == size


@pytest.mark.parametrize(
    ("field", "offset"), [("addr", 0), ("len", 8), ("flags", 12), ("next", 14)]
)
def test_a_descriptors_field_is_where_the_spec_has_it(field: str, offset: int) -> None:
    assert ffi.offsetof("struct vring_desc", field) == offset


# The table in 2.7.
@pytest.mark.parametrize("size", [1, 2, 256, 32768])
def test_the_areas_have_the_sizes_and_alignments_of_the_specs_table(size: int) -> None:
    assert layout.areas(RingFormat.SPLIT, size) == AreaLayout(
        Area(16 * size, 16), Area(6 + 2 * size, 2), Area(6 + 8 * size, 4)
    )


def test_just_16_queue_sizes_are_valid() -> None:
    valid = [size for size in range(-2, 2 * QUEUE_SIZE_MAX + 2) if valid_queue_size(size)]
    assert valid == [1 << exponent for exponent in range(16)]


# 2.7.7.2, 2.7.10.1: a notification is due when an entry was placed by an idx equal to the event.
@given(event=st.integers(0, 65535), old=st.integers(0, 65535), count=st.integers(0, 300), near=...)
@example(event=0, old=0, count=1, near=False)  # the example in 2.7.7.2
@example(event=0, old=65535, count=2, near=False)
@example(event=65535, old=65535, count=1, near=False)
@example(event=1, old=0, count=1, near=False)
def test_need_event_is_the_specs_rule(event: int, old: int, count: int, near: bool) -> None:
    if near:
        event = (old + event % 310 - 5) % 65536
    indexes = [(old + step) % 65536 for step in range(count)]
    assert need_event(event, (old + count) % 65536, old) == (event in indexes)


# Feature bits


@given(bits=st.sets(st.integers(0, 127)))
def test_a_feature_mask_has_just_the_bits_it_was_made_of(bits: set[int]) -> None:
    mask = feature_mask(bits)
    assert {bit for bit in range(128) if has_feature(mask, bit)} == bits

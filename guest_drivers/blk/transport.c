// SPDX-License-Identifier: MIT
/* Registers, reset and feature negotiation, before any request. */
#include "test.h"

/* A feature bit that the device does not offer, to ask for nevertheless. */
static unsigned int unoffered_bit(const struct virtio_device *device)
{
	unsigned int bit = VIRTIO_FEATURE_BITS - 1;

	while (bit && device->offered & BIT(bit))
		bit--;
	return bit;
}

static void test_reset(struct blk_test *t)
{
	struct virtio_device *device = t->device;

	test_open(t, 0);
	CHECK(t, virtio_queue_ready(device, 0), "QueueReady reads back 1 (4.2.2)");
	CHECK_IS(t, virtio_status(device),
		 VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK
		 | VIRTIO_STATUS_DRIVER_OK, "device status shows the initialized driver (2.1)");
	virtio_reset(device);
	CHECK_IS(t, virtio_status(device), 0, "a reset brings device status 0 (2.4.1)");
	CHECK(t, !virtio_queue_ready(device, 0), "a reset brings QueueReady 0 (4.2.2.1)");
}

static void test_negotiation(struct blk_test *t)
{
	struct virtio_device *device = t->device;

	CHECK(t, test_offers(t, VIRTIO_F_VERSION_1), "offers VERSION_1 (6.2)");
	CHECK(t, virtio_negotiate(device, BIT(VIRTIO_F_VERSION_1)),
	      "VERSION_1 alone is accepted with FEATURES_OK (3.1.1)");
	CHECK_EXCEPT_QEMU(t, !virtio_negotiate(device, BIT(VIRTIO_F_VERSION_1)
					       | BIT(unoffered_bit(device))),
			  "drops the bit and keeps FEATURES_OK",
			  "a feature that is not offered is refused with FEATURES_OK clear (2.2.2)");
	CHECK_IS(t, virtio_offered_features(device), device->offered,
		 "offers the same features after a reset (2.2)");
}

void test_transport(struct blk_test *t)
{
	struct virtio_device *device = t->device;
	uint32_t generation;

	CHECK_IS(t, device->magic, VIRTIO_MMIO_MAGIC, "MagicValue is virt (4.2.2.1)");
	CHECK_IS(t, device->version, VIRTIO_MMIO_VERSION_2, "Version is 2 (4.2.2.1)");
	CHECK_IS(t, device->device_id, VIRTIO_ID_BLOCK, "DeviceID is 2 (5.2.1)");
	test_negotiation(t);
	test_reset(t);

	test_open(t, 0);
	generation = virtio_config_generation(device);
	CHECK(t, t->blk.capacity != 0, "has a capacity (5.2.4)");
	CHECK_IS(t, BLK_CONFIG(64, device, capacity), t->blk.capacity,
		 "capacity reads the same again (2.5)");
	CHECK_IS(t, virtio_config_generation(device), generation,
		 "ConfigGeneration stays while nothing changes (2.5.2)");
	tap_note("%s: %llu sectors, queue size up to %u", t->disk,
		 (unsigned long long)t->blk.capacity, virtio_queue_size_max(device, 0));
}

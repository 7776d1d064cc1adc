// SPDX-License-Identifier: MIT
/* What the tests of every device share. */
#include "virtio_test.h"

#define FILLED_MAX	64

void virtio_test_each(uint32_t device_id, const char *kind, void (*run)(struct virtio_test *t))
{
	static struct virtio_device devices[VIRTIO_DEVICES_MAX];
	const unsigned int count = virtio_discover(devices, VIRTIO_DEVICES_MAX);
	unsigned int found = 0;

	for (unsigned int i = 0; i < count; i++) {
		struct virtio_test test = {
			.device = &devices[i],
			.qemu = devices[i].vendor_id == VIRTIO_VENDOR_QEMU,
		};

		if (!virtio_is_usable(&devices[i]) || devices[i].device_id != device_id)
			continue;
		snprintf(test.label, sizeof(test.label), "%s%u", kind, found++);
		virtio_test_name(&test, 0);
		virtio_enable_interrupt(&devices[i]);
		run(&test);
	}
	if (!found)
		tap_bail_out("there is no %s", virtio_device_name(device_id));
}

void virtio_test_name(struct virtio_test *t, uint64_t features)
{
	size_t length = snprintf(t->name, sizeof(t->name), "%s", t->label);

	for (unsigned int bit = 0; bit < VIRTIO_FEATURE_BITS; bit++)
		if (features & BIT(bit) && bit != VIRTIO_F_VERSION_1)
			length += snprintf(t->name + length, sizeof(t->name) - length, " %s",
					   virtio_feature_name(t->device->device_id, bit));
}

void virtio_test_negotiate(struct virtio_test *t, uint64_t features)
{
	if (!virtio_negotiate(t->device, features | BIT(VIRTIO_F_VERSION_1)))
		tap_bail_out("%s refuses features 0x%llx, all of which it offers (2.2.2)", t->label,
			     (unsigned long long)features);
}

void virtio_test_feature_sets(struct virtio_test *t, const uint64_t *sets, size_t count,
			      void (*run)(struct virtio_test *t, uint64_t features))
{
	const uint64_t mark = memory_mark();

	for (size_t i = 0; i < count; i++) {
		if ((t->device->offered & sets[i]) != sets[i])
			continue;
		virtio_test_name(t, sets[i]);
		run(t, sets[i]);
		virtio_reset(t->device);
		memory_release(mark);
	}
}

/* A feature bit that the device does not offer, to ask for nevertheless. */
static unsigned int unoffered_bit(const struct virtio_device *device)
{
	unsigned int bit = VIRTIO_FEATURE_BITS - 1;

	while (bit && device->offered & BIT(bit))
		bit--;
	return bit;
}

static void test_negotiation(struct virtio_test *t)
{
	struct virtio_device *device = t->device;

	CHECK(t, device->offered & BIT(VIRTIO_F_VERSION_1), "offers VERSION_1 (6.2)");
	CHECK(t, virtio_negotiate(device, BIT(VIRTIO_F_VERSION_1)),
	      "VERSION_1 alone is accepted with FEATURES_OK (3.1.1)");
	CHECK_EXCEPT_QEMU(t, !virtio_negotiate(device, BIT(VIRTIO_F_VERSION_1)
					       | BIT(unoffered_bit(device))),
			  "drops the bit and keeps FEATURES_OK",
			  "a feature that is not offered is refused with FEATURES_OK clear (2.2.2)");
	CHECK_IS(t, virtio_offered_features(device), device->offered,
		 "offers the same features after a reset (2.2)");
}

void virtio_test_basics(struct virtio_test *t)
{
	const uint64_t mark = memory_mark();
	struct virtio_device *device = t->device;
	struct virtq vq;

	test_negotiation(t);
	virtio_test_negotiate(t, 0);
	virtq_setup_at_most(&vq, device, 0, 1);
	virtio_driver_ok(device);
	CHECK_IS(t, virtio_status(device),
		 VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK
		 | VIRTIO_STATUS_DRIVER_OK, "device status shows the initialized driver (2.1)");
	virtio_reset(device);
	CHECK_IS(t, virtio_status(device), 0, "a reset brings device status 0 (2.4.1)");
	CHECK(t, !virtio_queue_ready(device, 0), "a reset brings QueueReady 0 (4.2.2.1)");
	memory_release(mark);
}

bool virtio_test_fill(struct virtq *vq, const struct virtq_element *element)
{
	unsigned int seen[FILLED_MAX] = { 0 };
	unsigned int *token;
	uint32_t len;

	if (vq->size > ARRAY_SIZE(seen))
		return false;
	for (unsigned int i = 0; i < vq->size; i++)
		if (!virtq_add(vq, element, 1, 0, VIRTQ_DIRECT, &seen[i]))
			return false;
	virtq_kick(vq);
	for (unsigned int i = 0; i < vq->size; i++) {
		if (!virtq_poll_until(vq, virtio_deadline()))
			return false;
		token = virtq_get_used(vq, &len);
		if ((*token)++ || len)
			return false;
	}
	return vq->num_free == vq->size;
}

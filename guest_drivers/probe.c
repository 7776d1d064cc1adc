// SPDX-License-Identifier: MIT
/*
 * Says what virtio devices there are, and reads the first and the last block of each disk.  Writes
 * nothing to a disk: the data on it may be somebody's.
 */
#include "runtime.h"
#include "virtio_blk.h"

#define PROBE_QUEUE_SIZE	16
#define PROBE_QUEUES_MAX	64	/* queue sizes shown */
#define BYTES_SHOWN		16
#define BLOCK_SIZE_MAX		65536	/* a larger blk_size is not believed */

static void show_features(const struct virtio_device *device)
{
	for (unsigned int bit = 0; bit < VIRTIO_FEATURE_BITS; bit++) {
		const char *name = virtio_feature_name(device->device_id, bit);

		if (!(device->offered & BIT(bit)))
			continue;
		if (name)
			tap_note("  feature %u %s", bit, name);
		else
			tap_note("  feature %u, not in virtio 1.4", bit);
	}
}

static void show_queues(const struct virtio_device *device)
{
	uint32_t size;

	for (uint16_t queue = 0; queue < PROBE_QUEUES_MAX; queue++) {
		size = virtio_queue_size_max(device, queue);
		if (!size)
			break;
		tap_note("  queue %u of up to %u entries", queue, size);
	}
}

static void show_bytes(const uint8_t *data)
{
	char text[3 * BYTES_SHOWN + 1];
	size_t length = 0;

	for (unsigned int i = 0; i < BYTES_SHOWN; i++)
		length += snprintf(text + length, sizeof(text) - length, " %02x", data[i]);
	tap_note("  starts with%s", text);
}

/* Sectors are what the protocol counts in, but some devices refuse less than a block (5.2.5). */
static uint32_t block_size(const struct virtio_blk *blk)
{
	uint32_t size;

	if (!virtio_has_feature(blk->device, VIRTIO_BLK_F_BLK_SIZE))
		return SECTOR_SIZE;
	size = BLK_CONFIG(32, blk->device, blk_size);
	tap_note("  blk_size %u", size);
	if (!size || size % SECTOR_SIZE || size > BLOCK_SIZE_MAX
	    || size / SECTOR_SIZE > blk->capacity)
		return SECTOR_SIZE;
	return size;
}

static void read_block(struct virtio_blk *blk, struct blk_request *request, uint64_t sector,
		       const char *which)
{
	blk_prepare(request, VIRTIO_BLK_T_IN, sector, request->capacity);
	if (tap_is(blk_do(blk, request), VIRTIO_BLK_S_OK, "slot %u: reads the %s block, sector %llu",
		   blk->device->slot, which, (unsigned long long)sector))
		show_bytes(request->data);
}

static void probe_disk(struct virtio_device *device)
{
	static struct virtio_blk blk;
	/* Not CONFIG_WCE, not DISCARD: nothing that could change the disk. */
	const uint64_t harmless = BIT(VIRTIO_BLK_F_RO) | BIT(VIRTIO_BLK_F_BLK_SIZE);
	struct blk_request request;

	blk = (struct virtio_blk){ 0 };
	virtio_enable_interrupt(device);
	if (!tap_ok(blk_open(&blk, device, device->offered & harmless, 1, PROBE_QUEUE_SIZE),
		    "slot %u: the block device accepts the driver's features", device->slot))
		return;
	tap_note("  capacity %llu sectors of %u bytes%s", (unsigned long long)blk.capacity,
		 SECTOR_SIZE, virtio_has_feature(device, VIRTIO_BLK_F_RO) ? ", read-only" : "");
	if (!blk.capacity)
		return;
	blk_alloc_request(&request, block_size(&blk));
	read_block(&blk, &request, 0, "first");
	read_block(&blk, &request, blk.capacity - request.capacity / SECTOR_SIZE, "last");
	virtio_reset(device);
}

static void probe(struct virtio_device *device)
{
	tap_note("slot %u: at %p, GSI %u", device->slot, (void *)device->base, device->gsi);
	/* 4.2.2.2: a placeholder is no error. */
	if (device->version == VIRTIO_MMIO_VERSION_2 && device->device_id == VIRTIO_ID_RESERVED) {
		tap_ok(true, "slot %u: empty", device->slot);
		return;
	}
	if (!virtio_is_usable(device)) {
		tap_skip("not virtio-mmio version 2, magic 0x74726976",
			 "slot %u: magic 0x%08x, version %u", device->slot, device->magic,
			 device->version);
		return;
	}
	tap_ok(true, "slot %u: device %u, %s", device->slot, device->device_id,
	       virtio_device_name(device->device_id));
	tap_note("  vendor 0x%08x, version %u", device->vendor_id, device->version);
	show_features(device);
	virtio_reset(device);
	show_queues(device);
	if (device->device_id == VIRTIO_ID_BLOCK)
		probe_disk(device);
}

int main(void)
{
	static struct virtio_device devices[VIRTIO_DEVICES_MAX];
	const unsigned int count = virtio_discover(devices, VIRTIO_DEVICES_MAX);

	for (unsigned int i = 0; i < count; i++)
		probe(&devices[i]);
	if (!count)
		tap_ok(true, "no devices");
	tap_done();
}

// SPDX-License-Identifier: MIT
/*
 * Says what virtio devices there are and what their configuration spaces hold, and reads the first and
 * the last block of each disk.  Writes nothing to a disk: its data may be in use.
 */
#include "runtime.h"
#include "virtio_balloon.h"
#include "virtio_blk.h"
#include "virtio_console.h"
#include "virtio_net.h"

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

/* ----- configuration spaces, as far as the features offered say that they hold something ----- */

static bool offers(const struct virtio_device *device, unsigned int bit)
{
	return device->offered & BIT(bit);
}

static void probe_net(const struct virtio_device *device)
{
	uint8_t mac[MAC_SIZE];

	if (offers(device, VIRTIO_NET_F_MAC)) {
		net_read_mac(device, mac);
		tap_note("  mac %02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4],
			 mac[5]);
	}
	if (offers(device, VIRTIO_NET_F_STATUS))
		tap_note("  link %s", NET_CONFIG(16, device, status) & VIRTIO_NET_S_LINK_UP
				      ? "up" : "down");
	if (offers(device, VIRTIO_NET_F_MQ))
		tap_note("  max_virtqueue_pairs %u", NET_CONFIG(16, device, max_virtqueue_pairs));
	if (offers(device, VIRTIO_NET_F_MTU))
		tap_note("  mtu %u", NET_CONFIG(16, device, mtu));
}

static void probe_console(const struct virtio_device *device)
{
	if (offers(device, VIRTIO_CONSOLE_F_SIZE))
		tap_note("  %u columns, %u rows", CONSOLE_CONFIG(16, device, cols),
			 CONSOLE_CONFIG(16, device, rows));
	if (offers(device, VIRTIO_CONSOLE_F_MULTIPORT))
		tap_note("  up to %u ports", CONSOLE_CONFIG(32, device, max_nr_ports));
}

static void probe_balloon(const struct virtio_device *device)
{
	tap_note("  num_pages %u, actual %u", BALLOON_CONFIG(32, device, num_pages),
		 BALLOON_CONFIG(32, device, actual));
}

static void probe_more(struct virtio_device *device)
{
	switch (device->device_id) {
	case VIRTIO_ID_NETWORK:
		probe_net(device);
		break;
	case VIRTIO_ID_BLOCK:
		probe_disk(device);
		break;
	case VIRTIO_ID_CONSOLE:
		probe_console(device);
		break;
	case VIRTIO_ID_BALLOON:
		probe_balloon(device);
		break;
	default:
		break;
	}
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
	probe_more(device);
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

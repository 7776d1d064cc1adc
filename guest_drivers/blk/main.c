// SPDX-License-Identifier: MIT
/*
 * Exercises every block device found, and overwrites what is on it.  Options:
 *
 *	blk.hold=1	write the final pattern, flush, say so, and spin for ever
 *	blk.requests=N	no tests, but N random 4 KiB reads, by interrupt
 *	blk.depth=D	so many of them at a time; 1
 */
#include "cpu.h"
#include "test.h"

const char *const guest_options[] = {
	"blk.hold", "blk.requests", "blk.depth", "blk.libvhost-user", NULL,
};

static const struct {
	uint64_t features;
	const char *name;
} feature_sets[] = {
	{ 0, "" },
	{ BIT(VIRTIO_F_INDIRECT_DESC), " INDIRECT_DESC" },
	{ BIT(VIRTIO_F_EVENT_IDX), " EVENT_IDX" },
	{ BIT(VIRTIO_F_INDIRECT_DESC) | BIT(VIRTIO_F_EVENT_IDX), " INDIRECT_DESC EVENT_IDX" },
};

/* ----- the tests ----- */

static void name_after(struct blk_test *t, const char *features)
{
	snprintf(t->name, sizeof(t->name), "%s%s", t->disk, features);
}

static void test_feature_set(struct blk_test *t, uint64_t features, const char *name)
{
	const struct virtq *vq = &t->blk.queues[0];

	name_after(t, name);
	if ((t->device->offered & features) != features) {
		SKIP(t, "not offered", "reads back what it wrote");
		return;
	}
	test_open(t, features);
	test_framing(t);
	test_interrupts(t);
	test_full_ring(t);
	test_wrapping(t);
	tap_note("%s: %u kicks, %u suppressed by the device", t->name, vq->kicks,
		 vq->kicks_suppressed);
}

static void test_final_pattern(struct blk_test *t)
{
	test_open(t, t->device->offered & BIT(VIRTIO_BLK_F_FLUSH));
	CHECK(t, write_final_pattern(t) && read_final_pattern(t),
	      "leaves the final pattern in sectors 0 to 63, flushed (5.2.6)");
}

static void test_writing(struct blk_test *t)
{
	for (size_t i = 0; i < ARRAY_SIZE(feature_sets); i++)
		test_feature_set(t, feature_sets[i].features, feature_sets[i].name);
	name_after(t, "");
	test_smallest_queue(t);
	test_largest_queue(t);
	test_multiqueue(t);
	test_cache_modes(t);
	test_discard(t);
	test_write_zeroes(t);
	test_last_sector(t);
}

static bool has_large_blocks(struct blk_test *t)
{
	if (!test_offers(t, VIRTIO_BLK_F_BLK_SIZE))
		return false;
	test_open(t, BIT(VIRTIO_BLK_F_BLK_SIZE));
	return BLK_CONFIG(32, t->device, blk_size) > SECTOR_SIZE;
}

static void test_disk(struct blk_test *t)
{
	bool writes = false;

	name_after(t, "");
	test_transport(t);
	if (virtio_queue_size_max(t->device, 0) < MIN_QUEUE_SIZE) {
		SKIP(t, "the queue is too small", "requests");
		return;
	}
	if (t->qemu && has_large_blocks(t)) {
		SKIP(t, "QEMU refuses less than a block, where the protocol counts in 512 bytes (5.2.5)",
		     "requests");
		return;
	}
	if (test_offers(t, VIRTIO_BLK_F_RO)) {
		SKIP(t, "the device is read-only", "tests that write");
		test_read_only(t);
	} else if (t->blk.capacity < AREA_SECTORS) {
		SKIP(t, "the disk is smaller than 512 sectors", "tests that write");
	} else {
		writes = true;
		test_writing(t);
	}
	test_commands(t);
	test_errors(t);
	if (writes)
		test_final_pattern(t);
	virtio_reset(t->device);
}

/* ----- blk.hold ----- */

static void write_and_flush(struct blk_test *t)
{
	if (!test_offers(t, VIRTIO_BLK_F_FLUSH))
		tap_bail_out("%s does not offer FLUSH", t->disk);
	test_open(t, BIT(VIRTIO_BLK_F_FLUSH));
	if (t->blk.capacity < FINAL_SECTORS || !write_final_pattern(t))
		tap_bail_out("%s: the final pattern could not be written", t->disk);
	tap_note("flushed %u sectors", FINAL_SECTORS);
}

static _Noreturn void spin(void)
{
	for (;;)
		cpu_relax();
}

/* ----- every disk ----- */

static void run(struct virtio_device *device, unsigned int number, bool hold, uint64_t requests)
{
	const bool libvhost_user = cmdline_number("blk.libvhost-user", 0);
	static struct blk_test test;

	test = (struct blk_test){
		.device = device,
		.qemu = device->vendor_id == VIRTIO_VENDOR_QEMU || libvhost_user,
		.libvhost_user = libvhost_user,
	};
	snprintf(test.disk, sizeof(test.disk), "blk%u", number);
	virtio_enable_interrupt(device);
	if (hold)
		write_and_flush(&test);
	else if (requests)
		random_reads(&test, requests);
	else
		test_disk(&test);
}

int main(void)
{
	static struct virtio_device devices[VIRTIO_DEVICES_MAX];
	const unsigned int count = virtio_discover(devices, VIRTIO_DEVICES_MAX);
	const uint64_t requests = cmdline_number("blk.requests", 0);
	const bool hold = cmdline_number("blk.hold", 0);
	unsigned int disks = 0;

	for (unsigned int i = 0; i < count; i++)
		if (virtio_is_usable(&devices[i]) && devices[i].device_id == VIRTIO_ID_BLOCK)
			run(&devices[i], disks++, hold, requests);
	if (!disks)
		tap_bail_out("there is no block device");
	if (hold)
		spin();
	tap_done();
}

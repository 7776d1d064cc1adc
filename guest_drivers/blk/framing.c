// SPDX-License-Identifier: MIT
/* A device must not make assumptions about how a request is cut into descriptors (2.7.4.1). */
#include "test.h"

#define FRAMING_SECTORS	2
#define FRAMING_BYTES	(FRAMING_SECTORS * SECTOR_SIZE)

static const struct blk_framing framings[] = {
	{
		.name = "header with data, data with status",
	}, {
		.name = "header in one-byte pieces",
		.readable_front = { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 },
		.writable_back = 1,
	}, {
		.name = "data split at odd bytes",
		.readable_front = { 7, 9, 1, 513, 3 },
		.writable_front = { 1, 513, 3 },
		.writable_back = 1,
	}, {
		.name = "header's end with data, data's end with status",
		.readable_front = { 15, 3, 600 },
		.writable_front = { 5, 700 },
		.writable_back = 2,
	},
};

static const char *const placement_names[] = {
	[VIRTQ_DIRECT] = "direct",
	[VIRTQ_INDIRECT] = "indirect",
	[VIRTQ_MIXED] = "one direct and the rest indirect",
};

static bool write_then_read(struct blk_test *t, struct blk_request *request,
			    const struct blk_framing *framing, enum virtq_placement placement)
{
	const uint8_t seed = next_seed(t);
	uint8_t status;

	blk_prepare(request, VIRTIO_BLK_T_OUT, SCRATCH_SECTOR, FRAMING_BYTES);
	pattern_fill(request->data, SCRATCH_SECTOR, FRAMING_SECTORS, seed);
	status = blk_do_framed(&t->blk, request, framing, placement);
	/* 2.7.8: what the device wrote; here nothing but the status. */
	if (status != VIRTIO_BLK_S_OK || request->used_len != 1) {
		tap_note("write: status 0x%02x, used len %u", status, request->used_len);
		return false;
	}
	memset(request->data, ~seed, FRAMING_BYTES);
	blk_prepare(request, VIRTIO_BLK_T_IN, SCRATCH_SECTOR, FRAMING_BYTES);
	status = blk_do_framed(&t->blk, request, framing, placement);
	if (status != VIRTIO_BLK_S_OK || request->used_len != FRAMING_BYTES + 1) {
		tap_note("read: status 0x%02x, used len %u", status, request->used_len);
		return false;
	}
	return pattern_matches(request->data, SCRATCH_SECTOR, FRAMING_SECTORS, seed);
}

static void test_one(struct blk_test *t, struct blk_request *request,
		     const struct blk_framing *framing, enum virtq_placement placement)
{
	unsigned int needed;

	blk_prepare(request, VIRTIO_BLK_T_OUT, SCRATCH_SECTOR, FRAMING_BYTES);
	needed = blk_framing_elements(framing, request);
	/* 2.7.5.3.1: no chain longer than the queue size, wherever its descriptors are. */
	if (needed > t->blk.queues[0].size) {
		tap_skip("the queue is too small", "%s: reads back what it wrote, %s, %s (2.7.4.1)",
			 t->name, framing->name, placement_names[placement]);
		return;
	}
	tap_ok(write_then_read(t, request, framing, placement),
	       "%s: reads back what it wrote, %s, %s (2.7.4.1)", t->name, framing->name,
	       placement_names[placement]);
}

static void test_placement(struct blk_test *t, enum virtq_placement placement)
{
	struct blk_request request;

	blk_alloc_request(&request, FRAMING_BYTES);
	test_one(t, &request, &blk_plain_framing, placement);
	for (size_t i = 0; i < ARRAY_SIZE(framings); i++)
		test_one(t, &request, &framings[i], placement);
}

/* A device that cannot do it may ask for a reset; then start it again as it was. */
static void try_mixed_chain(struct blk_test *t)
{
	const uint64_t features = t->device->negotiated;
	struct blk_request request;

	if (t->libvhost_user) {
		SKIP(t, "libvhost-user gives the device up at one, for good",
		     "takes a direct descriptor followed by an indirect one (2.7.5.3.2)");
		return;
	}
	blk_alloc_request(&request, SECTOR_SIZE);
	blk_prepare(&request, VIRTIO_BLK_T_IN, SCRATCH_SECTOR, SECTOR_SIZE);
	t->mixed_chains = blk_do_framed(&t->blk, &request, &blk_plain_framing, VIRTQ_MIXED)
			  == VIRTIO_BLK_S_OK;
	CHECK_EXCEPT_QEMU(t, t->mixed_chains, "looks for a table in the first descriptor only",
			  "takes a direct descriptor followed by an indirect one (2.7.5.3.2)");
	if (t->device->needs_reset)
		test_open(t, features);
}

static void test_write_flag(struct blk_test *t)
{
	struct virtq *vq = &t->blk.queues[0];
	struct blk_request request;
	uint16_t head;

	blk_alloc_request(&request, SECTOR_SIZE);
	blk_prepare(&request, VIRTIO_BLK_T_IN, SCRATCH_SECTOR, SECTOR_SIZE);
	if (!blk_submit_framed(vq, &request, &blk_plain_framing, VIRTQ_INDIRECT))
		tap_bail_out("%s: no room for a request in an idle queue", t->name);
	head = vq->avail->ring[(uint16_t)(vq->next_avail - 1) & (vq->size - 1)];
	vq->desc[head].flags |= VIRTQ_DESC_F_WRITE;
	virtq_kick(vq);
	CHECK(t, wait_all(vq, &request, 1) && blk_status(&request) == VIRTIO_BLK_S_OK,
	      "the write-only flag beside INDIRECT is ignored (2.7.5.3.2)");
}

void test_framing(struct blk_test *t)
{
	test_placement(t, VIRTQ_DIRECT);
	if (!virtio_has_feature(t->device, VIRTIO_F_INDIRECT_DESC))
		return;
	test_placement(t, VIRTQ_INDIRECT);
	test_write_flag(t);
	try_mixed_chain(t);
	if (t->mixed_chains)
		test_placement(t, VIRTQ_MIXED);
}

// SPDX-License-Identifier: MIT
/* Rings: full, wrapping, of the largest size, and several of them. */
#include "test.h"

#define WRAP_BATCH	4
#define WRAPS		3
#define RING_SECTORS	8	/* written once, and then read by the requests of a ring */
/* The specification allows 32768; to fill that would take seconds where ring 0 is interpreted. */
#define LARGEST_QUEUE_SIZE	1024

static struct blk_request *alloc_requests(unsigned int count)
{
	struct blk_request *requests = memory_alloc(count * sizeof(*requests), sizeof(uint64_t));

	for (unsigned int i = 0; i < count; i++)
		blk_alloc_request(&requests[i], SECTOR_SIZE);
	return requests;
}

static uint64_t ring_sector(unsigned int i)
{
	return RING_SECTOR + i % RING_SECTORS;
}

/* Fill the queue with reads; returns how many went in. */
static unsigned int submit_until_full(struct virtq *vq, struct blk_request *requests,
				      unsigned int max, enum virtq_placement placement)
{
	for (unsigned int i = 0; i < max; i++) {
		blk_prepare(&requests[i], VIRTIO_BLK_T_IN, ring_sector(i), SECTOR_SIZE);
		if (!blk_submit_framed(vq, &requests[i], &blk_plain_framing, placement))
			return i;
	}
	return max;
}

static bool completed_once(const struct blk_request *requests, unsigned int count, uint8_t seed)
{
	for (unsigned int i = 0; i < count; i++) {
		const struct blk_request *request = &requests[i];
		const uint64_t first = ring_sector(i) << 32 | seed;

		if (request->completions == 1 && blk_status(request) == VIRTIO_BLK_S_OK
		    && request->used_len == SECTOR_SIZE + 1
		    && *(const uint64_t *)request->data == first)
			continue;
		tap_note("request %u of %u: %u completions, status 0x%02x, used len %u", i, count,
			 request->completions, blk_status(request), request->used_len);
		return false;
	}
	return true;
}

/* All in flight with one kick; true when each came back once and right. */
static bool fill_ring(struct virtq *vq, enum virtq_placement placement, uint8_t seed)
{
	const unsigned int each = placement == VIRTQ_DIRECT ? 3 : 1;
	const unsigned int max = vq->size / each;
	struct blk_request *requests = alloc_requests(max + 1);
	const unsigned int count = submit_until_full(vq, requests, max + 1, placement);

	if (count != max)
		tap_note("the ring was full with %u of %u requests", count, max);
	virtq_kick(vq);
	return count == max && wait_all(vq, requests, count) && completed_once(requests, count, seed)
	       && vq->num_free == vq->size;
}

void test_full_ring(struct blk_test *t)
{
	struct virtq *vq = &t->blk.queues[0];
	const uint64_t mark = memory_mark();
	const uint8_t seed = next_seed(t);

	if (!write_pattern(t, RING_SECTOR, RING_SECTORS, seed)) {
		CHECK(t, false, "writes the sectors that the rings read (5.2.6)");
		return;
	}
	CHECK(t, fill_ring(vq, VIRTQ_DIRECT, seed),
	      "a full ring of direct chains comes back, each once (2.7.14)");
	if (virtio_has_feature(t->device, VIRTIO_F_INDIRECT_DESC))
		CHECK(t, fill_ring(vq, VIRTQ_INDIRECT, seed),
		      "a full ring of indirect chains comes back, each once (2.7.14)");
	memory_release(mark);
}

static bool wrap_rings(struct blk_test *t)
{
	struct virtq *vq = &t->blk.queues[0];
	const uint64_t mark = memory_mark();
	const uint16_t start = vq->last_used;
	const uint8_t seed = next_seed(t);
	struct blk_request *requests = alloc_requests(WRAP_BATCH);
	bool good = write_pattern(t, RING_SECTOR, RING_SECTORS, seed);
	unsigned int count;

	while (good && (uint16_t)(vq->last_used - start) <= WRAPS * vq->size) {
		count = submit_until_full(vq, requests, WRAP_BATCH, t->blk.placement);
		virtq_kick(vq);
		good = wait_all(vq, requests, count) && completed_once(requests, count, seed);
	}
	memory_release(mark);
	return good;
}

void test_wrapping(struct blk_test *t)
{
	CHECK(t, wrap_rings(t), "three times the queue size of requests wrap the rings (2.7.13.2)");
}

void test_smallest_queue(struct blk_test *t)
{
	test_open_queues(t, 0, 1, MIN_QUEUE_SIZE);
	tap_ok(wrap_rings(t), "%s: a queue of %u works, and wraps (4.2.3.2)", t->name,
	       t->blk.queues[0].size);
}

/* Direct, so that every descriptor of the table is used. */
void test_largest_queue(struct blk_test *t)
{
	const uint8_t seed = next_seed(t);

	test_open_queues(t, 0, 1, LARGEST_QUEUE_SIZE);
	tap_ok(write_pattern(t, RING_SECTOR, RING_SECTORS, seed)
	       && fill_ring(&t->blk.queues[0], VIRTQ_DIRECT, seed),
	       "%s: a full ring of the largest size, %u, comes back (4.2.3.2)", t->name,
	       t->blk.queues[0].size);
}

/* One request on each queue, all in flight at once. */
static bool use_queues(struct blk_test *t, unsigned int count, uint8_t seed)
{
	struct blk_request *requests = alloc_requests(count);

	for (unsigned int i = 0; i < count; i++) {
		blk_prepare(&requests[i], VIRTIO_BLK_T_IN, ring_sector(i), SECTOR_SIZE);
		if (!blk_submit(&t->blk, i, &requests[i]))
			return false;
		virtq_kick(&t->blk.queues[i]);
	}
	for (unsigned int i = 0; i < count; i++)
		if (!wait_all(&t->blk.queues[i], &requests[i], 1))
			return false;
	return completed_once(requests, count, seed);
}

void test_multiqueue(struct blk_test *t)
{
	const uint8_t seed = next_seed(t);
	unsigned int num_queues, used;

	if (!test_offers(t, VIRTIO_BLK_F_MQ)) {
		SKIP(t, "MQ is not offered", "every queue works (5.2.2)");
		return;
	}
	test_open(t, BIT(VIRTIO_BLK_F_MQ));
	num_queues = BLK_CONFIG(16, t->device, num_queues);
	CHECK(t, num_queues >= 1, "num_queues is at least 1 (5.2.4)");
	CHECK_IS(t, virtio_queue_size_max(t->device, (uint16_t)num_queues), 0,
		 "there is no queue behind the last one (4.2.2)");
	used = MIN(num_queues, BLK_QUEUES_MAX);
	test_open_queues(t, BIT(VIRTIO_BLK_F_MQ), used, TEST_QUEUE_SIZE);
	tap_ok(write_pattern(t, RING_SECTOR, RING_SECTORS, seed) && use_queues(t, used, seed),
	       "%s: every queue works, %u of %u tried (5.2.2)", t->name, used, num_queues);
}

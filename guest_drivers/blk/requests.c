// SPDX-License-Identifier: MIT
/* blk.requests: random 4 KiB reads, blk.depth at a time, one kick and one interrupt a batch. */
#include "blk/test.h"
#include "workload.h"

#define READ_SECTORS	8
#define READ_SIZE	(READ_SECTORS * SECTOR_SIZE)

struct reads {
	struct virtio_blk *blk;
	struct blk_request *requests;	/* one for each in flight */
	uint64_t random;
	uint64_t spots;			/* on the disk */
};

/* Marsaglia's xorshift: three shifts, and no state but the number. */
static uint64_t next_random(uint64_t x)
{
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

static bool submit_read(void *context, unsigned int slot)
{
	struct reads *reads = context;
	struct blk_request *request = &reads->requests[slot];

	reads->random = next_random(reads->random);
	blk_prepare(request, VIRTIO_BLK_T_IN, reads->random % reads->spots * READ_SECTORS, READ_SIZE);
	return blk_submit(reads->blk, 0, request);
}

static bool check_read(void *context, void *token, uint32_t len)
{
	(void)context;
	return len == READ_SIZE + 1 && blk_status(token) == VIRTIO_BLK_S_OK;
}

void random_reads(struct blk_test *t, uint64_t count)
{
	struct reads reads = { .blk = &t->blk, .random = 1 };
	struct workload workload = {
		.requests = count,
		.depth = workload_depth("blk.depth", WORKLOAD_DEPTH_MAX),
		.context = &reads,
		.submit = submit_read,
		.check = check_read,
	};

	test_open_queues(t, t->device->offered & (BIT(VIRTIO_F_INDIRECT_DESC) | BIT(VIRTIO_F_EVENT_IDX)
						  | BIT(VIRTIO_BLK_F_RO)),
			 1, WORKLOAD_DEPTH_MAX);
	workload.vq = &t->blk.queues[0];
	reads.spots = t->blk.capacity / READ_SECTORS;
	if (!reads.spots)
		tap_bail_out("%s is smaller than one read", t->disk);
	reads.requests = memory_alloc(workload.depth * sizeof(*reads.requests), sizeof(uint64_t));
	for (uint32_t i = 0; i < workload.depth; i++)
		blk_alloc_request(&reads.requests[i], READ_SIZE);
	tap_is(workload_run(&workload), count, "%s: %llu random reads of 4 KiB, %u at a time", t->disk,
	       (unsigned long long)count, workload.depth);
}

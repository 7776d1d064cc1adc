// SPDX-License-Identifier: MIT
/* Used buffer notifications: sent when wanted, suppressed when not (2.7.7). */
#include "cpu.h"
#include "test.h"

#define BATCH		4
/*
 * An interrupt of an earlier request may be late, so a test of how many there are gets more than
 * one chance.  A device that does not suppress fails each of them.
 */
#define ATTEMPTS	3
/* The time for a late interrupt to arrive, in exits and, where a read makes none, in turns. */
#define SETTLE_READS	40
#define SETTLE_TURNS	500

static void settle(const struct virtio_device *device)
{
	for (unsigned int i = 0; i < SETTLE_READS; i++)
		virtio_status(device);
	for (unsigned int i = 0; i < SETTLE_TURNS; i++)
		cpu_relax();
}

static void submit_read(struct blk_test *t, struct blk_request *request)
{
	blk_prepare(request, VIRTIO_BLK_T_IN, SCRATCH_SECTOR, SECTOR_SIZE);
	if (!blk_submit(&t->blk, 0, request))
		tap_bail_out("%s: no room for a request in an idle queue", t->name);
}

static void test_arrival(struct blk_test *t, struct blk_request *request)
{
	const uint32_t seen = t->device->used_interrupts;
	struct virtq *vq = &t->blk.queues[0];

	virtq_enable_interrupts(vq);
	submit_read(t, request);
	virtq_kick(vq);
	CHECK(t, virtio_wait_interrupt(t->device, seen) && wait_all(vq, request, 1),
	      "an interrupt tells of the used buffer (2.7.7.2)");
}

static bool stays_quiet(struct blk_test *t, struct blk_request *request)
{
	struct virtq *vq = &t->blk.queues[0];
	uint32_t seen;

	virtq_disable_interrupts(vq);
	settle(t->device);
	seen = t->device->used_interrupts;
	submit_read(t, request);
	virtq_kick(vq);
	if (!virtq_poll(vq))
		return false;
	blk_reap(vq);
	settle(t->device);
	return t->device->used_interrupts == seen;
}

static void test_suppression(struct blk_test *t, struct blk_request *request)
{
	bool quiet = false;

	for (unsigned int i = 0; i < ATTEMPTS && !quiet; i++)
		quiet = stays_quiet(t, request);
	virtq_enable_interrupts(&t->blk.queues[0]);
	if (t->blk.queues[0].event_idx)
		CHECK(t, quiet, "no interrupt while used_event is far away (2.7.7.2)");
	else
		CHECK(t, quiet, "no interrupt while flags has NO_INTERRUPT (2.7.7.2)");
}

/* One interrupt, when the whole batch is used. */
static bool interrupts_once(struct blk_test *t, struct blk_request *requests)
{
	struct virtq *vq = &t->blk.queues[0];
	uint32_t seen;
	uint16_t used;

	settle(t->device);
	seen = t->device->used_interrupts;
	virtq_interrupt_after(vq, BATCH);
	for (unsigned int i = 0; i < BATCH; i++)
		submit_read(t, &requests[i]);
	virtq_kick(vq);
	if (!virtio_wait_interrupt(t->device, seen))
		return false;
	used = (uint16_t)(READ_ONCE(vq->used->idx) - vq->last_used);
	settle(t->device);
	if (!wait_all(vq, requests, BATCH))
		return false;
	if (used == BATCH && t->device->used_interrupts == seen + 1)
		return true;
	tap_note("%u interrupts, the first with %u of %u buffers used",
		 t->device->used_interrupts - seen, used, BATCH);
	return false;
}

static void test_event(struct blk_test *t, struct blk_request *requests)
{
	bool once = false;

	if (t->blk.placement == VIRTQ_DIRECT
	    && t->blk.queues[0].size < BATCH * blk_framing_elements(&blk_plain_framing, requests)) {
		SKIP(t, "the queue is too small", "one interrupt at used_event (2.7.7.2)");
		return;
	}
	for (unsigned int i = 0; i < ATTEMPTS && !once; i++)
		once = interrupts_once(t, requests);
	CHECK(t, once, "one interrupt for a batch of buffers, at used_event (2.7.7.2)");
}

void test_interrupts(struct blk_test *t)
{
	struct blk_request requests[BATCH];

	for (unsigned int i = 0; i < BATCH; i++)
		blk_alloc_request(&requests[i], SECTOR_SIZE);
	test_arrival(t, requests);
	test_suppression(t, requests);
	if (t->blk.queues[0].event_idx)
		test_event(t, requests);
}

// SPDX-License-Identifier: MIT
/*
 * balloon.mode=follow: does what the host asks for in num_pages, and answers its requests for
 * statistics, until num_pages was something and is 0 again.
 */
#include "balloon/test.h"

#define DEFAULT_PAGES	4096

static struct virtio_balloon balloon;
static uint32_t page_count;
static uint8_t *pages;		/* those below balloon.actual are in the balloon */
static uint32_t config_seen;

static bool is_awake(const void *context)
{
	const struct virtio_device *device = context;

	return device->config_interrupts != config_seen
	       || (virtio_has_feature(device, VIRTIO_BALLOON_F_STATS_VQ)
		   && virtq_has_used(&balloon.stats));
}

/* True when something was to do. */
static bool follow(struct virtio_test *t, uint32_t target)
{
	const uint32_t actual = balloon.actual;
	bool good = true;

	target = MIN(target, page_count);
	if (target == actual)
		return false;
	if (target > actual) {
		good = balloon_inflate(&balloon, pages + (uint64_t)actual * PAGE_SIZE, target - actual);
	} else {
		uint8_t *first = pages + (uint64_t)target * PAGE_SIZE;

		good = balloon_deflate(&balloon, first, actual - target);
		if (good && !pages_usable(first, actual - target))
			CHECK(t, false, "what the balloon gave back can be used (5.5.6)");
	}
	if (!good)
		tap_bail_out("%s: the device did not take a request", t->name);
	tap_note("actual %u", balloon.actual);
	return true;
}

static void sleep(struct virtio_test *t)
{
	if (virtio_has_feature(t->device, VIRTIO_BALLOON_F_STATS_VQ))
		virtq_enable_interrupts(&balloon.stats);
	virtio_sleep(t->device, is_awake, t->device);
	if (t->device->needs_reset)
		tap_bail_out("%s: the device needs a reset", t->name);
}

void run_follow(struct virtio_test *t)
{
	const uint64_t features = t->device->offered
				  & (BIT(VIRTIO_BALLOON_F_STATS_VQ) | BIT(VIRTIO_F_EVENT_IDX));
	bool was_asked = false;
	uint64_t total, free;
	uint32_t target;

	page_count = pages_option(DEFAULT_PAGES);
	total = (uint64_t)page_count * PAGE_SIZE;
	balloon_open(&balloon, t->device, features);
	pages = pages_alloc(page_count);
	pages_mark(pages, page_count);
	balloon_write_actual(&balloon, 0);
	tap_note("ready");
	for (;;) {
		/* Before the look: a change after it raises another interrupt. */
		config_seen = t->device->config_interrupts;
		target = BALLOON_CONFIG(32, t->device, num_pages);
		was_asked |= target != 0;
		free = total - (uint64_t)balloon.actual * PAGE_SIZE;
		balloon_answer_stats(&balloon, free, total);
		if (follow(t, target))
			continue;
		if (was_asked && !target)
			break;
		sleep(t);
	}
	tap_note("stats answered %u", balloon.stats_answered);
	CHECK(t, pages_marked(pages, page_count), "the balloon followed the host, there and back");
	virtio_reset(t->device);
	tap_done();
}

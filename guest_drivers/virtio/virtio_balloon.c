// SPDX-License-Identifier: MIT
/* The driver of a traditional memory balloon device (5.5). */
#include "cpu.h"
#include "runtime.h"
#include "virtio_balloon.h"

#define QUEUE_SIZE	16
#define PIECES_MAX	8

/* 5.5.2 */
#define INFLATEQ	0
#define DEFLATEQ	1
#define STATSQ		2
#define FREE_PAGE_VQ	3
#define REPORTING_VQ	4

/* ----- initialization (5.5.5) ----- */

/*
 * QEMU and Linux count only the queues that there are: without FREE_PAGE_HINT, reporting_vq is queue 3
 * there.
 */
static uint16_t reporting_queue(const struct virtio_device *device)
{
	return virtio_queue_size_max(device, REPORTING_VQ) ? REPORTING_VQ : FREE_PAGE_VQ;
}

static void supply_stats(struct virtio_balloon *balloon, uint64_t free, uint64_t total)
{
	const struct virtq_element element = { balloon->stats_buffer, sizeof(balloon->stats_buffer) };
	/* In no order, and one that no device knows (5.5.6.3.2). */
	const struct virtio_balloon_stat stats[BALLOON_STATS] = {
		{ VIRTIO_BALLOON_S_MEMTOT, total },
		{ VIRTIO_BALLOON_S_SWAP_IN, 0 },
		{ UINT16_MAX, UINT64_MAX },
		{ VIRTIO_BALLOON_S_MEMFREE, free },
		{ VIRTIO_BALLOON_S_MINFLT, balloon->stats_answered },
		{ VIRTIO_BALLOON_S_AVAIL, free },
	};

	memcpy(balloon->stats_buffer, stats, sizeof(stats));
	virtq_add(&balloon->stats, &element, 1, 0, VIRTQ_DIRECT, balloon->stats_buffer);
	virtq_kick(&balloon->stats);
}

void balloon_open(struct virtio_balloon *balloon, struct virtio_device *device, uint64_t features)
{
	features |= device->offered & BIT(VIRTIO_BALLOON_F_MUST_TELL_HOST);
	if (!balloon->memory)
		balloon->memory = memory_mark();
	balloon->device = device;
	if (!virtio_negotiate(device, features | BIT(VIRTIO_F_VERSION_1)))
		tap_bail_out("slot %u refuses features 0x%llx, all of which it offers (2.2.2)",
			     device->slot, (unsigned long long)features);
	memory_release(balloon->memory);
	balloon->actual = 0;
	balloon->stats_answered = 0;
	virtq_setup_at_most(&balloon->inflate, device, INFLATEQ, QUEUE_SIZE);
	virtq_setup_at_most(&balloon->deflate, device, DEFLATEQ, QUEUE_SIZE);
	if (virtio_has_feature(device, VIRTIO_BALLOON_F_STATS_VQ))
		virtq_setup_at_most(&balloon->stats, device, STATSQ, QUEUE_SIZE);
	if (virtio_has_feature(device, VIRTIO_BALLOON_F_PAGE_REPORTING))
		virtq_setup_at_most(&balloon->reporting, device, reporting_queue(device), QUEUE_SIZE);
	virtio_driver_ok(device);
	if (virtio_has_feature(device, VIRTIO_BALLOON_F_STATS_VQ))
		supply_stats(balloon, 0, 0);
}

/* ----- inflating and deflating (5.5.6) ----- */

bool balloon_request_raw(struct virtq *vq, void *pfns, uint32_t size, const uint16_t *pieces,
			 bool readable)
{
	struct virtq_element elements[PIECES_MAX + 1];
	const unsigned int count = virtq_cut(elements, pfns, size, pieces);
	uint32_t len;

	if (!virtq_add(vq, elements, readable ? count : 0, readable ? 0 : count, VIRTQ_DIRECT, pfns))
		tap_bail_out("no room for a request in an idle queue of %u", vq->size);
	virtq_kick(vq);
	return virtq_poll_until(vq, virtio_deadline()) && virtq_get_used(vq, &len) == pfns && !len;
}

bool balloon_request(struct virtq *vq, struct virtio_balloon *balloon, unsigned int count)
{
	const struct virtq_element element = {
		balloon->pfns, count * (uint32_t)sizeof(balloon->pfns[0]),
	};
	uint32_t len;

	if (!virtq_add(vq, &element, 1, 0, VIRTQ_DIRECT, balloon))
		tap_bail_out("no room for a request in an idle queue of %u", vq->size);
	virtq_kick(vq);
	return virtq_sleep(vq) && virtq_get_used(vq, &len) == balloon && !len;
}

static bool request_pages(struct virtq *vq, struct virtio_balloon *balloon, void *first,
			  uint32_t pages)
{
	uint32_t pfn = (uint32_t)((uint64_t)first / BALLOON_PAGE_SIZE);

	while (pages) {
		const uint32_t count = MIN(pages, BALLOON_PFNS_MAX);

		for (uint32_t i = 0; i < count; i++)
			balloon->pfns[i] = pfn++;
		if (!balloon_request(vq, balloon, count))
			return false;
		pages -= count;
	}
	return true;
}

void balloon_write_actual(struct virtio_balloon *balloon, uint32_t pages)
{
	balloon->actual = pages;
	virtio_config_write32(balloon->device, offsetof(struct virtio_balloon_config, actual), pages);
}

bool balloon_inflate(struct virtio_balloon *balloon, void *first, uint32_t pages)
{
	if (!request_pages(&balloon->inflate, balloon, first, pages))
		return false;
	balloon_write_actual(balloon, balloon->actual + pages);
	return true;
}

bool balloon_deflate(struct virtio_balloon *balloon, void *first, uint32_t pages)
{
	if (!request_pages(&balloon->deflate, balloon, first, pages))
		return false;
	balloon_write_actual(balloon, balloon->actual - pages);
	return true;
}

/* ----- 5.5.6.3, 5.5.6.7 ----- */

void balloon_answer_stats(struct virtio_balloon *balloon, uint64_t free, uint64_t total)
{
	uint32_t len;

	if (!virtio_has_feature(balloon->device, VIRTIO_BALLOON_F_STATS_VQ))
		return;
	while (virtq_get_used(&balloon->stats, &len)) {
		balloon->stats_answered++;
		supply_stats(balloon, free, total);
	}
}

bool balloon_report(struct virtio_balloon *balloon, const struct virtq_element *ranges,
		    unsigned int count, enum virtq_placement placement)
{
	struct virtq *vq = &balloon->reporting;
	uint32_t len;

	if (!virtq_add(vq, ranges, 0, count, placement, balloon))
		tap_bail_out("no room for a report in an idle queue of %u", vq->size);
	virtq_kick(vq);
	return virtq_poll_until(vq, virtio_deadline()) && virtq_get_used(vq, &len) == balloon;
}

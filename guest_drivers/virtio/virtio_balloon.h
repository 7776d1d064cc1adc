/* SPDX-License-Identifier: MIT */
/* The driver of a traditional memory balloon device (5.5). */
#ifndef VIRTIO_BALLOON_H
#define VIRTIO_BALLOON_H

#include "virtio.h"

/* ----- 5.5.3: feature bits ----- */

#define VIRTIO_BALLOON_F_MUST_TELL_HOST	0
#define VIRTIO_BALLOON_F_STATS_VQ	1
#define VIRTIO_BALLOON_F_DEFLATE_ON_OOM	2
#define VIRTIO_BALLOON_F_FREE_PAGE_HINT	3
#define VIRTIO_BALLOON_F_PAGE_POISON	4
#define VIRTIO_BALLOON_F_PAGE_REPORTING	5

/* ----- 5.5.4: device configuration layout ----- */

struct virtio_balloon_config {
	uint32_t num_pages;
	uint32_t actual;
	uint32_t free_page_hint_cmd_id;
	uint32_t poison_val;
};

/* Read a field with an access of its width: BALLOON_CONFIG(32, device, num_pages). */
#define BALLOON_CONFIG(bits, device, field)	\
	virtio_config_read##bits(device, offsetof(struct virtio_balloon_config, field))

/* ----- 5.5.6.3: memory statistics ----- */

#define VIRTIO_BALLOON_S_SWAP_IN	0
#define VIRTIO_BALLOON_S_SWAP_OUT	1
#define VIRTIO_BALLOON_S_MAJFLT		2
#define VIRTIO_BALLOON_S_MINFLT		3
#define VIRTIO_BALLOON_S_MEMFREE	4
#define VIRTIO_BALLOON_S_MEMTOT		5
#define VIRTIO_BALLOON_S_AVAIL		6

struct __attribute__((packed)) virtio_balloon_stat {
	uint16_t tag;
	uint64_t val;
};

/*
 * The text wants a size which is a multiple of 6 bytes (5.5.6.3.1), and an entry has 10: with six of
 * them both are right.
 */
#define BALLOON_STATS	6

/* ----- 5.5.6: device operation ----- */

#define BALLOON_PAGE_SIZE	4096	/* whatever the guest's is (5.5.6) */
#define BALLOON_PFNS_MAX	1024	/* in one request */

struct virtio_balloon {
	struct virtio_device *device;
	struct virtq inflate;
	struct virtq deflate;
	struct virtq stats;
	struct virtq reporting;
	uint64_t memory;
	uint32_t actual;
	uint32_t pfns[BALLOON_PFNS_MAX];
	struct virtio_balloon_stat stats_buffer[BALLOON_STATS];
	unsigned int stats_answered;
};

/*
 * Reset the device and bring it up with these features and, if offered, MUST_TELL_HOST.  Bails out
 * when it refuses.  With STATS_VQ the first buffer is in the statsq.
 */
void balloon_open(struct virtio_balloon *balloon, struct virtio_device *device, uint64_t features);

/* What no part of the driver looks into: an array of any length, readable or not. */
bool balloon_request_raw(struct virtq *vq, void *pfns, uint32_t size, const uint16_t *pieces,
			 bool readable);
/* `count` of balloon->pfns, in one request; false when the device breaks. */
bool balloon_request(struct virtq *vq, struct virtio_balloon *balloon, unsigned int count);
/* Pages that follow one another, in as many requests as it takes; `actual` is updated at the end. */
bool balloon_inflate(struct virtio_balloon *balloon, void *first, uint32_t pages);
bool balloon_deflate(struct virtio_balloon *balloon, void *first, uint32_t pages);
void balloon_write_actual(struct virtio_balloon *balloon, uint32_t pages);

/* Answer what requests for statistics there are. */
void balloon_answer_stats(struct virtio_balloon *balloon, uint64_t free, uint64_t total);

/* 5.5.6.7: report free memory, and wait for the device to be done with it. */
bool balloon_report(struct virtio_balloon *balloon, const struct virtq_element *ranges,
		    unsigned int count, enum virtq_placement placement);

#endif

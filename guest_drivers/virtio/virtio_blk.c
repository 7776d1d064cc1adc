// SPDX-License-Identifier: MIT
/* The driver of a block device (5.2). */
#include "cpu.h"
#include "runtime.h"
#include "virtio_blk.h"

#define HEADER_SIZE	sizeof(struct virtio_blk_header)
#define STATUS_SIZE	1
#define REQUEST_ALIGN	16

const struct blk_framing blk_plain_framing = {
	.name = "one descriptor a part",
	.readable_front = { HEADER_SIZE },
	.writable_back = STATUS_SIZE,
};

/* ----- initialization (5.2.5) ----- */

bool blk_open(struct virtio_blk *blk, struct virtio_device *device, uint64_t features,
	      unsigned int queue_count, uint32_t queue_size)
{
	if (!blk->memory)
		blk->memory = memory_mark();
	blk->device = device;
	if (!virtio_negotiate(device, features | BIT(VIRTIO_F_VERSION_1))) {
		virtio_fail(device);
		return false;
	}
	/* Only after the reset: until then the device may still write to the old queues. */
	memory_release(blk->memory);
	blk->capacity = BLK_CONFIG(64, device, capacity);
	blk->queue_count = queue_count;
	blk->placement = virtio_has_feature(device, VIRTIO_F_INDIRECT_DESC)
			 ? VIRTQ_INDIRECT : VIRTQ_DIRECT;
	for (unsigned int i = 0; i < queue_count; i++)
		virtq_setup_at_most(&blk->queues[i], device, (uint16_t)i, queue_size);
	virtio_driver_ok(device);
	return true;
}

/* ----- requests (5.2.6) ----- */

void blk_alloc_request(struct blk_request *request, uint32_t capacity)
{
	*request = (struct blk_request){
		.header = memory_alloc(HEADER_SIZE + capacity + STATUS_SIZE, REQUEST_ALIGN),
		.capacity = capacity,
	};
	request->data = (uint8_t *)(request->header + 1);
}

static bool device_reads_data(uint32_t type)
{
	switch (type) {
	case VIRTIO_BLK_T_OUT:
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
	case VIRTIO_BLK_T_SECURE_ERASE:
		return true;
	default:
		return false;
	}
}

void blk_prepare(struct blk_request *request, uint32_t type, uint64_t sector, uint32_t data_len)
{
	if (data_len > request->capacity)
		tap_bail_out("a request of %u bytes in a buffer of %u", data_len, request->capacity);
	*request->header = (struct virtio_blk_header){ .type = type, .sector = sector };
	request->data_len = data_len;
	request->data_readable = device_reads_data(type);
	request->data[data_len] = BLK_STATUS_NONE;
	request->done = false;
	request->used_len = 0;
	request->completions = 0;
}

uint8_t blk_status(const struct blk_request *request)
{
	return READ_ONCE(request->data[request->data_len]);
}

/* ----- framing (2.7.4) ----- */

struct cutter {
	struct virtq_element *elements;
	unsigned int count;
	uint8_t *position;
};

static void cut(struct cutter *cutter, uint32_t len)
{
	if (!len)
		return;
	cutter->elements[cutter->count++] = (struct virtq_element){ cutter->position, len };
	cutter->position += len;
}

/* Returns how many elements the part became. */
static unsigned int cut_part(struct cutter *cutter, uint32_t len, const uint16_t *front,
			     uint32_t back)
{
	const unsigned int before = cutter->count;

	back = MIN(back, len);
	len -= back;
	for (unsigned int i = 0; i < BLK_FRAMING_CUTS && front[i]; i++) {
		uint32_t piece = MIN(front[i], len);

		cut(cutter, piece);
		len -= piece;
	}
	cut(cutter, len);
	cut(cutter, back);
	return cutter->count - before;
}

static void frame(const struct blk_request *request, const struct blk_framing *framing,
		  struct virtq_element *elements, unsigned int *readable, unsigned int *writable)
{
	const uint32_t read_data = request->data_readable ? request->data_len : 0;
	const uint32_t write_data = request->data_len - read_data;
	struct cutter cutter = { elements, 0, (uint8_t *)request->header };

	*readable = cut_part(&cutter, HEADER_SIZE + read_data, framing->readable_front, 0);
	*writable = cut_part(&cutter, write_data + STATUS_SIZE, framing->writable_front,
			     framing->writable_back);
}

#define ELEMENTS_MAX	(2 * BLK_FRAMING_CUTS + 3)

unsigned int blk_framing_elements(const struct blk_framing *framing,
				  const struct blk_request *request)
{
	struct virtq_element elements[ELEMENTS_MAX];
	unsigned int readable, writable;

	frame(request, framing, elements, &readable, &writable);
	return readable + writable;
}

/* ----- submission and completion ----- */

bool blk_submit_framed(struct virtq *vq, struct blk_request *request,
		       const struct blk_framing *framing, enum virtq_placement placement)
{
	struct virtq_element elements[ELEMENTS_MAX];
	unsigned int readable, writable;

	frame(request, framing, elements, &readable, &writable);
	return virtq_add(vq, elements, readable, writable, placement, request);
}

bool blk_submit(struct virtio_blk *blk, unsigned int queue, struct blk_request *request)
{
	return blk_submit_framed(&blk->queues[queue], request, &blk_plain_framing, blk->placement);
}

unsigned int blk_reap(struct virtq *vq)
{
	struct blk_request *request;
	unsigned int count = 0;
	uint32_t len;

	while ((request = virtq_get_used(vq, &len))) {
		request->used_len = len;
		request->done = true;
		request->completions++;
		count++;
	}
	return count;
}

uint8_t blk_do_framed(struct virtio_blk *blk, struct blk_request *request,
		      const struct blk_framing *framing, enum virtq_placement placement)
{
	struct virtq *vq = &blk->queues[0];

	if (!blk_submit_framed(vq, request, framing, placement))
		tap_bail_out("no room for a request in an idle queue of %u", vq->size);
	virtq_kick(vq);
	while (!request->done) {
		if (!virtq_sleep(vq))
			return BLK_STATUS_NONE;
		blk_reap(vq);
	}
	return blk_status(request);
}

uint8_t blk_do(struct virtio_blk *blk, struct blk_request *request)
{
	return blk_do_framed(blk, request, &blk_plain_framing, blk->placement);
}

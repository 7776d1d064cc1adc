// SPDX-License-Identifier: MIT
/* The driver side of a split virtqueue (2.7). */
#include <stdatomic.h>

#include "cpu.h"
#include "runtime.h"
#include "virtio.h"

/* 2.7: the alignment of the three parts. */
#define DESC_ALIGN	16
#define AVAIL_ALIGN	2
#define USED_ALIGN	4

/* Free descriptors are chained by `next`, as the specification suggests (2.7.13.1). */
static void chain_free_descriptors(struct virtq *vq)
{
	for (uint16_t i = 0; i < vq->size; i++)
		vq->desc[i].next = (uint16_t)(i + 1);
	vq->free_head = 0;
	vq->num_free = vq->size;
}

void virtq_setup(struct virtq *vq, struct virtio_device *device, uint16_t index, uint16_t size)
{
	*vq = (struct virtq){
		.device = device,
		.index = index,
		.size = size,
		.event_idx = virtio_has_feature(device, VIRTIO_F_EVENT_IDX),
	};
	vq->desc = memory_zalloc(size * sizeof(*vq->desc), DESC_ALIGN);
	/* One more entry each: used_event and avail_event. */
	vq->avail = memory_zalloc(sizeof(*vq->avail) + (size + 1) * sizeof(vq->avail->ring[0]),
				  AVAIL_ALIGN);
	vq->used = memory_zalloc(sizeof(*vq->used) + size * sizeof(vq->used->ring[0])
				 + sizeof(*vq->avail_event), USED_ALIGN);
	vq->used_event = &vq->avail->ring[size];
	vq->avail_event = (uint16_t *)&vq->used->ring[size];
	vq->tokens = memory_zalloc(size * sizeof(*vq->tokens), sizeof(*vq->tokens));
	if (virtio_has_feature(device, VIRTIO_F_INDIRECT_DESC))
		vq->tables = memory_alloc(size * VIRTQ_TABLE_SIZE * sizeof(*vq->tables), DESC_ALIGN);
	chain_free_descriptors(vq);
	virtio_enable_queue(vq);
}

/* 2.7: Queue Size is a power of two. */
void virtq_setup_at_most(struct virtq *vq, struct virtio_device *device, uint16_t index,
			 uint32_t wanted)
{
	const uint32_t max = virtio_queue_size_max(device, index);
	const uint32_t limit = MIN(max, wanted);
	uint32_t size = 1;

	if (!max)
		tap_bail_out("slot %u has no queue %u", device->slot, index);
	while (size * 2 <= limit)
		size *= 2;
	virtq_setup(vq, device, index, (uint16_t)size);
}

/* ----- 2.7.13: supplying buffers ----- */

unsigned int virtq_cut(struct virtq_element *elements, void *memory, uint32_t len,
		       const uint16_t *pieces)
{
	uint8_t *position = memory;
	unsigned int count = 0;

	while (len) {
		uint32_t piece = *pieces && *pieces < len ? *pieces : len;

		if (*pieces)
			pieces++;
		elements[count++] = (struct virtq_element){ position, piece };
		position += piece;
		len -= piece;
	}
	return count;
}

static void fill(struct virtq_desc *desc, const struct virtq_element *element, bool writable,
		 bool last)
{
	desc->addr = (uint64_t)element->addr;
	desc->len = element->len;
	desc->flags = (writable ? VIRTQ_DESC_F_WRITE : 0) | (last ? 0 : VIRTQ_DESC_F_NEXT);
}

static void fill_table(struct virtq_desc *table, const struct virtq_element *elements,
		       unsigned int readable, unsigned int first, unsigned int total)
{
	for (unsigned int i = first; i < total; i++, table++) {
		fill(table, &elements[i], i >= readable, i == total - 1);
		table->next = (uint16_t)(i - first + 1);
	}
}

static unsigned int direct_count(enum virtq_placement placement, unsigned int total)
{
	switch (placement) {
	case VIRTQ_INDIRECT:
		return 0;
	case VIRTQ_MIXED:
		return 1;
	default:
		return total;
	}
}

bool virtq_add(struct virtq *vq, const struct virtq_element *elements, unsigned int readable,
	       unsigned int writable, enum virtq_placement placement, void *token)
{
	const unsigned int total = readable + writable;
	const unsigned int direct = direct_count(placement, total);
	const unsigned int in_table = total - direct;
	const uint16_t head = vq->free_head;
	struct virtq_desc *desc, *table;
	uint16_t next = head;

	if (in_table > VIRTQ_TABLE_SIZE || (in_table && !vq->tables))
		tap_bail_out("an indirect table of %u entries cannot be had", in_table);
	if (direct + !!in_table > vq->num_free)
		return false;

	for (unsigned int i = 0; i < direct; i++) {
		desc = &vq->desc[next];
		fill(desc, &elements[i], i >= readable, i == total - 1);
		next = desc->next;
	}
	if (in_table) {
		table = &vq->tables[next * VIRTQ_TABLE_SIZE];
		fill_table(table, elements, readable, direct, total);
		desc = &vq->desc[next];
		desc->addr = (uint64_t)table;
		desc->len = (uint32_t)(in_table * sizeof(*table));
		desc->flags = VIRTQ_DESC_F_INDIRECT;
		next = desc->next;
	}
	vq->free_head = next;
	vq->num_free -= direct + !!in_table;
	vq->tokens[head] = token;
	vq->avail->ring[vq->next_avail++ & (vq->size - 1)] = head;
	return true;
}

/* 2.7.10.1: whether avail_event lies among the entries just published. */
static bool passed_event(uint16_t event, uint16_t new_idx, uint16_t old_idx)
{
	return (uint16_t)(new_idx - event - 1) < (uint16_t)(new_idx - old_idx);
}

bool virtq_kick(struct virtq *vq)
{
	const uint16_t old_idx = vq->avail->idx;
	bool wanted;

	if (vq->next_avail == old_idx)
		return false;
	/* 2.7.13.3.1: descriptors and ring entries before idx ... */
	atomic_thread_fence(memory_order_release);
	WRITE_ONCE(vq->avail->idx, vq->next_avail);
	/* 2.7.13.4.1: ... and idx before looking whether the device wants to be told. */
	atomic_thread_fence(memory_order_seq_cst);

	if (vq->event_idx)
		wanted = passed_event(READ_ONCE(*vq->avail_event), vq->next_avail, old_idx);
	else
		wanted = !(READ_ONCE(vq->used->flags) & VIRTQ_USED_F_NO_NOTIFY);
	if (!wanted) {
		vq->kicks_suppressed++;
		return false;
	}
	vq->kicks++;
	mmio_write32(vq->device->base + VIRTIO_MMIO_QUEUE_NOTIFY, vq->index);
	return true;
}

/* ----- 2.7.14: receiving used buffers ----- */

bool virtq_has_used(const struct virtq *vq)
{
	return READ_ONCE(vq->used->idx) != vq->last_used;
}

static void free_chain(struct virtq *vq, uint16_t head)
{
	uint16_t last = head;
	uint16_t count = 1;

	while (vq->desc[last].flags & VIRTQ_DESC_F_NEXT) {
		last = vq->desc[last].next;
		count++;
	}
	vq->desc[last].next = vq->free_head;
	vq->free_head = head;
	vq->num_free += count;
}

void *virtq_get_used(struct virtq *vq, uint32_t *len)
{
	const struct virtq_used_elem *element;
	void *token;

	if (!virtq_has_used(vq))
		return NULL;
	/* The entry is read after the idx that covers it. */
	atomic_thread_fence(memory_order_acquire);
	element = &vq->used->ring[vq->last_used & (vq->size - 1)];
	if (element->id >= vq->size || !vq->tokens[element->id])
		tap_bail_out("queue %u: the device used descriptor %u, which it was not given (2.7.8)",
			     vq->index, element->id);
	token = vq->tokens[element->id];
	vq->tokens[element->id] = NULL;
	*len = element->len;
	free_chain(vq, (uint16_t)element->id);
	vq->last_used++;
	return token;
}

/* ----- 2.7.7: used buffer notification suppression ----- */

void virtq_disable_interrupts(struct virtq *vq)
{
	/* An event just behind what was seen is the furthest one away: 65535 buffers from now. */
	if (vq->event_idx)
		WRITE_ONCE(*vq->used_event, (uint16_t)(vq->last_used - 1));
	else
		WRITE_ONCE(vq->avail->flags, VIRTQ_AVAIL_F_NO_INTERRUPT);
}

void virtq_interrupt_after(struct virtq *vq, uint16_t count)
{
	WRITE_ONCE(*vq->used_event, (uint16_t)(vq->last_used + count - 1));
}

void virtq_enable_interrupts(struct virtq *vq)
{
	if (vq->event_idx)
		virtq_interrupt_after(vq, 1);
	else
		WRITE_ONCE(vq->avail->flags, 0);
}

static bool is_used(const void *context)
{
	return virtq_has_used(context);
}

bool virtq_sleep(struct virtq *vq)
{
	virtq_enable_interrupts(vq);
	virtio_sleep(vq->device, is_used, vq);
	return virtq_has_used(vq);
}

bool virtq_poll(struct virtq *vq)
{
	while (!virtq_has_used(vq) && !vq->device->needs_reset)
		cpu_relax();
	return virtq_has_used(vq);
}

#define PATIENCE_TICKS	(UINT64_C(20) << 30)

uint64_t virtio_deadline(void)
{
	return read_tsc() + PATIENCE_TICKS;
}

bool virtq_poll_until(struct virtq *vq, uint64_t deadline)
{
	while (!virtq_has_used(vq) && !vq->device->needs_reset && read_tsc() < deadline)
		cpu_relax();
	return virtq_has_used(vq);
}

// SPDX-License-Identifier: MIT
/* Split virtqueues (2.7), with the mistakes that can be made with them. */
#include <stdatomic.h>

#include "cpu.h"
#include "mistakes.h"
#include "runtime.h"

#define NOWHERE		UINT64_C(0x7fff00000000)	/* beyond the memory of any test */
#define PATIENCE_SOUND	(UINT64_C(20) << 30)
#define PATIENCE	(UINT64_C(1) << 28)
#define INDIRECT_LONG	32	/* descriptors: twice the queue */

static void write_area(struct driver *driver, uint32_t low, uint64_t address)
{
	reg_write(driver, low, (uint32_t)address);
	reg_write(driver, low + sizeof(uint32_t), (uint32_t)(address >> 32));
}

static void *allocate(size_t size, size_t align, bool misaligned)
{
	uint8_t *memory = memory_zalloc(size + align, align);

	return misaligned ? memory + align / 2 : memory;
}

void ring_set_up(struct driver *driver, struct ring *ring)
{
	const uint16_t index = ring->index;
	uint32_t size;

	*ring = (struct ring){ .index = index };
	ring->desc = allocate(RING_SIZE * sizeof(*ring->desc), 16, makes(MISALIGNED_TABLE));
	ring->avail = allocate(4 + 2 * RING_SIZE + 2, 2, makes(MISALIGNED_AVAILABLE));
	ring->used = allocate(4 + 8 * RING_SIZE + 2, 4, makes(MISALIGNED_USED));
	ring->table = allocate(INDIRECT_LONG * sizeof(*ring->table), 16, false);
	if (makes(USED_FLAGS))
		ring->used->flags = VIRTQ_USED_F_NO_NOTIFY;
	if (makes(FLAGS_2))
		ring->avail->flags = 2;
	if (makes(FLAGS_WITH_EVENT))
		ring->avail->flags = VIRTQ_AVAIL_F_NO_INTERRUPT;

	reg_write(driver, VIRTIO_MMIO_QUEUE_SEL, index);
	if (reg_read(driver, VIRTIO_MMIO_QUEUE_READY))
		return;
	size = reg_read(driver, VIRTIO_MMIO_QUEUE_SIZE_MAX);
	if (!size)
		return;
	ring->size = (uint16_t)MIN(size, RING_SIZE);
	reg_write(driver, VIRTIO_MMIO_QUEUE_SIZE, makes(QUEUE_TOO_LARGE) ? 2 * size : ring->size);
	write_area(driver, VIRTIO_MMIO_QUEUE_DESC_LOW,
		   makes(QUEUE_NOWHERE) ? NOWHERE : (uint64_t)ring->desc);
	write_area(driver, VIRTIO_MMIO_QUEUE_DRIVER_LOW, (uint64_t)ring->avail);
	write_area(driver, VIRTIO_MMIO_QUEUE_DEVICE_LOW, (uint64_t)ring->used);
	reg_write(driver, VIRTIO_MMIO_QUEUE_READY, 1);
}

static void fill(struct virtq_desc *table, uint16_t first, const struct element *elements,
		 unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		struct virtq_desc *desc = &table[first + i];

		desc->addr = (uint64_t)elements[i].addr;
		desc->len = elements[i].len;
		desc->flags = (elements[i].writable ? VIRTQ_DESC_F_WRITE : 0)
			      | (i + 1 < count ? VIRTQ_DESC_F_NEXT : 0);
		desc->next = (uint16_t)(first + i + 1);
	}
}

/* Put the chain that begins at descriptor `head` into the indirect table. */
static void make_indirect(struct ring *ring, uint16_t head, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		ring->table[i] = ring->desc[head + i];
		ring->table[i].next = (uint16_t)(i + 1);
	}
	ring->desc[head] = (struct virtq_desc){
		.addr = (uint64_t)ring->table,
		.len = (uint32_t)(count * sizeof(*ring->table)),
		.flags = VIRTQ_DESC_F_INDIRECT,
	};
}

/* A chain in an indirect table that is longer than the queue: its second element again and again. */
static void make_long(struct ring *ring, uint16_t head)
{
	make_indirect(ring, head, 3);
	ring->table[INDIRECT_LONG - 1] = ring->table[2];
	for (unsigned int i = 1; i < INDIRECT_LONG - 1; i++) {
		ring->table[i] = ring->table[1];
		ring->table[i].next = (uint16_t)(i + 1);
	}
	ring->desc[head].len = INDIRECT_LONG * sizeof(*ring->table);
}

static void spoil(struct ring *ring, uint16_t head, unsigned int count)
{
	if (makes(BUFFER_NOWHERE))
		ring->desc[head + 1].addr = NOWHERE;
	if (makes(WRITABLE_FIRST))
		ring->desc[head].flags |= VIRTQ_DESC_F_WRITE;
	if (makes(WRITABLE_FIRST) && count > 1)
		ring->desc[head + 1].flags &= (uint16_t)~VIRTQ_DESC_F_WRITE;
	if (makes(LOOP)) {
		ring->desc[head + count - 1].flags |= VIRTQ_DESC_F_NEXT;
		ring->desc[head + count - 1].next = (uint16_t)(head + count - 1);
	}
	if (makes(INDIRECT_UNASKED) || makes(INDIRECT_TWICE) || makes(INDIRECT_NEXT))
		make_indirect(ring, head, count);
	if (makes(INDIRECT_TWICE))
		ring->table[0] = ring->desc[head];
	if (makes(INDIRECT_NEXT)) {
		ring->desc[head].flags |= VIRTQ_DESC_F_NEXT;
		ring->desc[head].next = (uint16_t)(head + 1);
	}
	if (makes(TOO_LONG))
		make_long(ring, head);
}

uint16_t ring_fill(struct ring *ring, uint16_t first, const struct element *elements,
		   unsigned int count)
{
	fill(ring->desc, first, elements, count);
	/* 2.7.5.3.1: no chain is longer than the queue. */
	if (first + count > ring->size)
		return NO_HEAD;
	spoil(ring, first, count);
	return first;
}

static void kick(struct driver *driver, const struct ring *ring)
{
	if (!makes(NO_KICK) && !makes(NO_KICK_EVENT))
		reg_write(driver, VIRTIO_MMIO_QUEUE_NOTIFY, ring->index);
}

/* 2.7.10.1: whether the device asks for a kick, after the available index went from `old` on. */
static bool kick_is_wanted(const struct driver *driver, struct ring *ring, uint16_t old)
{
	const uint16_t *event = (const uint16_t *)&ring->used->ring[ring->size];

	if (driver->features & BIT(VIRTIO_F_EVENT_IDX))
		return (uint16_t)(ring->next - READ_ONCE(*event) - 1) < (uint16_t)(ring->next - old);
	return !(READ_ONCE(ring->used->flags) & VIRTQ_USED_F_NO_NOTIFY);
}

void ring_publish(struct driver *driver, struct ring *ring, uint16_t head)
{
	const uint16_t old = ring->next;

	if (head == NO_HEAD)
		return;
	ring->avail->ring[ring->next++ % ring->size] = head;
	if (makes(INDEX_BY_TWO))
		ring->avail->ring[ring->next++ % ring->size] = head;
	if (makes(KICK_FIRST))
		kick(driver, ring);
	/* 2.7.13.3.1: descriptors and entries before the index. */
	atomic_thread_fence(memory_order_release);
	WRITE_ONCE(ring->avail->idx, ring->next);
	/* 2.7.13.4.1: and the index before the look at what the device asks for. */
	atomic_thread_fence(memory_order_seq_cst);
	if (!makes(KICK_FIRST) && kick_is_wanted(driver, ring, old))
		kick(driver, ring);
	if (makes(KICK_TOO_MUCH))
		kick(driver, ring);
}

bool ring_wait(struct ring *ring)
{
	const uint64_t end = read_tsc() + (makes_any() ? PATIENCE : PATIENCE_SOUND);

	while (READ_ONCE(ring->used->idx) == ring->seen) {
		if (read_tsc() > end) {
			if (!makes_any())
				tap_ok(false, "the device uses what it was given");
			return false;
		}
		cpu_relax();
	}
	atomic_thread_fence(memory_order_acquire);
	ring->used_len = (uint16_t)ring->used->ring[ring->seen % ring->size].len;
	ring->seen++;
	return true;
}

bool ring_request(struct driver *driver, struct ring *ring, const struct element *elements,
		  unsigned int count)
{
	const uint16_t head = ring_fill(ring, 0, elements, count);

	ring_publish(driver, ring, head);
	return head != NO_HEAD && ring_wait(ring);
}

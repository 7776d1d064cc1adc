/* SPDX-License-Identifier: MIT */
/* The device side of a split virtqueue (2.7): virtq.c.  virtqueue/split.py is its reference. */
#ifndef VIRTIOPY_VIRTQ_H
#define VIRTIOPY_VIRTQ_H

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "memory.h"
#include "vhost_user.h"

/* What is wrong with a queue, or with one chain; `address` and `length` say more of some. */
enum vp_fault_code {
	VP_FAULT_NONE,
	/* Of the queue: it can go on only after a reset. */
	VP_FAULT_INDEX,		/* address: the available idx; length: how many buffers that offers */
	VP_FAULT_HEAD,		/* address: the head */
	/* Of a chain. */
	VP_FAULT_NESTED,
	VP_FAULT_NOT_NEGOTIATED,
	VP_FAULT_INDIRECT_NEXT,
	VP_FAULT_TABLE_SIZE,	/* length: the table's, bytes */
	VP_FAULT_TOO_LONG,
	VP_FAULT_TOO_LARGE,
	VP_FAULT_ORDER,
	VP_FAULT_NEXT,		/* address: the next index */
	VP_FAULT_ADDRESS,	/* address, length: guest physical memory that is none */
};

struct vp_fault {
	uint32_t code;
	uint32_t head;
	uint64_t address, length;
};

/* A descriptor chain, taken apart: `readable` pieces of host memory, then `writable` ones. */
struct vp_chain {
	struct iovec *iov;
	uint32_t readable, writable;
	uint64_t readable_bytes, writable_bytes;
	uint32_t head;
	uint32_t descriptors;	/* that were looked at, those of a malformed chain as well */
};

/* What came of looking for the next chain. */
enum vp_pop {
	VP_POP_EMPTY,
	VP_POP_CHAIN,
	VP_POP_REJECTED,	/* a malformed chain, which is used already: see `fault` */
	VP_POP_NO_ROOM,		/* more pieces than there is room for: it was not taken */
	VP_POP_BROKEN,		/* the queue is: see `fault` */
};

/* The log of dirty pages, and where in it the used ring is. */
struct vp_dirty {
	uint8_t *log;		/* NULL: nothing is logged */
	uint64_t pages;
	uint64_t used;		/* the guest physical address by which the used ring is logged */
	bool logs_used;		/* ... if it is */
	int eventfd;		/* written when a page has no bit */
	uint32_t *too_small;	/* ... which this says from then on */
};

/*
 * Chains that were put and are not published yet; more are published at once.  As many as a worker has
 * slots: the buffers of a received frame are published together (5.1.9.4.1).
 */
#define VP_UNPUBLISHED 256

struct vp_virtq {
	/* What does not change. */
	const struct vp_memory *memory;
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	uint32_t size;		/* a power of 2 (2.7) */
	uint32_t longest;	/* the most descriptors of a chain */
	bool event_idx, indirect;

	/* Where the device stands. */
	uint16_t next;		/* entry of the available ring to look at */
	uint16_t seen;		/* the available idx, as it was last read */
	uint16_t used_idx;	/* with the chains that are not published yet */
	uint16_t signalled;	/* the used idx when interrupts were last decided on */
	uint32_t in_flight;
	uint32_t since_rejected;
	uint32_t hint;		/* for vp_region_of() */
	struct vp_fault fault;

	/* Heads to take before those of the available ring. */
	uint16_t *unfinished;
	uint32_t unfinished_count, unfinished_next;

	/* What is kept account of. */
	struct vhost_user_queue_region *inflight;	/* NULL: nothing */
	uint64_t inflight_counter;
	struct vp_dirty dirty;
	uint16_t unpublished[VP_UNPUBLISHED];
	uint32_t unpublished_count;
};

enum vp_pop vp_virtq_pop(struct vp_virtq *queue, struct vp_chain *chain, struct iovec *iov,
			 uint32_t room);
enum vp_pop vp_virtq_walk(struct vp_virtq *queue, uint16_t head, struct vp_chain *chain,
			  struct iovec *iov, uint32_t room);
void vp_virtq_take(struct vp_virtq *queue, uint16_t head);
void vp_virtq_reject(struct vp_virtq *queue, uint16_t head);

void vp_virtq_account(struct vp_virtq *queue, const struct vp_chain *chain);
void vp_virtq_publish(struct vp_virtq *queue);

/* Puts a chain into the used ring, to be seen with the next publish. */
static inline void vp_virtq_put(struct vp_virtq *queue, const struct vp_chain *chain,
				uint32_t written)
{
	struct vring_used_elem *element = &queue->used->ring[queue->used_idx & (queue->size - 1)];

	if (queue->dirty.log || queue->inflight)
		vp_virtq_account(queue, chain);
	__atomic_store_n(&element->id, chain->head, __ATOMIC_RELAXED);
	__atomic_store_n(&element->len, written, __ATOMIC_RELAXED);
	queue->used_idx++;
	queue->in_flight--;
	queue->unpublished[queue->unpublished_count++] = chain->head;
	if (queue->unpublished_count == VP_UNPUBLISHED)
		vp_virtq_publish(queue);
}

bool vp_virtq_should_interrupt(struct vp_virtq *queue);
void vp_virtq_disable_kicks(struct vp_virtq *queue);
bool vp_virtq_enable_kicks(struct vp_virtq *queue);

/* Whether there is more to take than was seen: what a worker polls. */
static inline bool vp_virtq_has_more(const struct vp_virtq *queue)
{
	return queue->unfinished_next < queue->unfinished_count ||
	       __atomic_load_n(&queue->avail->idx, __ATOMIC_ACQUIRE) != queue->next;
}

/* Whether more was seen already than was taken: no look at the available ring. */
static inline bool vp_virtq_knows_more(const struct vp_virtq *queue)
{
	return queue->unfinished_next < queue->unfinished_count || queue->seen != queue->next;
}

/* For Python: batches, and what moves between workers. */
struct vp_batch {
	/* Where chains and their pieces go, and how many there is room for. */
	struct vp_chain *chains;
	struct iovec *iov;
	struct vp_fault *rejects;
	uint32_t chains_room, iov_room, rejects_room;
	/* What the call may still cost: chains, descriptors, malformed chains. */
	uint32_t limit;
	int64_t budget;
	/* What came. */
	uint32_t count, iov_count, rejects_count;
};

enum vp_pop vp_virtq_pop_many(struct vp_virtq *queue, struct vp_batch *batch);
void vp_virtq_resume(struct vp_virtq *queue, uint16_t next);
void vp_virtq_untake(struct vp_virtq *queue, const uint16_t *heads, uint32_t count);
enum vp_pop vp_virtq_peek(struct vp_virtq *queue, struct vp_chain *chain, struct iovec *iov,
			  uint32_t room);

#endif

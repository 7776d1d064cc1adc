/* SPDX-License-Identifier: MIT */
/*
 * The device side of a split virtqueue (2.7), as virtqueue/split.py has it.
 *
 * The driver can change guest memory at any moment, so each field of a descriptor or ring is read
 * once, checked, and trusted no further than the check went.
 */
#include "virtq.h"

#include <string.h>
#include <unistd.h>

#include "native.h"

#define CHAIN_BYTES_MAX (1ull << 32)	/* 2.7.5.2 */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian (1.4)");

#define READ_ONCE(field) __atomic_load_n(&(field), __ATOMIC_RELAXED)
#define WRITE_ONCE(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)

/* The store of the one is before that of the other also for who reads after this process was killed. */
#define ORDER_STORES() __atomic_signal_fence(__ATOMIC_SEQ_CST)

static enum vp_pop fail(struct vp_virtq *queue, enum vp_pop result, enum vp_fault_code code,
			uint64_t address, uint64_t length)
{
	queue->fault.code = code;
	queue->fault.address = address;
	queue->fault.length = length;
	return result;
}

static enum vp_pop reject(struct vp_virtq *queue, enum vp_fault_code code, uint64_t address,
			  uint64_t length)
{
	return fail(queue, VP_POP_REJECTED, code, address, length);
}

/* Where the descriptors of a chain are: the descriptor table, or an indirect one in guest memory. */
struct table {
	const struct vring_desc *entries;	/* NULL: the table spans regions, or is not aligned */
	uint64_t address;
	uint64_t size;
};

/* A descriptor as two words, which are read once each: addr; len, flags and next. */
struct words {
	uint64_t address, rest;
};

static inline struct vring_desc read_descriptor(const struct vp_virtq *queue,
						const struct table *table, uint32_t index)
{
	struct words read;

	if (table->entries) {
		const struct words *entry = (const struct words *)&table->entries[index];

		read.address = READ_ONCE(entry->address);
		read.rest = READ_ONCE(entry->rest);
	} else {
		/* find_indirect() has seen that the table is all memory. */
		vp_memory_read(queue->memory, table->address + index * sizeof(read), &read,
			       sizeof(read));
	}
	return (struct vring_desc){
		.addr = read.address, .len = (uint32_t)read.rest, .flags = (uint16_t)(read.rest >> 32),
		.next = read.rest >> 48,
	};
}

/* An indirect table (2.7.5.3); the write-only flag of its descriptor is ignored (2.7.5.3.2). */
static enum vp_pop find_indirect(struct vp_virtq *queue, const struct vring_desc *descriptor,
				 struct table *table)
{
	uint64_t address = descriptor->addr, size = descriptor->len;
	char *host;

	if (!queue->indirect)	/* 2.7.5.3.1 */
		return reject(queue, VP_FAULT_NOT_NEGOTIATED, 0, 0);
	if (descriptor->flags & VRING_DESC_F_NEXT)	/* 2.7.5.3.1 */
		return reject(queue, VP_FAULT_INDIRECT_NEXT, 0, 0);
	if (size == 0 || size % sizeof(struct vring_desc))	/* 2.7.5.3 */
		return reject(queue, VP_FAULT_TABLE_SIZE, 0, size);
	host = vp_memory_pointer(queue->memory, address, size);
	if (!host && !vp_memory_covers(queue->memory, address, size))
		return reject(queue, VP_FAULT_ADDRESS, address, size);
	/* The specification asks for no alignment of these. */
	if ((uintptr_t)host % _Alignof(struct vring_desc))
		host = NULL;
	table->entries = (const struct vring_desc *)host;
	table->address = address;
	table->size = size / sizeof(struct vring_desc);
	return VP_POP_CHAIN;
}

/* Adds the pieces of one buffer: one for each region that it is in, none for no bytes. */
static enum vp_pop add_all_pieces(struct vp_virtq *queue, uint64_t address, uint64_t length,
			      struct iovec *iov, uint32_t room, uint32_t *count)
{
	uint64_t position = address, left = length;

	while (left > 0) {
		const struct vp_region *region = vp_region_of(queue->memory, &queue->hint, position);
		uint64_t offset, piece;

		if (!region)
			return reject(queue, VP_FAULT_ADDRESS, address, length);
		if (*count == room)
			return VP_POP_NO_ROOM;
		offset = position - region->guest;
		piece = region->size - offset < left ? region->size - offset : left;
		iov[*count].iov_base = region->host + offset;
		iov[*count].iov_len = piece;
		++*count;
		left -= piece;
		position += piece;
		if (position == 0 && left > 0)
			return reject(queue, VP_FAULT_ADDRESS, address, length);
	}
	return VP_POP_CHAIN;
}

/* The same; mostly it is one, in the region of the last. */
static inline enum vp_pop add_pieces(struct vp_virtq *queue, uint64_t address, uint64_t length,
				     struct iovec *iov, uint32_t room, uint32_t *count)
{
	const struct vp_region *region = &queue->memory->regions[queue->hint];
	uint64_t offset = address - region->guest;

	if (queue->memory->count == 0 || offset >= region->size || length > region->size - offset ||
	    length == 0 || *count == room)
		return add_all_pieces(queue, address, length, iov, room, count);
	iov[*count].iov_base = region->host + offset;
	iov[*count].iov_len = length;
	++*count;
	return VP_POP_CHAIN;
}

/*
 * A chain of one buffer in the region of the last, as most frames have: true where `descriptor` is one.
 * No more can be wrong with it.
 */
static inline bool walk_one(const struct vp_virtq *queue, const struct vring_desc *descriptor,
			    struct vp_chain *chain, struct iovec *iov, uint32_t room)
{
	const struct vp_region *region = &queue->memory->regions[queue->hint];
	uint64_t offset = descriptor->addr - region->guest, length = descriptor->len;
	bool writable = descriptor->flags & VRING_DESC_F_WRITE;

	if (descriptor->flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT) ||
	    queue->memory->count == 0 || offset >= region->size ||
	    length > region->size - offset || length == 0 || room == 0)
		return false;
	iov->iov_base = region->host + offset;
	iov->iov_len = length;
	chain->descriptors = 1;
	chain->readable = !writable;
	chain->writable = writable;
	chain->readable_bytes = writable ? 0 : length;
	chain->writable_bytes = writable ? length : 0;
	return true;
}

/* Follows a descriptor chain (2.7.5) whose first descriptor was read. */
static enum vp_pop walk_all(struct vp_virtq *queue, struct vring_desc descriptor,
			    struct vp_chain *chain, struct iovec *iov, uint32_t room)
{
	struct table table = { queue->desc, 0, queue->size };
	uint32_t index, pieces = 0, readable = 0;
	uint64_t length = 0, readable_bytes = 0;
	bool in_indirect = false;

	chain->descriptors = 0;
	queue->fault.head = chain->head;
	for (;; descriptor = read_descriptor(queue, &table, index)) {
		enum vp_pop result;

		if (descriptor.flags & VRING_DESC_F_INDIRECT) {
			if (in_indirect)	/* 2.7.5.3.1 */
				return reject(queue, VP_FAULT_NESTED, 0, 0);
			result = find_indirect(queue, &descriptor, &table);
			if (result != VP_POP_CHAIN)
				return result;
			in_indirect = true;
			index = 0;
			continue;
		}
		if (++chain->descriptors > queue->longest)	/* 2.7.5.3.1 */
			return reject(queue, VP_FAULT_TOO_LONG, 0, 0);
		length += descriptor.len;
		if (length > CHAIN_BYTES_MAX)	/* 2.7.5.2 */
			return reject(queue, VP_FAULT_TOO_LARGE, 0, 0);
		if (!(descriptor.flags & VRING_DESC_F_WRITE) && pieces > readable)	/* 2.7.4.2 */
			return reject(queue, VP_FAULT_ORDER, 0, 0);
		result = add_pieces(queue, descriptor.addr, descriptor.len, iov, room, &pieces);
		if (result != VP_POP_CHAIN)
			return result;
		if (!(descriptor.flags & VRING_DESC_F_WRITE)) {
			readable = pieces;
			readable_bytes = length;
		}
		if (!(descriptor.flags & VRING_DESC_F_NEXT))
			break;
		if (descriptor.next >= table.size)	/* 2.7.5 */
			return reject(queue, VP_FAULT_NEXT, descriptor.next, 0);
		index = descriptor.next;
	}
	chain->readable = readable;
	chain->writable = pieces - readable;
	chain->readable_bytes = readable_bytes;
	chain->writable_bytes = length - readable_bytes;
	return VP_POP_CHAIN;
}

static inline enum vp_pop walk(struct vp_virtq *queue, uint16_t head, struct vp_chain *chain,
			       struct iovec *iov, uint32_t room)
{
	struct table table = { queue->desc, 0, queue->size };
	struct vring_desc first = read_descriptor(queue, &table, head);

	chain->iov = iov;
	chain->head = head;
	if (walk_one(queue, &first, chain, iov, room))
		return VP_POP_CHAIN;
	return walk_all(queue, first, chain, iov, room);
}

/* Follows a descriptor chain, into an indirect table where it has one (2.7.5.3). */
enum vp_pop vp_virtq_walk(struct vp_virtq *queue, uint16_t head, struct vp_chain *chain,
			  struct iovec *iov, uint32_t room)
{
	return walk(queue, head, chain, iov, room);
}

/* Looks at the available ring (2.7.6): VP_POP_CHAIN with a head, which is not taken yet. */
static enum vp_pop next_head(struct vp_virtq *queue, uint16_t *head)
{
	if (queue->unfinished_next < queue->unfinished_count) {
		*head = queue->unfinished[queue->unfinished_next];
		return VP_POP_CHAIN;
	}
	if (queue->next == queue->seen) {
		/* Pairs with the driver's barrier before its update of idx (2.7.13.3.1). */
		uint16_t seen = __atomic_load_n(&queue->avail->idx, __ATOMIC_ACQUIRE);
		uint16_t pending = seen - queue->next;

		if (pending + queue->in_flight > queue->size)	/* 2.7 */
			return fail(queue, VP_POP_BROKEN, VP_FAULT_INDEX, seen, pending);
		if (pending == 0)
			return VP_POP_EMPTY;
		queue->seen = seen;
	}
	*head = READ_ONCE(queue->avail->ring[queue->next & (queue->size - 1)]);
	if (*head >= queue->size)	/* 2.7.6 */
		return fail(queue, VP_POP_BROKEN, VP_FAULT_HEAD, *head, 0);
	return VP_POP_CHAIN;
}

static void advance(struct vp_virtq *queue)
{
	if (queue->unfinished_next < queue->unfinished_count)
		queue->unfinished_next++;
	else
		queue->next++;
	queue->in_flight++;
}

/* Takes the chain that next_head() found. */
void vp_virtq_take(struct vp_virtq *queue, uint16_t head)
{
	advance(queue);
	queue->since_rejected++;
	if (queue->inflight) {
		struct vhost_user_desc_state *state = &queue->inflight->desc[head];

		WRITE_ONCE(state->counter, queue->inflight_counter++);
		ORDER_STORES();
		WRITE_ONCE(state->inflight, 1);
	}
}

/* Gives a malformed chain back at once, with nothing written; it was taken. */
void vp_virtq_reject(struct vp_virtq *queue, uint16_t head)
{
	struct vp_chain chain = { .head = head };

	vp_virtq_put(queue, &chain, 0);
	vp_virtq_publish(queue);
	queue->since_rejected = 0;
}

enum vp_pop vp_virtq_pop(struct vp_virtq *queue, struct vp_chain *chain, struct iovec *iov,
			 uint32_t room)
{
	uint16_t head = 0;
	enum vp_pop result = next_head(queue, &head);

	if (result != VP_POP_CHAIN)
		return result;
	result = walk(queue, head, chain, iov, room);
	if (result == VP_POP_NO_ROOM)
		return result;
	if (result == VP_POP_REJECTED) {
		/* It is never in flight for who comes after this process was killed: it is taken again. */
		advance(queue);
		vp_virtq_reject(queue, head);
	} else {
		vp_virtq_take(queue, head);
	}
	return result;
}

/* What would come of the next pop: VP_POP_REJECTED for a malformed chain, which stays where it is. */
enum vp_pop vp_virtq_peek(struct vp_virtq *queue, struct vp_chain *chain, struct iovec *iov,
			  uint32_t room)
{
	uint16_t head = 0;
	enum vp_pop result = next_head(queue, &head);

	return result == VP_POP_CHAIN ? vp_virtq_walk(queue, head, chain, iov, room) : result;
}

/*
 * Takes chains, as far as limit, budget and room go.  VP_POP_CHAIN: there may be more; VP_POP_EMPTY:
 * there are none; VP_POP_NO_ROOM: the next one finds no room.
 */
enum vp_pop vp_virtq_pop_many(struct vp_virtq *queue, struct vp_batch *batch)
{
	while (batch->count < batch->chains_room && batch->count < batch->limit &&
	       batch->rejects_count < batch->rejects_room && batch->budget > 0) {
		struct vp_chain *chain = &batch->chains[batch->count];
		enum vp_pop result;

		chain->descriptors = 0;
		result = vp_virtq_pop(queue, chain, batch->iov + batch->iov_count,
				      batch->iov_room - batch->iov_count);
		switch (result) {
		case VP_POP_CHAIN:
			batch->count++;
			batch->iov_count += chain->readable + chain->writable;
			break;
		case VP_POP_REJECTED:
			batch->rejects[batch->rejects_count++] = queue->fault;
			break;
		default:
			return result;
		}
		batch->budget -= chain->descriptors;
	}
	return VP_POP_CHAIN;
}

/* Accounts: the pages that were written (VHOST_F_LOG_ALL) */

static void mark(struct vp_virtq *queue, uint64_t address, uint64_t length)
{
	struct vp_dirty *dirty = &queue->dirty;
	uint64_t first = address / VHOST_PAGE_SIZE, last = (address + length - 1) / VHOST_PAGE_SIZE;
	const uint64_t one = 1;

	/* The frontend chooses where its log has the used ring: also where addresses end. */
	if (address + length - 1 >= address && last < dirty->pages) {
		vp_log_pages(dirty->log, first, last);
	} else if (!READ_ONCE(*dirty->too_small)) {
		WRITE_ONCE(*dirty->too_small, 1);
		if (write(dirty->eventfd, &one, sizeof(one)) < 0) {
			/* Full is as good as written. */
		}
	}
}

static void mark_used(struct vp_virtq *queue, uint64_t offset, uint64_t length)
{
	uint64_t address = queue->dirty.used + offset;

	if (queue->dirty.log && queue->dirty.logs_used)
		mark(queue, address < offset ? UINT64_MAX : address, length);
}

/* All that is writable: `len` in the used ring may be less than what was written (2.7.8.2). */
static void mark_written(struct vp_virtq *queue, const struct vp_chain *chain)
{
	for (uint32_t i = 0; i < chain->writable; i++) {
		const struct iovec *piece = &chain->iov[chain->readable + i];

		mark(queue, vp_memory_guest(queue->memory, piece->iov_base), piece->iov_len);
	}
}

/* Giving used buffers back (2.7.8) */

/* Accounts for a chain that is about to be put. */
void vp_virtq_account(struct vp_virtq *queue, const struct vp_chain *chain)
{
	struct vhost_user_queue_region *inflight = queue->inflight;

	if (queue->dirty.log)
		mark_written(queue, chain);
	if (inflight) {
		WRITE_ONCE(inflight->desc[chain->head].next, inflight->last_batch_head);
		ORDER_STORES();
		WRITE_ONCE(inflight->last_batch_head, chain->head);
	}
}

void vp_virtq_publish(struct vp_virtq *queue)
{
	uint32_t count = queue->unpublished_count;

	if (count == 0)
		return;
	/* What was written to the ring before is visible before idx is (2.7.8.2). */
	__atomic_store_n(&queue->used->idx, queue->used_idx, __ATOMIC_RELEASE);
	if (queue->inflight) {
		ORDER_STORES();
		for (uint32_t i = 0; i < count; i++)
			WRITE_ONCE(queue->inflight->desc[queue->unpublished[i]].inflight, 0);
		ORDER_STORES();
		WRITE_ONCE(queue->inflight->used_idx, queue->used_idx);
	}
	if (queue->dirty.log) {
		mark_used(queue, 0, offsetof(struct vring_used, ring));
		for (uint32_t i = 0; i < count; i++) {
			uint16_t entry = (uint16_t)(queue->used_idx - count + i) % queue->size;

			mark_used(queue, offsetof(struct vring_used, ring[entry]),
				  sizeof(struct vring_used_elem));
		}
	}
	queue->unpublished_count = 0;
}

/* Notifications (2.7.7, 2.7.10) */

static uint16_t *used_event(const struct vp_virtq *queue)
{
	return &queue->avail->ring[queue->size];
}

static uint16_t *avail_event(const struct vp_virtq *queue)
{
	return (uint16_t *)&queue->used->ring[queue->size];
}

bool vp_virtq_should_interrupt(struct vp_virtq *queue)
{
	uint16_t new = queue->used_idx, old = queue->signalled;

	if (new == old)
		return false;
	queue->signalled = new;
	/*
	 * idx must be visible before used_event is read: the driver writes the one and reads the
	 * other, in the opposite order.
	 */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (queue->event_idx)
		return vring_need_event(READ_ONCE(*used_event(queue)), new, old);	/* 2.7.7.2 */
	return !(READ_ONCE(queue->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
}

void vp_virtq_disable_kicks(struct vp_virtq *queue)
{
	/* With EVENT_IDX an avail_event that lies behind is advice enough. */
	if (!queue->event_idx) {
		WRITE_ONCE(queue->used->flags, VRING_USED_F_NO_NOTIFY);
		mark_used(queue, 0, sizeof(queue->used->flags));
	}
}

/* Asks for a kick for the next chain; true where there is one already, for which none may come. */
bool vp_virtq_enable_kicks(struct vp_virtq *queue)
{
	if (queue->event_idx) {
		WRITE_ONCE(*avail_event(queue), queue->next);
		mark_used(queue, offsetof(struct vring_used, ring[queue->size]), sizeof(uint16_t));
	} else {
		WRITE_ONCE(queue->used->flags, 0);
		mark_used(queue, 0, sizeof(queue->used->flags));
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return vp_virtq_has_more(queue);
}

/* Another worker of the rings */

void vp_virtq_resume(struct vp_virtq *queue, uint16_t next)
{
	queue->next = queue->seen = next;
	queue->unfinished_next = queue->unfinished_count = 0;
	queue->since_rejected = 0;
	queue->used_idx = queue->signalled = __atomic_load_n(&queue->used->idx, __ATOMIC_ACQUIRE);
}

/* Makes the chains that were popped last available again, unserved. */
void vp_virtq_untake(struct vp_virtq *queue, const uint16_t *heads, uint32_t count)
{
	queue->in_flight -= count;
	queue->since_rejected -= count;
	queue->next -= count;
	for (uint32_t i = 0; i < count && queue->inflight; i++)
		WRITE_ONCE(queue->inflight->desc[heads[i]].inflight, 0);
}

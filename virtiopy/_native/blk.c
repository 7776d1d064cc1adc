/* SPDX-License-Identifier: MIT */
/*
 * The requests of a block device (5.2.6) that are mostly made: reads, writes and flushes of a disk that
 * is one file.  Whatever is unusual about one goes up to Python, devices/blk.py, as it came: other
 * types, lengths or sectors that cannot be, what the host refuses.
 */
#include "native.h"

#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "worker.h"

#define SECTOR 512

#ifndef IOV_MAX
#define IOV_MAX 1024
#endif

/*
 * Chains of one turn, and after how many of them the driver is shown what was used: or sooner, where
 * it may have nothing else to do.
 */
#define TURN 32
#define SHOWN 4

/* Reads in a row that the page cache had, after which the next is taken to be there too. */
#define CACHED_READS 1024

/* A turn that takes longer has waited for the disk, or for other programs: ticks of the CPU's counter. */
#define WAITED 1000000

/* A request, taken apart: parse() fills it in. */
struct request {
	uint32_t type;
	uint64_t sector;
	struct iovec *data;
	uint32_t count;
	uint64_t length;
};

/* Copies the first bytes of a chain's readable part; false where it has fewer. */
static bool copy_header(const struct vp_chain *chain, struct virtio_blk_outhdr *header)
{
	uint64_t copied = 0;

	if (chain->readable_bytes < sizeof(*header))
		return false;
	if (chain->iov[0].iov_len >= sizeof(*header)) {
		memcpy(header, chain->iov[0].iov_base, sizeof(*header));
		return true;
	}
	for (uint32_t i = 0; copied < sizeof(*header); i++) {
		uint64_t count = sizeof(*header) - copied;

		if (chain->iov[i].iov_len < count)
			count = chain->iov[i].iov_len;
		memcpy((char *)header + copied, chain->iov[i].iov_base, count);
		copied += count;
	}
	return true;
}

/*
 * Makes data_out of the readable part: what follows the header, which ends wherever the driver liked
 * (2.7.4).  restore() undoes it.
 */
static void find_data_out(struct vp_slot *slot, struct request *request)
{
	struct vp_chain *chain = &slot->chain;
	uint64_t skip = sizeof(struct virtio_blk_outhdr);
	uint32_t i = 0;

	while (i < chain->readable && chain->iov[i].iov_len <= skip)
		skip -= chain->iov[i++].iov_len;
	request->data = &chain->iov[i];
	request->count = chain->readable - i;
	request->length = chain->readable_bytes - sizeof(struct virtio_blk_outhdr);
	if (request->count > 0 && skip > 0) {
		slot->uncut = chain->iov[i];
		chain->iov[i].iov_base = (char *)chain->iov[i].iov_base + skip;
		chain->iov[i].iov_len -= skip;
		slot->cut = &chain->iov[i];
	}
}

/* Makes data_in of the writable part: all but its last byte, which is the status. */
static void find_data_in(struct vp_slot *slot, struct request *request)
{
	struct vp_chain *chain = &slot->chain;
	struct iovec *last = &chain->iov[chain->readable + chain->writable - 1];

	request->data = &chain->iov[chain->readable];
	request->count = chain->writable;
	request->length = chain->writable_bytes - 1;
	if (last->iov_len == 1) {
		request->count--;
	} else {
		slot->uncut = *last;
		last->iov_len--;
		slot->cut = last;
	}
}

static void restore(struct vp_slot *slot)
{
	if (slot->cut)
		*slot->cut = slot->uncut;
	slot->cut = NULL;
}

/* Takes a chain apart; false for a request that is not served here. */
static bool parse(struct vp_slot *slot, const struct vp_disk *disk, struct request *request)
{
	struct vp_chain *chain = &slot->chain;
	struct virtio_blk_outhdr header;
	uint64_t sectors = __atomic_load_n(&disk->sectors, __ATOMIC_RELAXED);

	slot->cut = NULL;
	if (chain->writable_bytes == 0 || !copy_header(chain, &header))
		return false;
	request->type = header.type;
	request->sector = header.sector;
	switch (header.type) {
	case VIRTIO_BLK_T_IN:
		find_data_in(slot, request);
		break;
	case VIRTIO_BLK_T_OUT:
		if (disk->readonly || chain->writable_bytes != 1)
			return false;
		find_data_out(slot, request);
		break;
	case VIRTIO_BLK_T_FLUSH:
		request->count = 0;
		return chain->writable_bytes == 1;
	default:
		return false;
	}
	return request->length > 0 && request->length % SECTOR == 0 &&
	       request->length / SECTOR <= sectors &&
	       request->sector <= sectors - request->length / SECTOR &&
	       request->length <= INT32_MAX && request->count <= IOV_MAX;
}

/* Direct I/O takes offsets, lengths and memory that are aligned; Python copies what is not. */
static bool is_aligned(const struct vp_disk *disk, const struct request *request)
{
	uint64_t mask = disk->alignment - 1, bits = request->sector * SECTOR;

	for (uint32_t i = 0; i < request->count; i++)
		bits |= (uintptr_t)request->data[i].iov_base | request->data[i].iov_len;
	return !(bits & mask);
}

/* Writes the status, which is the last byte, and gives the chain back. */
static void complete(struct vp_ring *ring, struct vp_slot *slot)
{
	struct vp_chain *chain = &slot->chain;
	struct iovec *last = &chain->iov[chain->readable + chain->writable - 1];

	restore(slot);
	((char *)last->iov_base)[last->iov_len - 1] = VIRTIO_BLK_S_OK;
	ring->counts.served++;
	vp_ring_complete(ring, slot, chain->writable_bytes > UINT32_MAX ? UINT32_MAX :
							(uint32_t)chain->writable_bytes);
}

static void hand_up(struct vp_ring *ring, struct vp_slot *slot)
{
	restore(slot);
	vp_ring_hand_up(ring, slot);
}

/*
 * Reads what the page cache has.  A call that takes one buffer costs an eighth less than one that takes
 * several, but cannot say that it may not wait: it is for a disk whose last reads all were in the cache,
 * until a turn takes so long that one has waited.  That one keeps only this disk's rings.
 */
static ssize_t read_cached(struct vp_ring *ring, const struct request *request, uint64_t offset)
{
	const struct vp_disk *disk = ring->device;
	const struct iovec *data = request->data;
	ssize_t done;

	if (request->count == 1 && (disk->in_memory || ring->cached_reads >= CACHED_READS))
		return pread(disk->fd, data->iov_base, data->iov_len, offset);
	done = preadv2(disk->fd, data, request->count, offset, disk->in_memory ? 0 : RWF_NOWAIT);
	ring->cached_reads = done == (ssize_t)request->length ? ring->cached_reads + 1 : 0;
	return done;
}

/* Writes to the page cache. */
static ssize_t write_cached(const struct vp_disk *disk, const struct request *request,
			    uint64_t offset)
{
	if (request->count == 1)
		return pwrite(disk->fd, request->data->iov_base, request->data->iov_len, offset);
	return pwritev2(disk->fd, request->data, request->count, offset, 0);
}

/* Does at once what the page cache can; false where that is not all of it. */
static bool execute_at_once(struct vp_ring *ring, const struct request *request)
{
	const struct vp_disk *disk = ring->device;
	uint64_t offset = request->sector * SECTOR;
	ssize_t done;

	if (disk->alignment > 1 || request->type == VIRTIO_BLK_T_FLUSH)
		return false;
	if (request->type == VIRTIO_BLK_T_OUT &&
	    !__atomic_load_n(&disk->writeback, __ATOMIC_RELAXED))
		return false;
	ring->counts.system_calls++;
	if (request->type == VIRTIO_BLK_T_IN)
		done = read_cached(ring, request, offset);
	else
		done = write_cached(disk, request, offset);
	return done == (ssize_t)request->length;
}

/* Has the engine do it; false where it takes no more. */
static bool submit(struct vp_ring *ring, struct vp_slot *slot, const struct request *request)
{
	const struct vp_disk *disk = ring->device;
	struct vp_job job = {
		.fd = disk->fd,
		.iov = request->data,
		.count = request->count,
		.offset = request->sector * SECTOR,
	};

	switch (request->type) {
	case VIRTIO_BLK_T_IN:
		job.operation = VP_READ;
		break;
	case VIRTIO_BLK_T_OUT:
		job.operation = __atomic_load_n(&disk->writeback, __ATOMIC_RELAXED) ?
					VP_WRITE : VP_WRITE_STABLE;
		break;
	default:
		job.operation = VP_FLUSH;
		job.offset = 0;
	}
	slot->expected = request->type == VIRTIO_BLK_T_FLUSH ? 0 : (int32_t)request->length;
	return vp_ring_submit(ring, slot, &job) == 0;
}

static void serve_one(struct vp_ring *ring, struct vp_slot *slot)
{
	const struct vp_disk *disk = ring->device;
	struct request request = { 0 };

	if (!parse(slot, disk, &request)) {
		hand_up(ring, slot);
		return;
	}
	if (execute_at_once(ring, &request)) {
		ring->counts.at_once++;
		complete(ring, slot);
		return;
	}
	if (!is_aligned(disk, &request) || !submit(ring, slot, &request))
		hand_up(ring, slot);
}

static uint32_t blk_serve(struct vp_ring *ring)
{
	uint64_t begin = __builtin_ia32_rdtsc();
	uint32_t served = 0;

	while (served < TURN) {
		struct vp_slot *slot;
		enum vp_pop result = vp_ring_pop(ring, &slot);

		if (result == VP_POP_EMPTY || result == VP_POP_BROKEN)
			break;
		served++;
		if (result == VP_POP_CHAIN)
			serve_one(ring, slot);
		if (served % SHOWN == 0 || !vp_virtq_knows_more(ring->queue))
			vp_virtq_publish(ring->queue);
	}
	if (served > 0 && __builtin_ia32_rdtsc() - begin > WAITED)
		ring->cached_reads = 0;
	return served;
}

/* A job that came short, or failed, is Python's to do again, and to answer. */
static void blk_done(struct vp_ring *ring, struct vp_slot *slot, int32_t result)
{
	if (result == slot->expected)
		complete(ring, slot);
	else
		hand_up(ring, slot);
}

static const struct vp_ring_kind blk_kind = {
	.serve = blk_serve,
	.done = blk_done,
};

/* Makes a ring one of requests to `disk`. */
void vp_ring_serve_blk(struct vp_ring *ring, struct vp_disk *disk)
{
	ring->kind = &blk_kind;
	ring->device = disk;
}

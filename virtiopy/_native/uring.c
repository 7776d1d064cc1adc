/* SPDX-License-Identifier: MIT */
/* An io_uring by its system calls, as its users need few of them. */
#include "uring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine.h"

static int map_rings(struct vp_uring *uring, const struct io_uring_params *params)
{
	size_t sq = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
	size_t cq = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
	char *rings;

	if (!(params->features & IORING_FEAT_SINGLE_MMAP))
		return -ENOSYS;
	uring->rings_size = sq > cq ? sq : cq;
	uring->entries_size = params->sq_entries * sizeof(struct io_uring_sqe);
	rings = mmap(NULL, uring->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED, uring->fd,
		     IORING_OFF_SQ_RING);
	if (rings == MAP_FAILED)
		return -errno;
	uring->rings = rings;
	uring->entries = mmap(NULL, uring->entries_size, PROT_READ | PROT_WRITE, MAP_SHARED,
			      uring->fd, IORING_OFF_SQES);
	if (uring->entries == MAP_FAILED) {
		uring->entries = NULL;
		return -errno;
	}
	uring->sq_head = (uint32_t *)(rings + params->sq_off.head);
	uring->sq_tail = (uint32_t *)(rings + params->sq_off.tail);
	uring->sq_flags = (uint32_t *)(rings + params->sq_off.flags);
	uring->sq_array = (uint32_t *)(rings + params->sq_off.array);
	uring->cq_head = (uint32_t *)(rings + params->cq_off.head);
	uring->cq_tail = (uint32_t *)(rings + params->cq_off.tail);
	uring->events = (struct io_uring_cqe *)(rings + params->cq_off.cqes);
	uring->sq_size = params->sq_entries;
	uring->sq_mask = params->sq_entries - 1;
	uring->cq_mask = params->cq_entries - 1;
	return 0;
}

/* Gives all back; also of one that was opened in part, or not at all: fd is -1. */
void vp_uring_close(struct vp_uring *uring)
{
	if (uring->entries)
		munmap(uring->entries, uring->entries_size);
	if (uring->rings)
		munmap(uring->rings, uring->rings_size);
	if (uring->fd >= 0)
		close(uring->fd);
	uring->entries = NULL;
	uring->rings = NULL;
	uring->fd = -1;
}

/* The best that the kernel has: completions by the thread itself, when it asks (6.1); and less. */
static const uint32_t setups[] = {
	IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
	IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
	0,
};

static int setup(uint32_t depth, uint32_t completions, struct io_uring_params *params)
{
	int fd = -1;

	for (size_t i = 0; i < sizeof(setups) / sizeof(setups[0]); i++) {
		memset(params, 0, sizeof(*params));
		params->flags = setups[i] | IORING_SETUP_CQSIZE;
		params->cq_entries = completions;
		fd = syscall(SYS_io_uring_setup, depth, params);
		if (fd >= 0 || errno != EINVAL)
			break;
	}
	return fd < 0 ? -errno : fd;
}

/*
 * Opens one for the thread that calls, with room for `depth` submissions and so many completions: 0, or
 * -errno.
 */
int vp_uring_open(struct vp_uring *uring, uint32_t depth, uint32_t completions)
{
	struct io_uring_params params;
	int result;

	memset(uring, 0, sizeof(*uring));
	uring->fd = setup(depth, completions, &params);
	if (uring->fd < 0)
		return uring->fd;
	result = map_rings(uring, &params);
	if (result < 0)
		vp_uring_close(uring);
	return result;
}

/* Has the kernel take what was queued, and waits for so many completions; how many it took, or -errno. */
int vp_uring_enter(struct vp_uring *uring, uint32_t wait, uint32_t flags)
{
	int result = syscall(SYS_io_uring_enter, uring->fd, uring->unsubmitted, wait, flags, NULL, 0);

	if (result < 0)
		return -errno;
	uring->unsubmitted -= result;
	return result;
}

/* The next submission queue entry, of zeroes, for vp_uring_queue(); NULL where the queue is full. */
struct io_uring_sqe *vp_uring_entry(struct vp_uring *uring)
{
	uint32_t tail = *uring->sq_tail;
	struct io_uring_sqe *entry;

	if (tail - __atomic_load_n(uring->sq_head, __ATOMIC_ACQUIRE) == uring->sq_size)
		return NULL;
	entry = &uring->entries[tail & uring->sq_mask];
	uring->sq_array[tail & uring->sq_mask] = tail & uring->sq_mask;
	memset(entry, 0, sizeof(*entry));
	return entry;
}

/* Queues the entry: the next enter has the kernel take it. */
void vp_uring_queue(struct vp_uring *uring)
{
	__atomic_store_n(uring->sq_tail, *uring->sq_tail + 1, __ATOMIC_RELEASE);
	uring->unsubmitted++;
}

/* Takes back what was queued and the kernel has not taken. */
void vp_uring_unqueue(struct vp_uring *uring)
{
	__atomic_store_n(uring->sq_tail, *uring->sq_tail - uring->unsubmitted, __ATOMIC_RELEASE);
	uring->unsubmitted = 0;
}

int vp_has_uring(void)
{
	struct io_uring_params params;
	int fd = setup(1, 4, &params);

	if (fd < 0)
		return 0;
	close(fd);
	return 1;
}

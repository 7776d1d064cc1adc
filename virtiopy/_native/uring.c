/* SPDX-License-Identifier: MIT */
/* An engine (engine.h) that is an io_uring; by its system calls, as a worker needs few of them. */
#include "native.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine.h"

/* Of removals of a watch: no caller waits for them. */
#define TAG_NONE UINT64_MAX

struct uring {
	struct vp_engine engine;
	int fd;
	void *rings;
	struct io_uring_sqe *entries;
	size_t rings_size, entries_size;
	uint32_t *sq_head, *sq_tail, *sq_flags, *sq_array;
	uint32_t *cq_head, *cq_tail;
	struct io_uring_cqe *events;
	uint32_t sq_mask, sq_size, cq_mask;
	uint32_t unsubmitted;
};

static struct uring *of(struct vp_engine *engine)
{
	return (struct uring *)engine;
}

static int enter(struct uring *uring, uint32_t wait, uint32_t flags)
{
	int result;

	uring->engine.system_calls++;
	result = syscall(SYS_io_uring_enter, uring->fd, uring->unsubmitted, wait, flags, NULL, 0);
	if (result < 0)
		return -errno;
	uring->unsubmitted -= result;
	return result;
}

static void uring_flush(struct vp_engine *engine)
{
	if (of(engine)->unsubmitted)
		enter(of(engine), 0, 0);
}

static int map_rings(struct uring *uring, const struct io_uring_params *params)
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

static void uring_stop(struct vp_engine *engine)
{
	struct uring *uring = of(engine);

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

static int setup(uint32_t depth, struct io_uring_params *params)
{
	int fd = -1;

	for (size_t i = 0; i < sizeof(setups) / sizeof(setups[0]); i++) {
		memset(params, 0, sizeof(*params));
		params->flags = setups[i] | IORING_SETUP_CQSIZE;
		params->cq_entries = 4 * depth;
		fd = syscall(SYS_io_uring_setup, depth, params);
		if (fd >= 0 || errno != EINVAL)
			break;
	}
	return fd < 0 ? -errno : fd;
}

static int uring_start(struct vp_engine *engine)
{
	struct uring *uring = of(engine);
	struct io_uring_params params;
	int result;

	uring->fd = setup(engine->depth, &params);
	if (uring->fd < 0)
		return uring->fd;
	result = map_rings(uring, &params);
	if (result < 0)
		uring_stop(engine);
	return result;
}

/* The next submission queue entry; NULL where the kernel takes none now. */
static struct io_uring_sqe *next_entry(struct uring *uring)
{
	uint32_t tail = *uring->sq_tail;
	struct io_uring_sqe *entry;

	if (tail - __atomic_load_n(uring->sq_head, __ATOMIC_ACQUIRE) == uring->sq_size) {
		uring_flush(&uring->engine);
		if (tail - __atomic_load_n(uring->sq_head, __ATOMIC_ACQUIRE) == uring->sq_size)
			return NULL;
	}
	entry = &uring->entries[tail & uring->sq_mask];
	uring->sq_array[tail & uring->sq_mask] = tail & uring->sq_mask;
	memset(entry, 0, sizeof(*entry));
	return entry;
}

static void queue_entry(struct uring *uring)
{
	__atomic_store_n(uring->sq_tail, *uring->sq_tail + 1, __ATOMIC_RELEASE);
	uring->unsubmitted++;
}

static int uring_watch(struct vp_engine *engine, int fd, uint64_t tag)
{
	struct io_uring_sqe *entry = next_entry(of(engine));

	if (!entry)
		return -EAGAIN;
	entry->opcode = IORING_OP_POLL_ADD;
	entry->fd = fd;
	entry->poll32_events = POLLIN;
	entry->len = IORING_POLL_ADD_MULTI;
	entry->user_data = tag;
	queue_entry(of(engine));
	/* At once: the file may be closed after this. */
	uring_flush(engine);
	return 0;
}

static void uring_unwatch(struct vp_engine *engine, int fd, uint64_t tag)
{
	struct io_uring_sqe *entry = next_entry(of(engine));

	(void)fd;
	if (!entry)
		return;
	entry->opcode = IORING_OP_POLL_REMOVE;
	entry->addr = tag;
	entry->user_data = TAG_NONE;
	queue_entry(of(engine));
	uring_flush(engine);
}

static int uring_submit(struct vp_engine *engine, const struct vp_job *job)
{
	struct io_uring_sqe *entry = next_entry(of(engine));

	if (!entry)
		return -EAGAIN;
	entry->fd = job->fd;
	entry->user_data = job->tag;
	entry->off = job->offset;
	entry->addr = (uintptr_t)job->iov;
	entry->len = job->count;
	switch (job->operation) {
	case VP_READ:
		entry->opcode = IORING_OP_READV;
		break;
	case VP_WRITE_STABLE:
		entry->rw_flags = RWF_DSYNC;
		/* fall through */
	case VP_WRITE:
		entry->opcode = IORING_OP_WRITEV;
		break;
	case VP_FLUSH:
		entry->opcode = IORING_OP_FSYNC;
		entry->fsync_flags = IORING_FSYNC_DATASYNC;
		break;
	}
	queue_entry(of(engine));
	return 0;
}

static bool uring_ready(const struct vp_engine *engine)
{
	const struct uring *uring = (const struct uring *)engine;

	return __atomic_load_n(uring->cq_tail, __ATOMIC_ACQUIRE) != *uring->cq_head ||
	       __atomic_load_n(uring->sq_flags, __ATOMIC_RELAXED) &
		       (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

static uint32_t uring_take(struct vp_engine *engine, struct vp_event *events, uint32_t room)
{
	struct uring *uring = of(engine);
	uint32_t head = *uring->cq_head, count = 0;

	if (__atomic_load_n(uring->sq_flags, __ATOMIC_RELAXED) &
	    (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))
		enter(uring, 0, IORING_ENTER_GETEVENTS);
	while (count < room && head != __atomic_load_n(uring->cq_tail, __ATOMIC_ACQUIRE)) {
		const struct io_uring_cqe *event = &uring->events[head++ & uring->cq_mask];

		if (event->user_data != TAG_NONE)
			events[count++] = (struct vp_event){
				event->user_data, event->res, !(event->flags & IORING_CQE_F_MORE),
			};
	}
	__atomic_store_n(uring->cq_head, head, __ATOMIC_RELEASE);
	return count;
}

static void uring_wait(struct vp_engine *engine)
{
	enter(of(engine), 1, IORING_ENTER_GETEVENTS);
}

static const struct vp_engine_kind uring_kind = {
	.name = "io_uring",
	.start = uring_start,
	.stop = uring_stop,
	.watch = uring_watch,
	.unwatch = uring_unwatch,
	.submit = uring_submit,
	.flush = uring_flush,
	.ready = uring_ready,
	.take = uring_take,
	.wait = uring_wait,
};

struct vp_engine *vp_uring_new(uint32_t depth)
{
	struct uring *uring = calloc(1, sizeof(*uring));

	if (!uring)
		return NULL;
	uring->engine.kind = &uring_kind;
	uring->engine.depth = depth;
	uring->fd = -1;
	return &uring->engine;
}

int vp_has_uring(void)
{
	struct io_uring_params params;
	int fd = setup(1, &params);

	if (fd < 0)
		return 0;
	close(fd);
	return 1;
}

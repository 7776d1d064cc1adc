/* SPDX-License-Identifier: MIT */
/* An engine (engine.h) that is an io_uring (uring.h). */
#include "native.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "engine.h"
#include "uring.h"

/* Of removals of a watch: no caller waits for them. */
#define TAG_NONE UINT64_MAX

struct uring_engine {
	struct vp_engine engine;
	struct vp_uring uring;
};

static struct vp_uring *of(struct vp_engine *engine)
{
	return &((struct uring_engine *)engine)->uring;
}

static void enter(struct vp_engine *engine, uint32_t wait, uint32_t flags)
{
	engine->system_calls++;
	vp_uring_enter(of(engine), wait, flags);
}

static void uring_flush(struct vp_engine *engine)
{
	if (of(engine)->unsubmitted)
		enter(engine, 0, 0);
}

static void uring_stop(struct vp_engine *engine)
{
	vp_uring_close(of(engine));
}

static int uring_start(struct vp_engine *engine)
{
	return vp_uring_open(of(engine), engine->depth, 4 * engine->depth);
}

/* The next submission queue entry; NULL where the kernel takes none now. */
static struct io_uring_sqe *next_entry(struct vp_engine *engine)
{
	struct io_uring_sqe *entry = vp_uring_entry(of(engine));

	if (entry)
		return entry;
	uring_flush(engine);
	return vp_uring_entry(of(engine));
}

static int uring_watch(struct vp_engine *engine, int fd, uint64_t tag)
{
	struct io_uring_sqe *entry = next_entry(engine);

	if (!entry)
		return -EAGAIN;
	entry->opcode = IORING_OP_POLL_ADD;
	entry->fd = fd;
	entry->poll32_events = POLLIN;
	entry->len = IORING_POLL_ADD_MULTI;
	entry->user_data = tag;
	vp_uring_queue(of(engine));
	/* At once: the file may be closed after this. */
	uring_flush(engine);
	return 0;
}

static void uring_unwatch(struct vp_engine *engine, int fd, uint64_t tag)
{
	struct io_uring_sqe *entry = next_entry(engine);

	(void)fd;
	if (!entry)
		return;
	entry->opcode = IORING_OP_POLL_REMOVE;
	entry->addr = tag;
	entry->user_data = TAG_NONE;
	vp_uring_queue(of(engine));
	uring_flush(engine);
}

static int uring_submit(struct vp_engine *engine, const struct vp_job *job)
{
	struct io_uring_sqe *entry = next_entry(engine);

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
	vp_uring_queue(of(engine));
	return 0;
}

static bool uring_ready(const struct vp_engine *engine)
{
	const struct vp_uring *uring = &((const struct uring_engine *)engine)->uring;

	return __atomic_load_n(uring->cq_tail, __ATOMIC_ACQUIRE) != *uring->cq_head ||
	       __atomic_load_n(uring->sq_flags, __ATOMIC_RELAXED) &
		       (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

static uint32_t uring_take(struct vp_engine *engine, struct vp_event *events, uint32_t room)
{
	struct vp_uring *uring = of(engine);
	uint32_t head = *uring->cq_head, count = 0;

	if (__atomic_load_n(uring->sq_flags, __ATOMIC_RELAXED) &
	    (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))
		enter(engine, 0, IORING_ENTER_GETEVENTS);
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
	enter(engine, 1, IORING_ENTER_GETEVENTS);
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
	struct uring_engine *engine = calloc(1, sizeof(*engine));

	if (!engine)
		return NULL;
	engine->engine.kind = &uring_kind;
	engine->engine.depth = depth;
	engine->uring.fd = -1;
	return &engine->engine;
}

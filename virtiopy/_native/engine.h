/* SPDX-License-Identifier: MIT */
/*
 * What a worker waits for: input and output that would block, and files that become readable.  An
 * io_uring does it (uring.c), or a few threads where the kernel forbids that (pool.c).
 *
 * One thread uses an engine, but for vp_engine_new(), which is called before that thread begins.
 */
#ifndef VIRTIOPY_ENGINE_H
#define VIRTIOPY_ENGINE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum vp_operation { VP_READ, VP_WRITE, VP_WRITE_STABLE, VP_FLUSH };

struct vp_job {
	enum vp_operation operation;
	int fd;
	const struct iovec *iov;
	uint32_t count;
	uint64_t offset;
	uint64_t tag;
};

/*
 * What has happened: a job is done, with this result or -errno; or a watched file is readable, and
 * `ended` says that the watch is over and has to be set again.
 */
struct vp_event {
	uint64_t tag;
	int32_t result;
	bool ended;
};

struct vp_engine;

struct vp_engine_kind {
	const char *name;
	/* On the thread that uses the engine: 0, or -errno. */
	int (*start)(struct vp_engine *engine);
	void (*stop)(struct vp_engine *engine);
	/* Has an event each time that `fd` is written to, and one now where it is readable. */
	int (*watch)(struct vp_engine *engine, int fd, uint64_t tag);
	void (*unwatch)(struct vp_engine *engine, int fd, uint64_t tag);
	/* Begins a job; its iovecs stay until it is done.  -EAGAIN: not now. */
	int (*submit)(struct vp_engine *engine, const struct vp_job *job);
	/* Lets the kernel have what was submitted. */
	void (*flush)(struct vp_engine *engine);
	/* Whether there is an event to take; no system call. */
	bool (*ready)(const struct vp_engine *engine);
	/* Takes up to `room` events. */
	uint32_t (*take)(struct vp_engine *engine, struct vp_event *events, uint32_t room);
	/* Sleeps until there may be one. */
	void (*wait)(struct vp_engine *engine);
};

/* The start of each kind's own struct. */
struct vp_engine {
	const struct vp_engine_kind *kind;
	uint32_t depth;			/* the most jobs at a time */
	uint64_t system_calls;
};

struct vp_engine *vp_uring_new(uint32_t depth);
struct vp_engine *vp_pool_new(uint32_t depth);
void vp_engine_free(struct vp_engine *engine);

/* Whether the kernel lets this process have an io_uring. */
int vp_has_uring(void);

#endif

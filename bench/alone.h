/* SPDX-License-Identifier: MIT */
/*
 * The worker's C part in a program of its own, without Python: its turn is called by the name
 * worker_serve, and there are no engines for what is not in the page cache.
 */
#ifndef ALONE_H
#define ALONE_H

#define serve worker_serve
#define now worker_now
#include "../virtiopy/_native/worker.c"
#undef now
#undef serve

struct vp_engine *vp_uring_new(uint32_t depth)
{
	(void)depth;
	return NULL;
}

struct vp_engine *vp_pool_new(uint32_t depth)
{
	(void)depth;
	return NULL;
}

void vp_engine_free(struct vp_engine *engine)
{
	(void)engine;
}

/* The CPU time of this thread, nanoseconds. */
static uint64_t cpu_time(void)
{
	struct timespec time;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

#endif

/* SPDX-License-Identifier: MIT */
/* An engine (engine.h) for where the kernel forbids io_uring: a few threads, and an epoll. */
#include "native.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine.h"

#define THREADS 4
#define EVENTS 16

/* The tag of the pool's own eventfd: jobs are done. */
#define TAG_DONE UINT64_MAX

struct pool {
	struct vp_engine engine;
	int epoll, eventfd;
	pthread_t threads[THREADS];
	uint32_t thread_count;
	pthread_mutex_t lock;
	pthread_cond_t more;
	bool stopping;
	/* Rings of `depth` entries: jobs to do, and what came of those that are done. */
	struct vp_job *jobs;
	struct vp_event *done;
	uint32_t jobs_head, jobs_tail, done_head, done_tail;
	uint32_t busy;		/* jobs that were submitted and not taken */
	/* What epoll said, and was not taken. */
	struct vp_event seen[EVENTS];
	uint32_t seen_count;
};

static struct pool *of(struct vp_engine *engine)
{
	return (struct pool *)engine;
}

static int32_t do_job(const struct vp_job *job)
{
	ssize_t result = -1;

	switch (job->operation) {
	case VP_READ:
		result = preadv2(job->fd, job->iov, job->count, job->offset, 0);
		break;
	case VP_WRITE:
		result = pwritev2(job->fd, job->iov, job->count, job->offset, 0);
		break;
	case VP_WRITE_STABLE:
		result = pwritev2(job->fd, job->iov, job->count, job->offset, RWF_DSYNC);
		break;
	case VP_FLUSH:
		result = fdatasync(job->fd);
		break;
	}
	return result < 0 ? -errno : result;
}

static void signal_done(struct pool *pool)
{
	const uint64_t one = 1;

	if (write(pool->eventfd, &one, sizeof(one)) < 0) {
		/* Full is as good as written. */
	}
}

static void *work(void *argument)
{
	struct pool *pool = argument;

	pthread_mutex_lock(&pool->lock);
	for (;;) {
		struct vp_job job;
		int32_t result;

		while (pool->jobs_head == pool->jobs_tail && !pool->stopping)
			pthread_cond_wait(&pool->more, &pool->lock);
		if (pool->jobs_head == pool->jobs_tail)
			break;
		job = pool->jobs[pool->jobs_head++ % pool->engine.depth];
		pthread_mutex_unlock(&pool->lock);
		result = do_job(&job);
		pthread_mutex_lock(&pool->lock);
		pool->done[pool->done_tail % pool->engine.depth] =
			(struct vp_event){ job.tag, result, true };
		__atomic_store_n(&pool->done_tail, pool->done_tail + 1, __ATOMIC_RELEASE);
		signal_done(pool);
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

static int pool_watch(struct vp_engine *engine, int fd, uint64_t tag)
{
	/* By edges: each write to an eventfd is one, whether or not it was read. */
	struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.u64 = tag };

	engine->system_calls++;
	return epoll_ctl(of(engine)->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static void pool_unwatch(struct vp_engine *engine, int fd, uint64_t tag)
{
	(void)tag;
	engine->system_calls++;
	epoll_ctl(of(engine)->epoll, EPOLL_CTL_DEL, fd, NULL);
}

static void pool_stop(struct vp_engine *engine)
{
	struct pool *pool = of(engine);

	pthread_mutex_lock(&pool->lock);
	pool->stopping = true;
	pthread_cond_broadcast(&pool->more);
	pthread_mutex_unlock(&pool->lock);
	while (pool->thread_count > 0)
		pthread_join(pool->threads[--pool->thread_count], NULL);
	if (pool->epoll >= 0)
		close(pool->epoll);
	if (pool->eventfd >= 0)
		close(pool->eventfd);
	pool->epoll = pool->eventfd = -1;
	free(pool->jobs);
	free(pool->done);
	pool->jobs = NULL;
	pool->done = NULL;
}

static int pool_start(struct vp_engine *engine)
{
	struct pool *pool = of(engine);
	int result;

	pool->epoll = epoll_create1(EPOLL_CLOEXEC);
	pool->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pool->jobs = calloc(engine->depth, sizeof(*pool->jobs));
	pool->done = calloc(engine->depth, sizeof(*pool->done));
	if (pool->epoll < 0 || pool->eventfd < 0 || !pool->jobs || !pool->done) {
		result = errno ? -errno : -ENOMEM;
		goto failed;
	}
	result = pool_watch(engine, pool->eventfd, TAG_DONE);
	if (result < 0)
		goto failed;
	/* They inherit the worker's mask of signals. */
	while (pool->thread_count < THREADS) {
		result = -pthread_create(&pool->threads[pool->thread_count], NULL, work, pool);
		if (result < 0)
			goto failed;
		pool->thread_count++;
	}
	return 0;
failed:
	pool_stop(engine);
	return result;
}

static int pool_submit(struct vp_engine *engine, const struct vp_job *job)
{
	struct pool *pool = of(engine);

	if (pool->busy == engine->depth)
		return -EAGAIN;
	pool->busy++;
	pthread_mutex_lock(&pool->lock);
	pool->jobs[pool->jobs_tail++ % engine->depth] = *job;
	pthread_cond_signal(&pool->more);
	pthread_mutex_unlock(&pool->lock);
	return 0;
}

static void pool_flush(struct vp_engine *engine)
{
	(void)engine;
}

static bool pool_ready(const struct vp_engine *engine)
{
	const struct pool *pool = (const struct pool *)engine;

	return pool->seen_count > 0 ||
	       __atomic_load_n(&pool->done_tail, __ATOMIC_ACQUIRE) != pool->done_head;
}

static uint32_t pool_take(struct vp_engine *engine, struct vp_event *events, uint32_t room)
{
	struct pool *pool = of(engine);
	uint32_t count = 0;

	while (pool->seen_count > 0 && count < room)
		events[count++] = pool->seen[--pool->seen_count];
	pthread_mutex_lock(&pool->lock);
	while (pool->done_head != pool->done_tail && count < room) {
		events[count++] = pool->done[pool->done_head++ % engine->depth];
		pool->busy--;
	}
	pthread_mutex_unlock(&pool->lock);
	return count;
}

static void pool_wait(struct vp_engine *engine)
{
	struct pool *pool = of(engine);
	struct epoll_event events[EVENTS];
	int count;

	engine->system_calls++;
	count = epoll_wait(pool->epoll, events, EVENTS - pool->seen_count, -1);
	for (int i = 0; i < count; i++) {
		if (events[i].data.u64 == TAG_DONE)
			continue;
		pool->seen[pool->seen_count++] = (struct vp_event){
			events[i].data.u64, events[i].events, false,
		};
	}
}

static const struct vp_engine_kind pool_kind = {
	.name = "threads",
	.start = pool_start,
	.stop = pool_stop,
	.watch = pool_watch,
	.unwatch = pool_unwatch,
	.submit = pool_submit,
	.flush = pool_flush,
	.ready = pool_ready,
	.take = pool_take,
	.wait = pool_wait,
};

struct vp_engine *vp_pool_new(uint32_t depth)
{
	struct pool *pool = calloc(1, sizeof(*pool));

	if (!pool)
		return NULL;
	pool->engine.kind = &pool_kind;
	pool->engine.depth = depth;
	pool->epoll = pool->eventfd = -1;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->more, NULL);
	return &pool->engine;
}

void vp_engine_free(struct vp_engine *engine)
{
	free(engine);
}

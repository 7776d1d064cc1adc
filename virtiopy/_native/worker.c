/* SPDX-License-Identifier: MIT */
/*
 * The thread of a worker, and its life with Python.
 *
 * Python gives it a ring, and has nothing to do with the ring's queue from then on; it asks for the
 * ring back, and waits until the thread has left it.  Between the two the thread looks at the available
 * ring, polls it for a while, asks for kicks, and sleeps.
 */
#include "native.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "worker.h"

#define RINGS 256
#define DEPTH 256	/* jobs of an engine */
#define EVENTS 64

/* How often the thread is reminded to stop that a peer's file keeps, ns. */
#define REMIND (20 * 1000 * 1000)

/*
 * How much longer than it polls the thread may have slept to poll as long again.  To wake it takes a
 * host tens of microseconds, and more under load: a driver that has one request at a time would else be
 * waited for asleep for ever.  It also bounds what polling costs, to a twentieth of a CPU.
 */
#define WORTH_POLLING 20

/* What an event is about, in the upper bits of its tag; below is a pointer. */
#define TAG_WAKE (1ull << 56)
#define TAG_KICK (2ull << 56)
#define TAG_DEVICE (3ull << 56)
#define TAG_JOB (4ull << 56)
#define TAG_MASK (0xffull << 56)

struct vp_worker {
	struct vp_engine *engine;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int wake;		/* written to have the thread look at `attend` and the mailboxes */
	int attention;		/* written to have Python look */
	uint32_t told;		/* it was written, and Python has not looked since */
	uint32_t attend;	/* `pending`, `quit` or a ring's `stopping` was set */
	int signal_number;
	int started;		/* 1, or -errno */
	int tid;
	bool quit;
	struct vp_ring *pending[RINGS];
	uint32_t pending_count;
	/* The thread's own. */
	struct vp_ring *rings[RINGS];
	uint32_t ring_count;
	uint64_t poll_most, poll_now;	/* ns */
	uint64_t system_calls, sleeps;
};

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void signal_eventfd(int fd)
{
	const uint64_t one = 1;

	/* Full is as good as written; and who made it so that it blocks is left by a signal. */
	if (write(fd, &one, sizeof(one)) < 0)
		return;
}

static void tell(struct vp_worker *worker)
{
	if (!__atomic_exchange_n(&worker->told, 1, __ATOMIC_SEQ_CST)) {
		worker->system_calls++;
		signal_eventfd(worker->attention);
	}
}

/* Leaves a chain to Python, as it was popped. */
void vp_ring_hand_up(struct vp_ring *ring, struct vp_slot *slot)
{
	uint32_t tail = ring->up.tail;

	slot->is_up = true;
	ring->counts.handed_up++;
	ring->up.items[tail % VP_SLOTS].slot = slot->index;
	__atomic_store_n(&ring->up.tail, tail + 1, __ATOMIC_RELEASE);
	tell(ring->worker);
}

static void note_reject(struct vp_ring *ring)
{
	uint32_t tail = ring->rejects_tail;

	ring->counts.rejected++;
	if (tail - __atomic_load_n(&ring->rejects_head, __ATOMIC_ACQUIRE) < VP_REJECTS) {
		ring->rejects[tail % VP_REJECTS] = ring->queue->fault;
		__atomic_store_n(&ring->rejects_tail, tail + 1, __ATOMIC_RELEASE);
	}
	tell(ring->worker);
}

/* Takes note of what vp_virtq_pop() has found instead of a chain: a malformed one, or a broken ring. */
void vp_ring_fault(struct vp_ring *ring, enum vp_pop result)
{
	if (result == VP_POP_REJECTED) {
		note_reject(ring);
	} else if (result == VP_POP_BROKEN) {
		__atomic_store_n(&ring->broken, 1, __ATOMIC_RELEASE);
		tell(ring->worker);
		if (ring->error >= 0)
			signal_eventfd(ring->error);
	}
}

static void take_head_only(struct vp_ring *ring, struct vp_slot *slot)
{
	vp_virtq_take(ring->queue, slot->chain.head);
	slot->is_head_only = true;
	slot->chain.readable = slot->chain.writable = 0;
	vp_ring_hand_up(ring, slot);
}

/*
 * Pops the next chain: VP_POP_CHAIN with a slot that holds it.  VP_POP_EMPTY and VP_POP_BROKEN: there
 * is none to be served now.  Else one was rejected, or has more pieces than a slot holds and went up.
 */
enum vp_pop vp_ring_pop(struct vp_ring *ring, struct vp_slot **slot)
{
	struct vp_slot *taken = vp_ring_slot(ring);
	enum vp_pop result;

	*slot = taken;
	if (!taken)
		return VP_POP_EMPTY;
	result = vp_virtq_pop(ring->queue, &taken->chain, taken->iov, VP_PIECES);
	if (result == VP_POP_CHAIN)
		return result;
	if (result == VP_POP_NO_ROOM) {
		take_head_only(ring, taken);
		return result;
	}
	vp_ring_free_slot(ring, taken);
	vp_ring_fault(ring, result);
	return result;
}

/* Has the engine do a job of a slot; -EAGAIN where it takes no more now. */
int vp_ring_submit(struct vp_ring *ring, struct vp_slot *slot, struct vp_job *job)
{
	struct vp_engine *engine = ring->worker->engine;
	int result;

	job->tag = TAG_JOB | (uintptr_t)slot;
	result = engine->kind->submit(engine, job);
	if (result == 0) {
		ring->jobs++;
		ring->counts.jobs++;
	}
	return result;
}

/* Shows the driver what was used, and interrupts it where it wants that. */
void vp_ring_interrupt(struct vp_ring *ring)
{
	vp_virtq_publish(ring->queue);
	if (vp_virtq_should_interrupt(ring->queue) && ring->call >= 0) {
		ring->counts.interrupts++;
		ring->counts.system_calls++;
		signal_eventfd(ring->call);
	}
}

/* The thread */

static bool take_down(struct vp_ring *ring)
{
	uint32_t tail = __atomic_load_n(&ring->down.tail, __ATOMIC_ACQUIRE);
	bool any = ring->down.head != tail;

	while (ring->down.head != tail) {
		uint32_t item = ring->down.head++ % VP_SLOTS;

		vp_ring_complete(ring, &ring->slots[ring->down.items[item].slot],
				 ring->down.items[item].written);
	}
	return any;
}

static bool is_stopping(const struct vp_ring *ring)
{
	return __atomic_load_n(&ring->stopping, __ATOMIC_RELAXED);
}

static bool wants_chains(const struct vp_ring *ring)
{
	return ring->free_count > 0 && (!ring->kind->wants || ring->kind->wants(ring));
}

static bool is_ready(const struct vp_ring *ring)
{
	if (ring->broken || is_stopping(ring))
		return false;
	return (wants_chains(ring) && vp_virtq_has_more(ring->queue)) ||
	       (ring->kind->ready && ring->kind->ready(ring)) ||
	       __atomic_load_n(&ring->down.tail, __ATOMIC_RELAXED) != ring->down.head;
}

static bool serve(struct vp_ring *ring)
{
	bool any = take_down(ring);

	if (!ring->broken && !is_stopping(ring))
		any |= ring->kind->serve(ring) > 0;
	/* Also for what went back without a turn of the kind's: malformed chains, buffers too small. */
	if (any || ring->queue->used_idx != ring->queue->signalled)
		vp_ring_interrupt(ring);
	return any;
}

static void watch(struct vp_worker *worker, int fd, uint64_t tag)
{
	worker->engine->kind->watch(worker->engine, fd, tag);
}

static void begin_ring(struct vp_worker *worker, struct vp_ring *ring)
{
	worker->rings[worker->ring_count++] = ring;
	watch(worker, ring->kick, TAG_KICK | (uintptr_t)ring);
	if (ring->device_fd >= 0)
		watch(worker, ring->device_fd, TAG_DEVICE | (uintptr_t)ring);
	vp_virtq_disable_kicks(ring->queue);
	ring->starting = 0;
	ring->running = 1;
}

/* Leaves a ring, once nothing of it is in an engine; the caller has the lock. */
static void end_ring(struct vp_worker *worker, uint32_t index)
{
	const struct vp_engine_kind *engine = worker->engine->kind;
	struct vp_ring *ring = worker->rings[index];

	if (ring->kind->leave)
		ring->kind->leave(ring);
	take_down(ring);
	vp_ring_interrupt(ring);
	engine->unwatch(worker->engine, ring->kick, TAG_KICK | (uintptr_t)ring);
	if (ring->device_fd >= 0)
		engine->unwatch(worker->engine, ring->device_fd, TAG_DEVICE | (uintptr_t)ring);
	worker->rings[index] = worker->rings[--worker->ring_count];
	ring->running = 0;
	ring->stopping = 0;
	pthread_cond_broadcast(&worker->changed);
}

/* Does what Python has asked for; false where that is to end. */
static bool attend(struct vp_worker *worker)
{
	bool quit;

	/* Before it looks, so that what is asked for meanwhile is looked at again. */
	__atomic_store_n(&worker->attend, 0, __ATOMIC_SEQ_CST);
	pthread_mutex_lock(&worker->lock);
	while (worker->pending_count > 0 && worker->ring_count < RINGS) {
		begin_ring(worker, worker->pending[--worker->pending_count]);
		pthread_cond_broadcast(&worker->changed);
	}
	for (uint32_t i = worker->ring_count; i-- > 0;) {
		struct vp_ring *ring = worker->rings[i];

		/* Else when its last job is done. */
		if (ring->stopping && ring->jobs == 0)
			end_ring(worker, i);
	}
	quit = worker->quit && worker->ring_count == 0;
	pthread_mutex_unlock(&worker->lock);
	return !quit;
}

static bool has_ring(const struct vp_worker *worker, const struct vp_ring *ring)
{
	for (uint32_t i = 0; i < worker->ring_count; i++)
		if (worker->rings[i] == ring)
			return true;
	return false;
}

static void take_event(struct vp_worker *worker, const struct vp_event *event)
{
	uint64_t what = event->tag & TAG_MASK;
	void *pointer = (void *)(uintptr_t)(event->tag & ~TAG_MASK);
	struct vp_ring *ring = pointer;

	if (what == TAG_JOB) {
		struct vp_slot *slot = pointer;

		ring = slot->ring;
		ring->jobs--;
		ring->kind->done(ring, slot, event->result);
		if (ring->jobs == 0 && is_stopping(ring))
			__atomic_store_n(&worker->attend, 1, __ATOMIC_RELAXED);
		return;
	}
	if (what == TAG_WAKE) {
		if (event->ended && event->result >= 0)
			watch(worker, worker->wake, TAG_WAKE);
		return;
	}
	/* Of a ring that was left since, or whose watch is being taken away. */
	if (event->result < 0 || !has_ring(worker, ring))
		return;
	if (event->ended)
		watch(worker, what == TAG_KICK ? ring->kick : ring->device_fd, event->tag);
	if (what == TAG_KICK)
		ring->counts.kicks++;
	else if (ring->kind->readable)
		ring->kind->readable(ring);
}

static bool take_events(struct vp_worker *worker)
{
	struct vp_event events[EVENTS];
	uint32_t count = worker->engine->kind->take(worker->engine, events, EVENTS);

	for (uint32_t i = 0; i < count; i++)
		take_event(worker, &events[i]);
	for (uint32_t i = 0; i < worker->ring_count; i++)
		vp_ring_interrupt(worker->rings[i]);
	return count > 0;
}

static bool is_asked(const struct vp_worker *worker)
{
	return __atomic_load_n(&worker->attend, __ATOMIC_ACQUIRE);
}

static bool has_work(const struct vp_worker *worker)
{
	for (uint32_t i = 0; i < worker->ring_count; i++)
		if (is_ready(worker->rings[i]))
			return true;
	return worker->engine->kind->ready(worker->engine) || is_asked(worker);
}

/* Looks for work without asking for kicks; less and less long where there is none. */
static bool poll_for_work(struct vp_worker *worker)
{
	uint64_t end;

	if (worker->poll_now == 0)
		return false;
	end = now() + worker->poll_now;
	do {
		for (int i = 0; i < 16; i++) {
			if (has_work(worker)) {
				worker->poll_now = worker->poll_most;
				return true;
			}
			__builtin_ia32_pause();
		}
	} while (now() < end);
	worker->poll_now /= 2;
	if (worker->poll_now < 1000)
		worker->poll_now = 0;
	return false;
}

static void sleep_until_work(struct vp_worker *worker)
{
	uint64_t begin;
	bool more = false;

	for (uint32_t i = 0; i < worker->ring_count; i++) {
		struct vp_ring *ring = worker->rings[i];

		if (!ring->broken && !is_stopping(ring) && wants_chains(ring))
			more |= vp_virtq_enable_kicks(ring->queue);
	}
	if (!more && !has_work(worker)) {
		worker->sleeps++;
		begin = now();
		worker->engine->kind->wait(worker->engine);
		if (now() - begin < WORTH_POLLING * worker->poll_most)
			worker->poll_now = worker->poll_most;
	}
	for (uint32_t i = 0; i < worker->ring_count; i++)
		if (!worker->rings[i]->broken)
			vp_virtq_disable_kicks(worker->rings[i]->queue);
}

static void work(struct vp_worker *worker)
{
	for (;;) {
		bool any = false;

		if (is_asked(worker) && !attend(worker))
			return;
		if (worker->engine->kind->ready(worker->engine))
			any |= take_events(worker);
		for (uint32_t i = 0; i < worker->ring_count; i++)
			any |= serve(worker->rings[i]);
		worker->engine->kind->flush(worker->engine);
		if (!any && !poll_for_work(worker))
			sleep_until_work(worker);
	}
}

static void *run(void *argument)
{
	struct vp_worker *worker = argument;
	struct vp_engine *engine = worker->engine;
	int result = engine->kind->start(engine);

	if (result == 0)
		watch(worker, worker->wake, TAG_WAKE);
	pthread_mutex_lock(&worker->lock);
	worker->tid = syscall(SYS_gettid);
	worker->started = result < 0 ? result : 1;
	pthread_cond_broadcast(&worker->changed);
	pthread_mutex_unlock(&worker->lock);
	if (result == 0) {
		work(worker);
		engine->kind->stop(engine);
	}
	return NULL;
}

/* For Python */

static int start_thread(struct vp_worker *worker)
{
	sigset_t all, before;
	int result;

	/* The program's signals are the program's; but faults, and what takes the thread out of a call. */
	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGILL);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGSYS);
	sigdelset(&all, worker->signal_number);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	result = -pthread_create(&worker->thread, NULL, run, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (result < 0)
		return result;
	pthread_setname_np(worker->thread, "virtio-worker");
	pthread_mutex_lock(&worker->lock);
	while (worker->started == 0)
		pthread_cond_wait(&worker->changed, &worker->lock);
	result = worker->started;
	pthread_mutex_unlock(&worker->lock);
	if (result < 0)
		pthread_join(worker->thread, NULL);
	return result;
}

static void free_worker(struct vp_worker *worker)
{
	vp_engine_free(worker->engine);
	if (worker->wake >= 0)
		close(worker->wake);
	free(worker);
}

/*
 * A thread that works rings, once it has some.  It writes `attention` where Python is to look, polls for
 * up to `poll_us`, and is taken out of a system call by `signal_number`, which has a handler.
 */
struct vp_worker *vp_worker_new(int attention, uint32_t poll_us, int use_uring, int signal_number,
				int *error)
{
	struct vp_worker *worker = calloc(1, sizeof(*worker));
	pthread_condattr_t attributes;
	int result;

	if (!worker) {
		*error = ENOMEM;
		return NULL;
	}
	pthread_mutex_init(&worker->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&worker->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	worker->attention = attention;
	worker->signal_number = signal_number;
	worker->poll_most = worker->poll_now = poll_us * 1000ull;
	worker->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	worker->engine = use_uring ? vp_uring_new(DEPTH) : vp_pool_new(DEPTH);
	if (worker->wake < 0 || !worker->engine)
		result = errno ? -errno : -ENOMEM;
	else
		result = start_thread(worker);
	if (result < 0) {
		*error = -result;
		free_worker(worker);
		return NULL;
	}
	return worker;
}

static void ask(struct vp_worker *worker)
{
	__atomic_store_n(&worker->attend, 1, __ATOMIC_SEQ_CST);
	signal_eventfd(worker->wake);
}

/* Waits for the thread to change something; the caller has the lock. */
static void wait_for_change(struct vp_worker *worker)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += REMIND;
	if (until.tv_nsec >= 1000000000) {
		until.tv_nsec -= 1000000000;
		until.tv_sec++;
	}
	/*
	 * An interrupt's eventfd is the other side's too: it can be full, and made to block.  A signal
	 * takes the thread out of that write.
	 */
	if (pthread_cond_timedwait(&worker->changed, &worker->lock, &until) == ETIMEDOUT)
		pthread_kill(worker->thread, worker->signal_number);
}

/* Ends the thread; it has no rings any more. */
void vp_worker_free(struct vp_worker *worker)
{
	pthread_mutex_lock(&worker->lock);
	worker->quit = true;
	ask(worker);
	pthread_mutex_unlock(&worker->lock);
	pthread_join(worker->thread, NULL);
	free_worker(worker);
}

/* Leaves a ring to the thread. */
void vp_worker_start_ring(struct vp_worker *worker, struct vp_ring *ring)
{
	pthread_mutex_lock(&worker->lock);
	ring->worker = worker;
	ring->starting = 1;
	worker->pending[worker->pending_count++] = ring;
	ask(worker);
	while (ring->starting)
		wait_for_change(worker);
	pthread_mutex_unlock(&worker->lock);
}

/* Takes a ring back: when this returns, the thread does not touch it, and no job does. */
void vp_worker_stop_ring(struct vp_worker *worker, struct vp_ring *ring)
{
	pthread_mutex_lock(&worker->lock);
	if (ring->running) {
		__atomic_store_n(&ring->stopping, 1, __ATOMIC_RELAXED);
		ask(worker);
		while (ring->running)
			wait_for_change(worker);
	}
	pthread_mutex_unlock(&worker->lock);
}

/* Says that Python looks now: what comes from here on is told again. */
void vp_worker_look(struct vp_worker *worker)
{
	__atomic_store_n(&worker->told, 0, __ATOMIC_SEQ_CST);
}

uint64_t vp_worker_system_calls(const struct vp_worker *worker)
{
	return worker->system_calls + worker->engine->system_calls;
}

uint64_t vp_worker_sleeps(const struct vp_worker *worker)
{
	return worker->sleeps;
}

int vp_worker_tid(const struct vp_worker *worker)
{
	return worker->tid;
}

/* A ring of `queue`, with the eventfds of its notifications; `call` may be -1.  NULL: no memory. */
struct vp_ring *vp_ring_new(struct vp_virtq *queue, int kick, int call)
{
	struct vp_ring *ring = calloc(1, sizeof(*ring));
	size_t size;

	if (!ring)
		return NULL;
	ring->slot_count = queue->size + queue->unfinished_count;
	if (ring->slot_count > VP_SLOTS)
		ring->slot_count = VP_SLOTS;
	size = ring->slot_count * sizeof(struct vp_slot);
	/* Of zeroes, which are memory when they are used. */
	ring->slots = mmap(NULL, size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ring->slots == MAP_FAILED) {
		free(ring);
		return NULL;
	}
	ring->queue = queue;
	ring->kick = kick;
	ring->call = call;
	ring->error = -1;
	ring->device_fd = -1;
	while (ring->free_count < ring->slot_count) {
		uint32_t index = ring->slot_count - 1 - ring->free_count;

		ring->free[ring->free_count++] = index;
	}
	return ring;
}

void vp_ring_free(struct vp_ring *ring)
{
	munmap(ring->slots, ring->slot_count * sizeof(struct vp_slot));
	free(ring);
}

/* Takes the next chain that was handed up: the index of its slot, or -1. */
int vp_ring_take(struct vp_ring *ring)
{
	uint32_t head = ring->up.head;

	if (head == __atomic_load_n(&ring->up.tail, __ATOMIC_ACQUIRE))
		return -1;
	ring->up.head = head + 1;
	return ring->up.items[head % VP_SLOTS].slot;
}

struct vp_slot *vp_ring_slot_at(struct vp_ring *ring, uint32_t index)
{
	return &ring->slots[index];
}

/* Gives a chain back that was handed up, while the thread has the ring. */
void vp_ring_give(struct vp_ring *ring, uint32_t index, uint32_t written)
{
	uint32_t tail = ring->down.tail;

	ring->down.items[tail % VP_SLOTS].slot = index;
	ring->down.items[tail % VP_SLOTS].written = written;
	__atomic_store_n(&ring->down.tail, tail + 1, __ATOMIC_RELEASE);
	signal_eventfd(ring->worker->wake);
}

/* The same, when the ring is Python's again; to be published. */
void vp_ring_finish(struct vp_ring *ring, uint32_t index, uint32_t written)
{
	vp_ring_complete(ring, &ring->slots[index], written);
}

/* Tells of the next malformed chain; 0 where there is none. */
int vp_ring_next_reject(struct vp_ring *ring, struct vp_fault *fault)
{
	uint32_t head = ring->rejects_head;

	if (head == __atomic_load_n(&ring->rejects_tail, __ATOMIC_ACQUIRE))
		return 0;
	*fault = ring->rejects[head % VP_REJECTS];
	__atomic_store_n(&ring->rejects_head, head + 1, __ATOMIC_RELEASE);
	return 1;
}

/* SPDX-License-Identifier: MIT */
/*
 * What Python cannot say itself: ioctls with kernel structs, memory fences,
 * and a way to take a thread out of KVM_RUN. cffi releases the GIL around
 * each of these calls. Functions return a value >= 0, or -errno.
 */
#include "native.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int vp_ioctl(int fd, unsigned long request, uintptr_t argument)
{
	int result = ioctl(fd, request, argument);

	return result < 0 ? -errno : result;
}

/* Pairs with the driver's barrier before its update of idx (2.7.13.3.1). */
uint16_t vp_load_acquire(const uint16_t *location)
{
	return __atomic_load_n(location, __ATOMIC_ACQUIRE);
}

/* What was written to the ring before is visible before idx is (2.7.8.2). */
void vp_store_release(uint16_t *location, uint16_t value)
{
	__atomic_store_n(location, value, __ATOMIC_RELEASE);
}

/* A store before is visible before a load after: only a full fence does that. */
void vp_memory_barrier(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/*
 * Taking a thread out of KVM_RUN without a signal.
 *
 * An io_uring completes a poll in task work of the thread that submitted it,
 * and the kernel takes a thread with pending task work out of guest mode (and
 * out of an in-kernel HLT): KVM_RUN returns EINTR. So a thread which has a
 * multishot poll on an eventfd is stopped by a write to that eventfd. No
 * handler, no signal number to share with the program we are embedded in.
 */
struct vp_wake {
	int ring;
	uint32_t *cq_head;
	const uint32_t *cq_tail;
	void *queues;
	size_t queues_size;
};

static int submit_poll(struct vp_wake *wake, const struct io_uring_params *params,
		       int eventfd)
{
	size_t entries_size = params->sq_entries * sizeof(struct io_uring_sqe);
	uint32_t *sq_tail, *sq_array;
	struct io_uring_sqe *entry;
	int submitted;

	entry = mmap(NULL, entries_size, PROT_READ | PROT_WRITE, MAP_SHARED,
		     wake->ring, IORING_OFF_SQES);
	if (entry == MAP_FAILED)
		return -errno;
	memset(entry, 0, sizeof(*entry));
	entry->opcode = IORING_OP_POLL_ADD;
	entry->fd = eventfd;
	entry->poll32_events = POLLIN;
	entry->len = IORING_POLL_ADD_MULTI;

	sq_array = (uint32_t *)((char *)wake->queues + params->sq_off.array);
	sq_tail = (uint32_t *)((char *)wake->queues + params->sq_off.tail);
	sq_array[0] = 0;
	__atomic_store_n(sq_tail, 1, __ATOMIC_RELEASE);
	submitted = syscall(SYS_io_uring_enter, wake->ring, 1, 0, 0, NULL, 0);
	if (submitted < 0)
		submitted = -errno;
	munmap(entry, entries_size);
	return submitted == 1 ? 0 : submitted == 0 ? -EAGAIN : submitted;
}

/* Makes a write to eventfd interrupt the calling thread. NULL: see *error. */
struct vp_wake *vp_wake_new(int eventfd, int *error)
{
	struct io_uring_params params = { 0 };
	struct vp_wake *wake = calloc(1, sizeof(*wake));

	if (!wake) {
		*error = ENOMEM;
		return NULL;
	}
	wake->ring = syscall(SYS_io_uring_setup, 1, &params);
	if (wake->ring < 0) {
		*error = errno;
		free(wake);
		return NULL;
	}
	if (!(params.features & IORING_FEAT_SINGLE_MMAP)) {
		*error = ENOSYS;
		goto close_ring;
	}
	wake->queues_size = params.cq_off.cqes +
			    params.cq_entries * sizeof(struct io_uring_cqe);
	if (params.sq_off.array + params.sq_entries * sizeof(uint32_t) > wake->queues_size)
		wake->queues_size = params.sq_off.array +
				    params.sq_entries * sizeof(uint32_t);
	wake->queues = mmap(NULL, wake->queues_size, PROT_READ | PROT_WRITE,
			    MAP_SHARED, wake->ring, IORING_OFF_SQ_RING);
	if (wake->queues == MAP_FAILED) {
		*error = errno;
		goto close_ring;
	}
	wake->cq_head = (uint32_t *)((char *)wake->queues + params.cq_off.head);
	wake->cq_tail = (uint32_t *)((char *)wake->queues + params.cq_off.tail);
	*error = -submit_poll(wake, &params, eventfd);
	if (*error == 0)
		return wake;
	munmap(wake->queues, wake->queues_size);
close_ring:
	close(wake->ring);
	free(wake);
	return NULL;
}

/* Takes the completions out: a full completion queue would end the poll. */
void vp_wake_drain(struct vp_wake *wake)
{
	uint32_t tail = __atomic_load_n(wake->cq_tail, __ATOMIC_ACQUIRE);

	__atomic_store_n(wake->cq_head, tail, __ATOMIC_RELEASE);
}

void vp_wake_free(struct vp_wake *wake)
{
	munmap(wake->queues, wake->queues_size);
	close(wake->ring);
	free(wake);
}

static void do_nothing(int signal_number)
{
	(void)signal_number;
}

/* Where io_uring is forbidden: a signal that only interrupts system calls. */
int vp_ignore_signal(int signal_number)
{
	struct sigaction action = { .sa_handler = do_nothing };

	return sigaction(signal_number, &action, NULL) < 0 ? -errno : 0;
}

int vp_fallocate(int fd, int mode, int64_t offset, int64_t length)
{
	int result;

	do {
		result = fallocate(fd, mode, offset, length);
	} while (result < 0 && errno == EINTR);
	return result < 0 ? -errno : 0;
}

/* A shared lock on one byte, held by the open file (fcntl_locking(2), OFD). */
int vp_ofd_lock(int fd, int64_t offset)
{
	struct flock lock = {
		.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = offset, .l_len = 1,
	};

	return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* 1: another open file holds a lock on this byte. */
int vp_ofd_is_locked(int fd, int64_t offset)
{
	struct flock lock = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = offset, .l_len = 1,
	};

	if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
		return -errno;
	return lock.l_type != F_UNLCK;
}

/* Maps `length` bytes of a file, to be read only, in place of what is mapped at `address`: at once. */
int vp_map_over(uintptr_t address, size_t length, int fd, int64_t offset)
{
	void *mapped = mmap((void *)address, length, PROT_READ, MAP_SHARED | MAP_FIXED, fd, offset);

	return mapped == MAP_FAILED ? -errno : 0;
}

/*
 * Memory that another process gave us can be taken away while we read it: it truncates the file, and
 * the next access raises SIGBUS, wherever in Python that is.  A guard makes the lost page one of
 * zeroes that is nobody's, and says that it did, so that only the connection ends.
 */
struct vp_guard {
	uintptr_t start, end;
	size_t page;
	int eventfd;
	uint32_t hit;
};

#define GUARDS 512

static struct vp_guard *guards[GUARDS];
static struct sigaction sigbus_before;
static pthread_once_t sigbus_once = PTHREAD_ONCE_INIT;
static pthread_mutex_t guards_mutex = PTHREAD_MUTEX_INITIALIZER;

static void replace_page(int signal_number, siginfo_t *info, void *context)
{
	const uint64_t one = 1;
	uintptr_t address = (uintptr_t)info->si_addr;
	int error = errno;

	for (int i = 0; i < GUARDS; i++) {
		struct vp_guard *guard = __atomic_load_n(&guards[i], __ATOMIC_ACQUIRE);
		void *page;

		if (!guard || address < guard->start || address >= guard->end)
			continue;
		page = (void *)(address & ~(uintptr_t)(guard->page - 1));
		if (mmap(page, guard->page, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			break;
		if (!__atomic_exchange_n(&guard->hit, 1, __ATOMIC_ACQ_REL) &&
		    write(guard->eventfd, &one, sizeof(one)) < 0) {
			/* Full is as good as written. */
		}
		errno = error;
		return;
	}
	errno = error;
	if (sigbus_before.sa_flags & SA_SIGINFO) {
		sigbus_before.sa_sigaction(signal_number, info, context);
	} else if (sigbus_before.sa_handler != SIG_DFL && sigbus_before.sa_handler != SIG_IGN) {
		sigbus_before.sa_handler(signal_number);
	} else {
		/* The access is repeated, and is the end. */
		signal(SIGBUS, SIG_DFL);
	}
}

static void catch_sigbus(void)
{
	struct sigaction action = {
		.sa_sigaction = replace_page, .sa_flags = SA_SIGINFO | SA_ONSTACK,
	};

	sigaction(SIGBUS, &action, &sigbus_before);
}

/* Guards a mapping, whose pages are of `page` bytes; `eventfd` is written at the first loss. NULL: no room. */
struct vp_guard *vp_guard_new(uintptr_t start, size_t length, size_t page, int eventfd)
{
	struct vp_guard *guard = calloc(1, sizeof(*guard));

	if (!guard)
		return NULL;
	guard->start = start;
	guard->end = start + length;
	guard->page = page;
	guard->eventfd = eventfd;
	pthread_once(&sigbus_once, catch_sigbus);
	pthread_mutex_lock(&guards_mutex);
	for (int i = 0; i < GUARDS; i++) {
		if (guards[i])
			continue;
		__atomic_store_n(&guards[i], guard, __ATOMIC_RELEASE);
		pthread_mutex_unlock(&guards_mutex);
		return guard;
	}
	pthread_mutex_unlock(&guards_mutex);
	free(guard);
	return NULL;
}

int vp_guard_hit(const struct vp_guard *guard)
{
	return __atomic_load_n(&guard->hit, __ATOMIC_ACQUIRE);
}

/* Once the mapping is gone, and nobody reads it. */
void vp_guard_free(struct vp_guard *guard)
{
	pthread_mutex_lock(&guards_mutex);
	for (int i = 0; i < GUARDS; i++)
		if (guards[i] == guard)
			__atomic_store_n(&guards[i], NULL, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&guards_mutex);
	free(guard);
}

/* Marks the pages from first to last as dirty; others mark and clear bits meanwhile. */
void vp_log_pages(uint8_t *log, uint64_t first, uint64_t last)
{
	for (uint64_t page = first; page <= last; page++)
		__atomic_fetch_or(&log[page / 8], 1 << page % 8, __ATOMIC_SEQ_CST);
}

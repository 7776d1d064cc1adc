/* SPDX-License-Identifier: MIT */
/*
 * Memory that another process gave us can be taken away while we read it: it truncates the file, and
 * the next access raises SIGBUS, wherever in Python that is.  A guard makes the lost page one of
 * zeroes that is of no file, and says that it did, so that only the connection ends.
 */
#include "native.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

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

/* Once the mapping is gone, and is not read. */
void vp_guard_free(struct vp_guard *guard)
{
	pthread_mutex_lock(&guards_mutex);
	for (int i = 0; i < GUARDS; i++)
		if (guards[i] == guard)
			__atomic_store_n(&guards[i], NULL, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&guards_mutex);
	free(guard);
}

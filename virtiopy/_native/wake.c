/* SPDX-License-Identifier: MIT */
/*
 * Taking a thread out of KVM_RUN without a signal.
 *
 * An io_uring completes a poll in task work of the thread that submitted it,
 * and the kernel takes a thread with pending task work out of guest mode (and
 * out of an in-kernel HLT): KVM_RUN returns EINTR. So a thread which has a
 * multishot poll on an eventfd is stopped by a write to that eventfd. No
 * handler, no signal number to share with the program we are embedded in.
 */
#include "native.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

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

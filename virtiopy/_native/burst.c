/* SPDX-License-Identifier: MIT */
/* Several writes to one file by one system call. */
#include "burst.h"

#include <errno.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Opens it for a file that does not wait (O_NONBLOCK): 0, or -errno where there is no io_uring. */
int vp_burst_open(struct vp_burst *burst, int fd)
{
	int result = vp_uring_open(&burst->uring, VP_BURST, VP_BURST);

	if (result < 0)
		return result;
	burst->count = 0;
	burst->rw_flags = RWF_NOWAIT;
	burst->waited = false;
	/* The file is looked up once, and not for each write. */
	if (syscall(SYS_io_uring_register, burst->uring.fd, IORING_REGISTER_FILES, &fd, 1) < 0) {
		result = -errno;
		vp_uring_close(&burst->uring);
	}
	return result;
}

void vp_burst_close(struct vp_burst *burst)
{
	vp_uring_close(&burst->uring);
}

/* Adds a write of `data`, which stays until vp_burst_write(); there are VP_BURST at most. */
void vp_burst_add(struct vp_burst *burst, void *data, uint32_t length)
{
	burst->writes[burst->count++] = (struct iovec){ data, length };
}

static void queue(struct vp_burst *burst)
{
	for (uint32_t i = 0; i < burst->count; i++) {
		struct io_uring_sqe *entry = vp_uring_entry(&burst->uring);

		entry->opcode = IORING_OP_WRITE;
		entry->flags = IOSQE_FIXED_FILE;
		entry->addr = (uintptr_t)burst->writes[i].iov_base;
		entry->len = burst->writes[i].iov_len;
		entry->rw_flags = burst->rw_flags;
		entry->user_data = i;
		vp_uring_queue(&burst->uring);
	}
}

static uint32_t take_results(struct vp_burst *burst, int32_t *results)
{
	struct vp_uring *uring = &burst->uring;
	uint32_t head = *uring->cq_head, count = 0;

	for (; head != __atomic_load_n(uring->cq_tail, __ATOMIC_ACQUIRE); head++, count++) {
		const struct io_uring_cqe *event = &uring->events[head & uring->cq_mask];

		results[event->user_data] = event->res;
	}
	__atomic_store_n(uring->cq_head, head, __ATOMIC_RELEASE);
	return count;
}

/* Has the kernel do what was queued; what it did not take is -EAGAIN. */
static void submit(struct vp_burst *burst, int32_t *results)
{
	struct vp_uring *uring = &burst->uring;
	uint32_t taken = 0, done;

	for (uint32_t i = 0; i < burst->count; i++)
		results[i] = -EAGAIN;
	while (uring->unsubmitted > 0) {
		int result = vp_uring_enter(uring, 0, 0);

		if (result > 0)
			taken += result;
		else if (result != -EINTR)
			break;
	}
	vp_uring_unqueue(uring);
	for (done = take_results(burst, results); done < taken; done += take_results(burst, results)) {
		burst->waited = true;
		vp_uring_enter(uring, 1, IORING_ENTER_GETEVENTS);
	}
}

/*
 * Writes what was added, in that order; results: of each what write() returns, or -errno.
 *
 * None waits for room.  A file that knows RWF_NOWAIT has to be told so by it, as io_uring waits in spite
 * of its O_NONBLOCK; for another O_NONBLOCK suffices.
 */
void vp_burst_write(struct vp_burst *burst, int32_t *results)
{
	queue(burst);
	submit(burst, results);
	if (burst->rw_flags && results[0] == -EOPNOTSUPP) {
		/* So were all. */
		burst->rw_flags = 0;
		queue(burst);
		submit(burst, results);
	}
	burst->count = 0;
}

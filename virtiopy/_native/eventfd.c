/* SPDX-License-Identifier: MIT */
/*
 * Eventfds whose other end is not trusted.
 *
 * O_NONBLOCK belongs to the open file, and so to every process that has it: a
 * peer may fill the counter of an eventfd, or empty it, and clear the flag, at
 * any moment. A write or a read would wait for ever then, and a poll before it
 * leaves a gap.
 *
 * Reading has RWF_NOWAIT, which is the call's own. Writing has nothing like it;
 * but the kernel signals an eventfd without waiting when an asynchronous read
 * (io_submit(2), IOCB_FLAG_RESFD) completes, and the counter stays full if it
 * is. The read is one of no bytes, of a file of our own, and completes at once.
 */
#include "native.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Completions that the kernel keeps until they are taken out, all at once. */
#define COMPLETIONS 128

static pthread_once_t once = PTHREAD_ONCE_INIT;
static aio_context_t context;
static int empty_file = -1;

/* A context belongs to the address space: a child process makes its own. */
static void set_up(void);

static void forget(void)
{
	static const pthread_once_t again = PTHREAD_ONCE_INIT;

	once = again;
	context = 0;
	if (empty_file >= 0)
		close(empty_file);
	empty_file = -1;
}

static void set_up(void)
{
	empty_file = memfd_create("virtiopy-signal", MFD_CLOEXEC);
	if (empty_file < 0 || syscall(SYS_io_setup, COMPLETIONS, &context) < 0)
		context = 0;
	pthread_atfork(NULL, NULL, forget);
}

/* For a kernel without io_submit: the gap between the two is what it has. */
static int signal_with_a_gap(int fd)
{
	struct pollfd room = { .fd = fd, .events = POLLOUT };

	if (poll(&room, 1, 0) < 0)
		return -errno;
	if (!(room.revents & POLLOUT))
		return 0;
	return eventfd_write(fd, 1) < 0 && errno != EAGAIN ? -errno : 0;
}

static void take_completions_out(void)
{
	struct io_event events[COMPLETIONS];
	struct timespec now = { 0 };

	syscall(SYS_io_getevents, context, 0, COMPLETIONS, events, &now);
}

/*
 * Adds 1 to the counter of an eventfd, and never waits: one that is full stays
 * full. Returns 0, or -EINVAL for a file that is no eventfd, or another error.
 */
int vp_eventfd_signal(int fd)
{
	struct iocb read = {
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_flags = IOCB_FLAG_RESFD,
		.aio_resfd = fd,
	};
	struct iocb *reads[] = { &read };
	int attempt;

	pthread_once(&once, set_up);
	if (!context)
		return signal_with_a_gap(fd);
	read.aio_fildes = empty_file;
	for (attempt = 0; attempt < 100; attempt++) {
		if (syscall(SYS_io_submit, context, 1, reads) == 1)
			return 0;
		if (errno != EAGAIN)
			return -errno;
		take_completions_out();
	}
	return -EAGAIN;
}

/*
 * Takes the counter of an eventfd, and never waits: 0 where it is 0. Returns
 * how many bytes were read, as other files have an end, or an error.
 */
int vp_eventfd_take(int fd, uint64_t *count)
{
	struct iovec buffer = { .iov_base = count, .iov_len = sizeof(*count) };
	struct pollfd filled = { .fd = fd, .events = POLLIN };
	ssize_t got;

	*count = 0;
	got = preadv2(fd, &buffer, 1, -1, RWF_NOWAIT);
	if (got < 0 && errno == EOPNOTSUPP) {
		/* A kernel before 5.13, or another kind of file: see above. */
		if (poll(&filled, 1, 0) < 1)
			return -EAGAIN;
		got = read(fd, count, sizeof(*count));
	}
	return got < 0 ? -errno : (int)got;
}

/* SPDX-License-Identifier: MIT */
/* An io_uring, as this process has it in memory.  One thread uses it, the one that has opened it. */
#ifndef VIRTIOPY_URING_H
#define VIRTIOPY_URING_H

#include <linux/io_uring.h>
#include <stddef.h>
#include <stdint.h>

struct vp_uring {
	int fd;
	void *rings;
	struct io_uring_sqe *entries;
	size_t rings_size, entries_size;
	uint32_t *sq_head, *sq_tail, *sq_flags, *sq_array;
	uint32_t *cq_head, *cq_tail;
	struct io_uring_cqe *events;
	uint32_t sq_mask, sq_size, cq_mask;
	uint32_t unsubmitted;	/* queued, and not yet the kernel's */
};

int vp_uring_open(struct vp_uring *uring, uint32_t depth, uint32_t completions);
void vp_uring_close(struct vp_uring *uring);
int vp_uring_enter(struct vp_uring *uring, uint32_t wait, uint32_t flags);
struct io_uring_sqe *vp_uring_entry(struct vp_uring *uring);
void vp_uring_queue(struct vp_uring *uring);
void vp_uring_unqueue(struct vp_uring *uring);

#endif

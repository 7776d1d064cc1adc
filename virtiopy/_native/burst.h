/* SPDX-License-Identifier: MIT */
/*
 * Several writes to one file by one system call: a call for each costs more than half of what a tap
 * takes for a short frame.  One thread uses it, the one that has opened it.
 */
#ifndef VIRTIOPY_BURST_H
#define VIRTIOPY_BURST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "uring.h"

/* The most writes of a burst. */
#define VP_BURST 32

struct vp_burst {
	struct vp_uring uring;
	struct iovec writes[VP_BURST];
	uint32_t count;
	int rw_flags;
	bool waited;		/* the kernel did not do one at once: a burst is no gain */
};

int vp_burst_open(struct vp_burst *burst, int fd);
void vp_burst_close(struct vp_burst *burst);
void vp_burst_add(struct vp_burst *burst, void *data, uint32_t length);
void vp_burst_write(struct vp_burst *burst, int32_t *results);

#endif

/* SPDX-License-Identifier: MIT */
/* Requests to be counted and timed: batches of `depth`, one kick and one interrupt each. */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include "virtio.h"

#define WORKLOAD_DEPTH_MAX	128

struct workload {
	struct virtq *vq;	/* idle */
	uint64_t requests;
	uint32_t depth;		/* requests in flight */
	void *context;
	/* Add request number `slot` of a batch to the queue; false when it has no room. */
	bool (*submit)(void *context, unsigned int slot);
	/* Whether a used buffer is as it should be. */
	bool (*check)(void *context, void *token, uint32_t len);
};

/* The option as a depth, 1 unless it is given; bails out when it is more than `most`. */
uint32_t workload_depth(const char *option, uint32_t most);

/*
 * Runs the requests between the marks of runtime.h, and says after that what they took:
 *
 *	# measured requests=N kicks=K suppressed=S interrupts=I
 *
 * Before, an empty measurement shows what the marks themselves cost.  Returns how many requests
 * were done, all of them unless the device failed.
 */
uint64_t workload_run(const struct workload *workload);

#endif

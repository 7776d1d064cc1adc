/* SPDX-License-Identifier: MIT */
/*
 * vhost-user (QEMU's docs/interop/vhost-user): the header of a message, its payloads, and the
 * shared area that tracks what is in flight.  No header of the system's has them.
 */
#ifndef VIRTIOPY_VHOST_USER_H
#define VIRTIOPY_VHOST_USER_H

#include <stdint.h>

struct vhost_user_header {
	uint32_t request, flags, size;
};

struct vhost_user_region {
	uint64_t guest_address, size, user_address, mmap_offset;
};

struct vhost_user_memory {
	uint32_t num_regions, padding;
	struct vhost_user_region regions[];
};

struct vhost_user_single_region {
	uint64_t padding;
	struct vhost_user_region region;
};

struct vhost_user_log {
	uint64_t size, offset;
};

struct vhost_user_config {
	uint32_t offset, size, flags;
};

struct vhost_user_inflight {
	uint64_t mmap_size, mmap_offset;
	uint16_t num_queues, queue_size;
};

struct vhost_user_desc_state {
	uint8_t inflight, padding[5];
	uint16_t next;
	uint64_t counter;
};

struct vhost_user_queue_region {
	uint64_t features;
	uint16_t version, desc_num, last_batch_head, used_idx;
	struct vhost_user_desc_state desc[];
};

#endif

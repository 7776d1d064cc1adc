/* SPDX-License-Identifier: MIT */
/* Guest memory as C sees it: where each region of guest physical addresses is in this process. */
#ifndef VIRTIOPY_MEMORY_H
#define VIRTIOPY_MEMORY_H

#include <stddef.h>
#include <stdint.h>

struct vp_region {
	uint64_t guest, size;
	char *host;
};

/* In ascending order, none overlapping another. */
struct vp_memory {
	uint32_t count;
	struct vp_region regions[];
};

/*
 * The region that the guest physical address is in, or NULL.  `hint` is where the last search ended:
 * neighbours in a chain are mostly neighbours in memory.
 */
static inline const struct vp_region *vp_region_of(const struct vp_memory *memory, uint32_t *hint,
						   uint64_t address)
{
	const struct vp_region *region = &memory->regions[*hint];
	uint32_t low = 0, high = memory->count;

	if (*hint < memory->count && address - region->guest < region->size)
		return region;
	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		region = &memory->regions[middle];
		if (address < region->guest) {
			high = middle;
		} else if (address - region->guest < region->size) {
			*hint = middle;
			return region;
		} else {
			low = middle + 1;
		}
	}
	return NULL;
}

/* Host memory of `length` bytes that lie in one region, or NULL. */
char *vp_memory_pointer(const struct vp_memory *memory, uint64_t address, uint64_t length);

/* Whether all `length` bytes are memory, in however many regions. */
int vp_memory_covers(const struct vp_memory *memory, uint64_t address, uint64_t length);

/* Copies out of guest memory what lies in however many regions; 0 where it is not all memory. */
int vp_memory_read(const struct vp_memory *memory, uint64_t address, void *to, uint64_t length);

/* The guest physical address of host memory that one of the regions has; UINT64_MAX for other memory. */
uint64_t vp_memory_guest(const struct vp_memory *memory, const void *host);

#endif

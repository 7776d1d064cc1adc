/* SPDX-License-Identifier: MIT */
/* What is seldom asked of guest memory: see memory.h for what each chain asks. */
#include "memory.h"

#include <string.h>

char *vp_memory_pointer(const struct vp_memory *memory, uint64_t address, uint64_t length)
{
	uint32_t hint = 0;
	const struct vp_region *region = vp_region_of(memory, &hint, address);

	if (!region || length > region->size - (address - region->guest))
		return NULL;
	return region->host + (address - region->guest);
}

int vp_memory_read(const struct vp_memory *memory, uint64_t address, void *to, uint64_t length)
{
	uint32_t hint = 0;

	while (length > 0) {
		const struct vp_region *region = vp_region_of(memory, &hint, address);
		uint64_t offset, count;

		if (!region)
			return 0;
		offset = address - region->guest;
		count = region->size - offset < length ? region->size - offset : length;
		if (to) {
			memcpy(to, region->host + offset, count);
			to = (char *)to + count;
		}
		length -= count;
		address += count;
		if (address == 0 && length > 0)
			return 0;	/* Beyond the last address there is no first one again. */
	}
	return 1;
}

int vp_memory_covers(const struct vp_memory *memory, uint64_t address, uint64_t length)
{
	return vp_memory_read(memory, address, NULL, length);
}

uint64_t vp_memory_guest(const struct vp_memory *memory, const void *host)
{
	for (uint32_t i = 0; i < memory->count; i++) {
		const struct vp_region *region = &memory->regions[i];
		uint64_t offset = (uintptr_t)host - (uintptr_t)region->host;

		if (offset < region->size)
			return region->guest + offset;
	}
	return UINT64_MAX;
}

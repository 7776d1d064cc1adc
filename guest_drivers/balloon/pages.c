// SPDX-License-Identifier: MIT
/* Pages to give away, and how to know what became of them. */
#include "balloon/test.h"

#define WORDS	(PAGE_SIZE / sizeof(uint64_t))
#define MARK	UINT64_C(0xba11000000000000)

uint32_t pages_option(uint32_t otherwise)
{
	return (uint32_t)cmdline_number("balloon.pages", otherwise);
}

void *pages_alloc(uint32_t pages)
{
	return memory_alloc((size_t)pages * PAGE_SIZE, PAGE_SIZE);
}

void pages_mark(void *first, uint32_t pages)
{
	for (uint64_t *page = first; pages--; page += WORDS) {
		page[0] = MARK | (uint64_t)page;
		page[WORDS - 1] = MARK | (uint64_t)page;
	}
}

static bool pages_hold(const uint64_t *page, uint32_t pages, uint64_t mark, uint64_t mask)
{
	for (; pages--; page += WORDS) {
		const uint64_t expected = mark | ((uint64_t)page & mask);

		if (page[0] == expected && page[WORDS - 1] == expected)
			continue;
		tap_note("page %p: expected 0x%llx, got 0x%llx and 0x%llx", (const void *)page,
			 (unsigned long long)expected, (unsigned long long)page[0],
			 (unsigned long long)page[WORDS - 1]);
		return false;
	}
	return true;
}

bool pages_marked(const void *first, uint32_t pages)
{
	return pages_hold(first, pages, MARK, UINT64_MAX);
}

bool pages_usable(void *first, uint32_t pages)
{
	if (cmdline_number("balloon.zeroed", 0) && !pages_hold(first, pages, 0, 0))
		return false;
	pages_mark(first, pages);
	return pages_marked(first, pages);
}

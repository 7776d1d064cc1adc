/* SPDX-License-Identifier: MIT */
/* The log of the pages of guest memory that were written, for who migrates the guest. */
#include "native.h"

/* Marks the pages from first to last as dirty; others mark and clear bits meanwhile. */
void vp_log_pages(uint8_t *log, uint64_t first, uint64_t last)
{
	for (uint64_t page = first; page <= last; page++)
		__atomic_fetch_or(&log[page / 8], 1 << page % 8, __ATOMIC_SEQ_CST);
}

/* SPDX-License-Identifier: MIT */
/* Loads and stores of ring indexes, in the order that the driver counts on. */
#include "native.h"

/* Pairs with the driver's barrier before its update of idx (2.7.13.3.1). */
uint16_t vp_load_acquire(const uint16_t *location)
{
	return __atomic_load_n(location, __ATOMIC_ACQUIRE);
}

/* What was written to the ring before is visible before idx is (2.7.8.2). */
void vp_store_release(uint16_t *location, uint16_t value)
{
	__atomic_store_n(location, value, __ATOMIC_RELEASE);
}

/* A store before is visible before a load after: only a full fence does that. */
void vp_memory_barrier(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

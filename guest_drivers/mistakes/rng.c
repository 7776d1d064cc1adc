// SPDX-License-Identifier: MIT
/* An entropy device (5.4): one read. */
#include "mistakes.h"
#include "runtime.h"

static uint8_t bytes[64];

void rng_run(struct driver *driver)
{
	const struct element element = { bytes, sizeof(bytes), !makes(RNG_READABLE) };

	if (!driver_start(driver, BIT(VIRTIO_F_EVENT_IDX), 1))
		return;
	ring_request(driver, &driver->rings[0], &element, 1);
	driver_stop(driver);
}

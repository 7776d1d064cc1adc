// SPDX-License-Identifier: MIT
/* A balloon (5.5): statistics, and a page given away and taken back. */
#include "cpu.h"
#include "mistakes.h"
#include "runtime.h"
#include "virtio_balloon.h"

#define INFLATEQ	0
#define DEFLATEQ	1
#define STATSQ		2
#define PAGES		4

static uint8_t pages[PAGES * BALLOON_PAGE_SIZE] __attribute__((aligned(BALLOON_PAGE_SIZE)));
static uint32_t pfns[PAGES];
static struct virtio_balloon_stat statistics[BALLOON_STATS];

static void supply_statistics(struct driver *driver)
{
	struct ring *ring = &driver->rings[STATSQ];
	const uint32_t size = makes(BALLOON_STATS_SIZE) ? 25 : sizeof(statistics);
	const struct element element = { statistics, size, false };

	for (unsigned int i = 0; i < BALLOON_STATS; i++)
		statistics[i].tag = (uint16_t)i;
	ring_publish(driver, ring, ring_fill(ring, 0, &element, 1));
	/* The device has the buffer until it asks for newer statistics. */
	if (makes(ALTERED))
		ring->desc[0].len = 1;
	if (makes(BALLOON_STATS_TWO))
		ring_publish(driver, ring, ring_fill(ring, 1, &element, 1));
}

static void write_actual(struct driver *driver, uint32_t actual)
{
	if (!makes(BALLOON_NO_ACTUAL))
		mmio_write32(driver->base + VIRTIO_MMIO_CONFIG
			     + offsetof(struct virtio_balloon_config, actual), actual);
}

static void exchange(struct driver *driver, uint32_t wanted)
{
	const uint32_t count = MIN(wanted, PAGES);
	const struct element element = { pfns, count * sizeof(pfns[0]), false };
	struct ring *inflate = &driver->rings[INFLATEQ];
	struct ring *deflate = &driver->rings[DEFLATEQ];

	for (unsigned int i = 0; i < PAGES; i++)
		pfns[i] = (uint32_t)((uint64_t)&pages[i * BALLOON_PAGE_SIZE] / BALLOON_PAGE_SIZE);
	if (!count)
		return;
	if (makes(BALLOON_EARLY_DEFLATE)) {
		ring_request(driver, deflate, &element, 1);
		return;
	}
	if (ring_request(driver, inflate, &element, 1))
		write_actual(driver, count);
}

void balloon_run(struct driver *driver)
{
	const uint64_t features = BIT(VIRTIO_BALLOON_F_MUST_TELL_HOST)
				  | BIT(VIRTIO_BALLOON_F_STATS_VQ) | BIT(VIRTIO_F_EVENT_IDX);

	if (!driver_start(driver, features, 3))
		return;
	if (!makes(BALLOON_NO_STATS) && driver->features & BIT(VIRTIO_BALLOON_F_STATS_VQ))
		supply_statistics(driver);
	exchange(driver, reg_read(driver, VIRTIO_MMIO_CONFIG));
	driver_stop(driver);
}

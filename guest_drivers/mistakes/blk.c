// SPDX-License-Identifier: MIT
/* A block device (5.2): one request of each type. */
#include "cpu.h"
#include "mistakes.h"
#include "runtime.h"
#include "virtio_blk.h"

#define ZONED_OFFSET	64	/* of zoned in the configuration space (5.2.4) */
#define DATA_SIZE	4096

static struct virtio_blk_header header;
static struct virtio_blk_discard_write_zeroes segment;
static uint8_t data[DATA_SIZE] __attribute__((aligned(4096)));
static uint8_t status;

/* 2.5.1: capacity has 64 bits. */
static uint64_t read_capacity(const struct driver *driver)
{
	uint32_t before, low, high;

	do {
		before = makes(TORN_CONFIG) ? 0 : reg_read(driver, VIRTIO_MMIO_CONFIG_GENERATION);
		low = reg_read(driver, VIRTIO_MMIO_CONFIG);
		high = reg_read(driver, VIRTIO_MMIO_CONFIG + 4);
	} while (!makes(TORN_CONFIG) && reg_read(driver, VIRTIO_MMIO_CONFIG_GENERATION) != before);
	return (uint64_t)high << 32 | low;
}

static uint64_t features(void)
{
	uint64_t wanted = BIT(VIRTIO_F_INDIRECT_DESC) | BIT(VIRTIO_F_EVENT_IDX)
			  | BIT(VIRTIO_BLK_F_RO) | BIT(VIRTIO_BLK_F_FLUSH)
			  | BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_WRITE_ZEROES)
			  | BIT(VIRTIO_BLK_F_SEG_MAX);

	if (makes(INDIRECT_UNASKED))
		wanted &= ~BIT(VIRTIO_F_INDIRECT_DESC);
	if (makes(NO_KICK) || makes(KICK_FIRST) || makes(FLAGS_2))
		wanted &= ~BIT(VIRTIO_F_EVENT_IDX);
	if (makes(RING_RESET_NOT_READ) || makes(RING_RESET_BARE) || !makes_any())
		wanted |= BIT(VIRTIO_F_RING_RESET);
	return wanted;
}

/* One request, of `len` bytes of data; false when the device did not answer. */
static bool request(struct driver *driver, uint32_t type, uint64_t sector, void *memory,
		    uint32_t len, bool writable)
{
	struct element elements[3] = { { &header, sizeof(header), false } };
	unsigned int count = 1;

	header = (struct virtio_blk_header){ .type = type, .sector = sector };
	status = BLK_STATUS_NONE;
	if (len)
		elements[count++] = (struct element){ memory, len, writable };
	elements[count++] = (struct element){ &status, sizeof(status), true };
	return ring_request(driver, &driver->rings[0], elements, count);
}

static bool transfers(struct driver *driver, uint64_t capacity)
{
	const uint32_t len = makes(BLK_ODD) ? 100 : sizeof(data);

	return request(driver, VIRTIO_BLK_T_IN, makes(BLK_BEYOND) ? capacity : 0, data, len, true)
	       && request(driver, VIRTIO_BLK_T_OUT, 0, data, sizeof(data), false);
}

static bool flushes(struct driver *driver)
{
	if (makes(BLK_NO_FLUSH) || !(driver->features & BIT(VIRTIO_BLK_F_FLUSH)))
		return true;
	return request(driver, VIRTIO_BLK_T_FLUSH, makes(BLK_FLUSH_SECTOR) ? 8 : 0, data,
		       makes(BLK_FLUSH_DATA) ? SECTOR_SIZE : 0, true);
}

static bool ranges(struct driver *driver)
{
	const uint32_t size = makes(BLK_DISCARD_SIZE) ? 12 : sizeof(segment);

	segment = (struct virtio_blk_discard_write_zeroes){ .num_sectors = 8 };
	if (makes(BLK_DISCARD_UNMAP))
		segment.flags = VIRTIO_BLK_WRITE_ZEROES_UNMAP;
	if (driver->features & BIT(VIRTIO_BLK_F_DISCARD)
	    && !request(driver, VIRTIO_BLK_T_DISCARD, 0, &segment, size, false))
		return false;
	segment.flags = 0;
	return !(driver->features & BIT(VIRTIO_BLK_F_WRITE_ZEROES))
	       || request(driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment, sizeof(segment), false);
}

static bool identity(struct driver *driver)
{
	return request(driver, VIRTIO_BLK_T_GET_ID, 0, data,
		       makes(BLK_ID_SIZE) ? 16 : VIRTIO_BLK_ID_BYTES, true);
}

static void config_mistakes(const struct driver *driver)
{
	const uint64_t config = driver->base + VIRTIO_MMIO_CONFIG;

	if (makes(OPTIONAL_FIELD))
		(void)mmio_read32(config + ZONED_OFFSET);
	if (makes(CONFIG_WIDTH))
		(void)mmio_read8(config + offsetof(struct virtio_blk_config, seg_max));
}

void blk_run(struct driver *driver)
{
	struct ring *ring = &driver->rings[0];
	uint64_t capacity;

	if (!driver_start(driver, features(), 1))
		return;
	capacity = read_capacity(driver);
	config_mistakes(driver);
	if (transfers(driver, capacity) && flushes(driver) && ranges(driver) && identity(driver)
	    && makes(INDEX_BACK)) {
		WRITE_ONCE(ring->avail->idx, (uint16_t)(ring->next - 1));
		reg_write(driver, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
	}
	driver_stop(driver);
}

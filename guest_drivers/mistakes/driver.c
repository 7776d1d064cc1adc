// SPDX-License-Identifier: MIT
/* Initialization (3.1) over the registers of virtio-mmio (4.2), with the mistakes of both. */
#include "cpu.h"
#include "mistakes.h"
#include "runtime.h"

#define VIRTIO_MMIO_SHM_SEL		0x0ac
#define VIRTIO_MMIO_SHM_LEN_LOW		0x0b0
#define VIRTIO_MMIO_QUEUE_RESET		0x0c0
#define UNDEFINED_REGISTER		0x0e0
#define STATUS_SUSPEND			16
#define RESERVED_FEATURE		49
#define EVENTS	(VIRTIO_MMIO_INT_USED_BUFFER | VIRTIO_MMIO_INT_CONFIG_CHANGE)
#define UNDEFINED_EVENT			8

uint32_t reg_read(const struct driver *driver, uint32_t reg)
{
	return mmio_read32(driver->base + reg);
}

void reg_write(const struct driver *driver, uint32_t reg, uint32_t value)
{
	mmio_write32(driver->base + reg, value);
}

static void add_status(struct driver *driver, uint32_t bits)
{
	reg_write(driver, VIRTIO_MMIO_STATUS, reg_read(driver, VIRTIO_MMIO_STATUS) | bits);
}

bool driver_identify(struct driver *driver)
{
	if (!makes(NO_MAGIC) && reg_read(driver, VIRTIO_MMIO_MAGIC_VALUE) != VIRTIO_MMIO_MAGIC)
		return false;
	if (reg_read(driver, VIRTIO_MMIO_VERSION) != VIRTIO_MMIO_VERSION_2)
		return false;
	driver->id = makes(NO_DEVICE_ID) ? VIRTIO_ID_BLOCK
					 : reg_read(driver, VIRTIO_MMIO_DEVICE_ID);
	return driver->id != VIRTIO_ID_RESERVED;
}

static void handle_interrupt(void *context)
{
	struct driver *driver = context;
	uint32_t events = EVENTS;

	if (!makes(NO_INTERRUPT_STATUS))
		events = reg_read(driver, VIRTIO_MMIO_INTERRUPT_STATUS) & EVENTS;
	if (makes(ACK_UNDEFINED))
		events |= UNDEFINED_EVENT;
	if (events && !makes(NO_ACK))
		reg_write(driver, VIRTIO_MMIO_INTERRUPT_ACK, events);
}

static void reset(struct driver *driver)
{
	reg_write(driver, VIRTIO_MMIO_STATUS, 0);
	while (!makes(RESET_NOT_READ) && reg_read(driver, VIRTIO_MMIO_STATUS))
		cpu_relax();
}

static uint64_t offered_features(struct driver *driver)
{
	uint64_t low, high;

	if (makes(FEATURES_NOT_READ))
		return BIT(VIRTIO_F_VERSION_1);
	if (!makes(NO_FEATURES_SEL))
		reg_write(driver, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	low = reg_read(driver, VIRTIO_MMIO_DEVICE_FEATURES);
	reg_write(driver, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	high = reg_read(driver, VIRTIO_MMIO_DEVICE_FEATURES);
	return high << 32 | low;
}

static uint64_t choose_features(struct driver *driver, uint64_t wanted)
{
	const uint64_t offered = offered_features(driver);
	uint64_t features = offered & (wanted | BIT(VIRTIO_F_VERSION_1));

	if (makes(NO_VERSION_1))
		features &= ~BIT(VIRTIO_F_VERSION_1);
	if (makes(NOT_OFFERED) || makes(REFUSED_GOES_ON))
		features |= BIT(VIRTIO_F_ACCESS_PLATFORM);
	if (makes(RESERVED))
		features |= BIT(RESERVED_FEATURE);
	if (makes(SR_IOV))
		features |= BIT(VIRTIO_F_SR_IOV);
	return features;
}

static void write_features(struct driver *driver)
{
	if (!makes(NO_DRIVER_SEL))
		reg_write(driver, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	reg_write(driver, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)driver->features);
	reg_write(driver, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	reg_write(driver, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(driver->features >> 32));
}

static void set_up_queues(struct driver *driver, unsigned int queues)
{
	for (unsigned int i = 0; i < queues; i++) {
		driver->rings[i].index = (uint16_t)i;
		ring_set_up(driver, &driver->rings[i]);
	}
}

/* Accesses that 4.2.2.2 forbids, one each, which change nothing. */
static void stray(struct driver *driver)
{
	if (makes(UNDEFINED))
		(void)reg_read(driver, UNDEFINED_REGISTER);
	if (makes(WRITES_READ_ONLY))
		reg_write(driver, VIRTIO_MMIO_DEVICE_ID, driver->id);
	if (makes(READS_WRITE_ONLY))
		(void)reg_read(driver, VIRTIO_MMIO_QUEUE_NOTIFY);
	if (makes(BYTE_ACCESS))
		(void)mmio_read8(driver->base + VIRTIO_MMIO_STATUS);
	if (makes(HALF_ACCESS))
		mmio_write16(driver->base + VIRTIO_MMIO_QUEUE_SEL, 0);
	if (makes(SHARED_MEMORY)) {
		reg_write(driver, VIRTIO_MMIO_SHM_SEL, 0);
		(void)reg_read(driver, VIRTIO_MMIO_SHM_LEN_LOW);
	}
	if (makes(BEYOND_CONFIG))
		(void)mmio_read32(driver->base + VIRTIO_MMIO_CONFIG + 0x400);
}

/* 3.1.1, steps 5 and 6: false when the device did not take the features. */
static bool features_ok(struct driver *driver)
{
	if (makes(NO_FEATURES_OK))
		return true;
	add_status(driver, VIRTIO_STATUS_FEATURES_OK);
	if (makes(NO_REREAD))
		return true;
	if (reg_read(driver, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_FEATURES_OK)
		return true;
	if (makes(REFUSED_GOES_ON))
		return true;
	add_status(driver, VIRTIO_STATUS_FAILED);
	return false;
}

static void greet(struct driver *driver)
{
	if (!makes(NO_RESET))
		reset(driver);
	if (makes(RESET_NOT_READ))
		reg_write(driver, VIRTIO_MMIO_STATUS, VIRTIO_STATUS_ACKNOWLEDGE);
	if (makes(DRIVER_FIRST))
		add_status(driver, VIRTIO_STATUS_DRIVER);
	if (!makes(NO_ACKNOWLEDGE))
		add_status(driver, VIRTIO_STATUS_ACKNOWLEDGE);
	if (!makes(NO_DRIVER))
		add_status(driver, VIRTIO_STATUS_DRIVER);
}

static void driver_ok(struct driver *driver)
{
	if (makes(CLEARED_BIT))
		reg_write(driver, VIRTIO_MMIO_STATUS, VIRTIO_STATUS_DRIVER
			  | VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK);
	else if (makes(NO_REREAD))
		/* Nothing is read from Status between FEATURES_OK and DRIVER_OK. */
		reg_write(driver, VIRTIO_MMIO_STATUS, VIRTIO_STATUS_ACKNOWLEDGE
			  | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK
			  | VIRTIO_STATUS_DRIVER_OK);
	else
		add_status(driver, VIRTIO_STATUS_DRIVER_OK);
}

bool driver_start(struct driver *driver, uint64_t features, unsigned int queues)
{
	greet(driver);
	if (makes(FAILED_GOES_ON)) {
		add_status(driver, VIRTIO_STATUS_FAILED);
		add_status(driver, VIRTIO_STATUS_ACKNOWLEDGE);
	}
	driver->features = choose_features(driver, features);
	if (makes(DEPENDENCY))
		driver->features |= BIT(7);	/* VIRTIO_NET_F_GUEST_TSO4 */
	if (makes(EARLY_CONFIG_WRITE))
		mmio_write8(driver->base + VIRTIO_MMIO_CONFIG + 32, 1);	/* blk's writeback */
	if (makes(BLK_EARLY_WRITEBACK))
		(void)mmio_read8(driver->base + VIRTIO_MMIO_CONFIG + 32);
	write_features(driver);
	if (makes(EARLY_QUEUES))
		set_up_queues(driver, queues);
	if (!features_ok(driver))
		return false;
	if (makes(LATE_FEATURE))
		write_features(driver);
	stray(driver);
	irq_register(driver->gsi, handle_interrupt, driver);
	if (!makes(EARLY_QUEUES) && !makes(LATE_QUEUES))
		set_up_queues(driver, queues);
	if (makes(EARLY_KICK))
		reg_write(driver, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
	driver_ok(driver);
	if (makes(LATE_QUEUES))
		set_up_queues(driver, queues);
	if (makes(SUSPEND))
		add_status(driver, STATUS_SUSPEND);
	irq_enable();
	return true;
}

static void reset_queue(struct driver *driver)
{
	reg_write(driver, VIRTIO_MMIO_QUEUE_SEL, 0);
	reg_write(driver, VIRTIO_MMIO_QUEUE_RESET, 1);
	while (!makes(RING_RESET_NOT_READ) && reg_read(driver, VIRTIO_MMIO_QUEUE_RESET))
		cpu_relax();
	if (makes(RING_RESET_BARE))
		reg_write(driver, VIRTIO_MMIO_QUEUE_READY, 1);
	else
		ring_set_up(driver, &driver->rings[0]);
}

/* 4.2.2.2: QueueReady is read back after it was written 0. */
static void disable_queue(struct driver *driver)
{
	reg_write(driver, VIRTIO_MMIO_QUEUE_SEL, 0);
	reg_write(driver, VIRTIO_MMIO_QUEUE_READY, 0);
	while (!makes(READY_NOT_READ) && reg_read(driver, VIRTIO_MMIO_QUEUE_READY))
		cpu_relax();
}

void driver_stop(struct driver *driver)
{
	if (driver->features & BIT(VIRTIO_F_RING_RESET))
		reset_queue(driver);
	if (makes(READY_CHANGED)) {
		reg_write(driver, VIRTIO_MMIO_QUEUE_SEL, 0);
		reg_write(driver, VIRTIO_MMIO_QUEUE_DESC_LOW, 0);
	}
	disable_queue(driver);
	reset(driver);
}

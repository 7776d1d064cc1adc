// SPDX-License-Identifier: MIT
/* Virtio over MMIO (4.2): discovery, registers, initialization, interrupts. */
#include <stdatomic.h>

#include "cpu.h"
#include "runtime.h"
#include "virtio.h"

#define KIBI	1024u
#define MEBI	(KIBI * KIBI)

static uint32_t read_register(const struct virtio_device *device, enum virtio_mmio_register reg)
{
	return mmio_read32(device->base + reg);
}

static void write_register(const struct virtio_device *device, enum virtio_mmio_register reg,
			   uint32_t value)
{
	mmio_write32(device->base + reg, value);
}

/* ----- 4.2.1: discovery, in Linux's words: virtio_mmio.device=<size>@<base>:<irq>[:<id>] ----- */

static uint64_t size_unit(const char **text)
{
	switch (**text) {
	case 'K':
	case 'k':
		(*text)++;
		return KIBI;
	case 'M':
	case 'm':
		(*text)++;
		return MEBI;
	default:
		return 1;
	}
}

static bool parse_device(const char *text, struct virtio_device *device)
{
	uint64_t gsi;

	if (!parse_number(&text, &device->size))
		return false;
	device->size *= size_unit(&text);
	if (*text++ != '@' || !parse_number(&text, &device->base))
		return false;
	if (*text++ != ':' || !parse_number(&text, &gsi) || gsi > UINT32_MAX)
		return false;
	device->gsi = (uint32_t)gsi;
	return *text == '\0' || *text == ':';
}

/* 4.2.3.1.1: nothing but these registers is touched before they prove good. */
static void identify(struct virtio_device *device)
{
	device->magic = read_register(device, VIRTIO_MMIO_MAGIC_VALUE);
	if (device->magic != VIRTIO_MMIO_MAGIC)
		return;
	device->version = read_register(device, VIRTIO_MMIO_VERSION);
	if (device->version != VIRTIO_MMIO_VERSION_2)
		return;
	device->device_id = read_register(device, VIRTIO_MMIO_DEVICE_ID);
	if (device->device_id == VIRTIO_ID_RESERVED)
		return;
	device->vendor_id = read_register(device, VIRTIO_MMIO_VENDOR_ID);
	device->offered = virtio_offered_features(device);
}

unsigned int virtio_discover(struct virtio_device *devices, unsigned int max)
{
	unsigned int count = 0, position = 0;
	const char *text;

	while ((text = cmdline_next("virtio_mmio.device", &position))) {
		if (count == max)
			tap_bail_out("more than %u virtio devices", max);
		devices[count] = (struct virtio_device){ .slot = count };
		if (!parse_device(text, &devices[count]))
			tap_bail_out("virtio_mmio.device=%s is not <size>@<base>:<irq>", text);
		identify(&devices[count++]);
	}
	return count;
}

bool virtio_is_usable(const struct virtio_device *device)
{
	return device->magic == VIRTIO_MMIO_MAGIC && device->version == VIRTIO_MMIO_VERSION_2
	       && device->device_id != VIRTIO_ID_RESERVED;
}

/* ----- features ----- */

bool virtio_has_feature(const struct virtio_device *device, unsigned int bit)
{
	return device->negotiated & BIT(bit);
}

uint64_t virtio_offered_features(const struct virtio_device *device)
{
	uint32_t low, high;

	write_register(device, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	low = read_register(device, VIRTIO_MMIO_DEVICE_FEATURES);
	write_register(device, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	high = read_register(device, VIRTIO_MMIO_DEVICE_FEATURES);
	return (uint64_t)high << 32 | low;
}

static void write_driver_features(const struct virtio_device *device, uint64_t features)
{
	write_register(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	write_register(device, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)features);
	write_register(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	write_register(device, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(features >> 32));
}

/* ----- 3.1.1: initialization ----- */

uint32_t virtio_status(const struct virtio_device *device)
{
	return read_register(device, VIRTIO_MMIO_STATUS);
}

/* 2.1.1: the driver must not clear a status bit. */
static void add_status(const struct virtio_device *device, uint32_t bits)
{
	write_register(device, VIRTIO_MMIO_STATUS, virtio_status(device) | bits);
}

void virtio_reset(struct virtio_device *device)
{
	write_register(device, VIRTIO_MMIO_STATUS, 0);
	/* 2.4.2: complete when it reads back 0. */
	while (virtio_status(device))
		cpu_relax();
	device->negotiated = 0;
	device->needs_reset = false;
}

bool virtio_negotiate(struct virtio_device *device, uint64_t features)
{
	virtio_reset(device);
	add_status(device, VIRTIO_STATUS_ACKNOWLEDGE);
	add_status(device, VIRTIO_STATUS_DRIVER);
	write_driver_features(device, features);
	add_status(device, VIRTIO_STATUS_FEATURES_OK);
	/* 3.1.1, step 6: the device clears the bit if it does not like the choice. */
	if (!(virtio_status(device) & VIRTIO_STATUS_FEATURES_OK))
		return false;
	device->negotiated = features;
	return true;
}

void virtio_driver_ok(struct virtio_device *device)
{
	add_status(device, VIRTIO_STATUS_DRIVER_OK);
}

void virtio_fail(struct virtio_device *device)
{
	add_status(device, VIRTIO_STATUS_FAILED);
}

/* ----- 4.2.3.2: virtqueue configuration ----- */

uint32_t virtio_queue_size_max(const struct virtio_device *device, uint16_t queue)
{
	write_register(device, VIRTIO_MMIO_QUEUE_SEL, queue);
	return read_register(device, VIRTIO_MMIO_QUEUE_SIZE_MAX);
}

bool virtio_queue_ready(const struct virtio_device *device, uint16_t queue)
{
	write_register(device, VIRTIO_MMIO_QUEUE_SEL, queue);
	return read_register(device, VIRTIO_MMIO_QUEUE_READY);
}

static void write_address(const struct virtio_device *device, enum virtio_mmio_register low,
			  const volatile void *address)
{
	write_register(device, low, (uint32_t)(uint64_t)address);
	write_register(device, low + sizeof(uint32_t), (uint32_t)((uint64_t)address >> 32));
}

void virtio_enable_queue(const struct virtq *vq)
{
	const struct virtio_device *device = vq->device;

	if (virtio_queue_ready(device, vq->index))
		tap_bail_out("queue %u is in use before it was set up (4.2.3.2)", vq->index);
	write_register(device, VIRTIO_MMIO_QUEUE_SIZE, vq->size);
	write_address(device, VIRTIO_MMIO_QUEUE_DESC_LOW, vq->desc);
	write_address(device, VIRTIO_MMIO_QUEUE_DRIVER_LOW, vq->avail);
	write_address(device, VIRTIO_MMIO_QUEUE_DEVICE_LOW, vq->used);
	write_register(device, VIRTIO_MMIO_QUEUE_READY, 1);
}

/* ----- 2.5: configuration space ----- */

uint32_t virtio_config_generation(const struct virtio_device *device)
{
	return read_register(device, VIRTIO_MMIO_CONFIG_GENERATION);
}

uint8_t virtio_config_read8(const struct virtio_device *device, size_t offset)
{
	return mmio_read8(device->base + VIRTIO_MMIO_CONFIG + offset);
}

uint16_t virtio_config_read16(const struct virtio_device *device, size_t offset)
{
	return mmio_read16(device->base + VIRTIO_MMIO_CONFIG + offset);
}

uint32_t virtio_config_read32(const struct virtio_device *device, size_t offset)
{
	return mmio_read32(device->base + VIRTIO_MMIO_CONFIG + offset);
}

/* 2.5.1: only reads of more than 32 bits can tear. */
uint64_t virtio_config_read64(const struct virtio_device *device, size_t offset)
{
	uint32_t before, low, high;

	do {
		before = virtio_config_generation(device);
		low = virtio_config_read32(device, offset);
		high = virtio_config_read32(device, offset + sizeof(uint32_t));
	} while (virtio_config_generation(device) != before);
	return (uint64_t)high << 32 | low;
}

void virtio_config_write8(const struct virtio_device *device, size_t offset, uint8_t value)
{
	mmio_write8(device->base + VIRTIO_MMIO_CONFIG + offset, value);
}

void virtio_config_write32(const struct virtio_device *device, size_t offset, uint32_t value)
{
	mmio_write32(device->base + VIRTIO_MMIO_CONFIG + offset, value);
}

/* ----- 4.2.3.4: notifications from the device ----- */

static void handle_interrupt(void *context)
{
	const uint32_t events = VIRTIO_MMIO_INT_USED_BUFFER | VIRTIO_MMIO_INT_CONFIG_CHANGE;
	struct virtio_device *device = context;
	const uint32_t status = read_register(device, VIRTIO_MMIO_INTERRUPT_STATUS) & events;

	/* 2.7.7.1: spurious notifications are the driver's to bear. */
	if (!status) {
		device->spurious_interrupts++;
		return;
	}
	/*
	 * Acknowledged before the rings are looked at, so that a buffer used from here on raises a
	 * new edge, and none used before is missed.
	 */
	write_register(device, VIRTIO_MMIO_INTERRUPT_ACK, status);
	if (status & VIRTIO_MMIO_INT_USED_BUFFER)
		device->used_interrupts++;
	if (status & VIRTIO_MMIO_INT_CONFIG_CHANGE) {
		device->config_interrupts++;
		device->needs_reset = virtio_status(device) & VIRTIO_STATUS_NEEDS_RESET;
	}
}

void virtio_enable_interrupt(struct virtio_device *device)
{
	irq_register(device->gsi, handle_interrupt, device);
}

bool virtio_wait_interrupt(const struct virtio_device *device, uint32_t seen)
{
	irq_disable();
	while (device->used_interrupts == seen && !device->needs_reset) {
		irq_wait();
		irq_disable();
	}
	irq_enable();
	return !device->needs_reset;
}

void virtio_sleep(const struct virtio_device *device, bool (*awake)(const void *context),
		  const void *context)
{
	/* 2.7.14: look again after asking for interrupts, for what was used in between. */
	atomic_thread_fence(memory_order_seq_cst);
	irq_disable();
	while (!awake(context) && !device->needs_reset) {
		irq_wait();
		irq_disable();
	}
	irq_enable();
}

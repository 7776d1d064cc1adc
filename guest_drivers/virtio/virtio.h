/* SPDX-License-Identifier: MIT */
/*
 * The driver side of virtio: the MMIO transport (version 2) and split virtqueues.  Names and section
 * numbers are those of the virtio specification, version 1.4.
 */
#ifndef VIRTIO_H
#define VIRTIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BIT(n)	(UINT64_C(1) << (n))

/* ----- 2.1: device status ----- */

#define VIRTIO_STATUS_ACKNOWLEDGE	1
#define VIRTIO_STATUS_DRIVER		2
#define VIRTIO_STATUS_DRIVER_OK		4
#define VIRTIO_STATUS_FEATURES_OK	8
#define VIRTIO_STATUS_NEEDS_RESET	64
#define VIRTIO_STATUS_FAILED		128

/* ----- 2.2: the feature bits of every device (6) ----- */

#define VIRTIO_FEATURE_BITS		64	/* that this driver can see */

#define VIRTIO_F_INDIRECT_DESC		28
#define VIRTIO_F_EVENT_IDX		29
#define VIRTIO_F_VERSION_1		32
#define VIRTIO_F_ACCESS_PLATFORM	33
#define VIRTIO_F_RING_PACKED		34
#define VIRTIO_F_IN_ORDER		35
#define VIRTIO_F_ORDER_PLATFORM		36
#define VIRTIO_F_SR_IOV			37
#define VIRTIO_F_NOTIFICATION_DATA	38
#define VIRTIO_F_NOTIF_CONFIG_DATA	39
#define VIRTIO_F_RING_RESET		40
#define VIRTIO_F_ADMIN_VQ		41
#define VIRTIO_F_SUSPEND		43

/* ----- 4.2.2: MMIO register layout ----- */

enum virtio_mmio_register {
	VIRTIO_MMIO_MAGIC_VALUE		= 0x000,
	VIRTIO_MMIO_VERSION		= 0x004,
	VIRTIO_MMIO_DEVICE_ID		= 0x008,
	VIRTIO_MMIO_VENDOR_ID		= 0x00c,
	VIRTIO_MMIO_DEVICE_FEATURES	= 0x010,
	VIRTIO_MMIO_DEVICE_FEATURES_SEL	= 0x014,
	VIRTIO_MMIO_DRIVER_FEATURES	= 0x020,
	VIRTIO_MMIO_DRIVER_FEATURES_SEL	= 0x024,
	VIRTIO_MMIO_QUEUE_SEL		= 0x030,
	VIRTIO_MMIO_QUEUE_SIZE_MAX	= 0x034,
	VIRTIO_MMIO_QUEUE_SIZE		= 0x038,
	VIRTIO_MMIO_QUEUE_READY		= 0x044,
	VIRTIO_MMIO_QUEUE_NOTIFY	= 0x050,
	VIRTIO_MMIO_INTERRUPT_STATUS	= 0x060,
	VIRTIO_MMIO_INTERRUPT_ACK	= 0x064,
	VIRTIO_MMIO_STATUS		= 0x070,
	VIRTIO_MMIO_QUEUE_DESC_LOW	= 0x080,
	VIRTIO_MMIO_QUEUE_DESC_HIGH	= 0x084,
	VIRTIO_MMIO_QUEUE_DRIVER_LOW	= 0x090,
	VIRTIO_MMIO_QUEUE_DRIVER_HIGH	= 0x094,
	VIRTIO_MMIO_QUEUE_DEVICE_LOW	= 0x0a0,
	VIRTIO_MMIO_QUEUE_DEVICE_HIGH	= 0x0a4,
	VIRTIO_MMIO_CONFIG_GENERATION	= 0x0fc,
	VIRTIO_MMIO_CONFIG		= 0x100,
};

#define VIRTIO_MMIO_MAGIC		0x74726976
#define VIRTIO_MMIO_VERSION_2		2

#define VIRTIO_MMIO_INT_USED_BUFFER	1
#define VIRTIO_MMIO_INT_CONFIG_CHANGE	2

#define VIRTIO_ID_RESERVED		0
#define VIRTIO_ID_NETWORK		1
#define VIRTIO_ID_BLOCK			2
#define VIRTIO_ID_CONSOLE		3
#define VIRTIO_ID_ENTROPY		4
#define VIRTIO_ID_BALLOON		5

/* "QEMU" in VendorID; for what is known to differ from the specification there. */
#define VIRTIO_VENDOR_QEMU		0x554d4551

#define VIRTIO_DEVICES_MAX		32

struct virtio_device {
	/* From the command line. */
	unsigned int slot;
	uint64_t base;
	uint64_t size;
	uint32_t gsi;

	/* From the registers. */
	uint32_t magic;
	uint32_t version;
	uint32_t device_id;
	uint32_t vendor_id;
	uint64_t offered;	/* feature bits */
	uint64_t negotiated;

	/* Written by the interrupt handler. */
	volatile uint32_t used_interrupts;
	volatile uint32_t config_interrupts;
	volatile uint32_t spurious_interrupts;
	volatile bool needs_reset;
};

/* What `virtio_mmio.device=` announces; reads the identity of each.  Returns how many. */
unsigned int virtio_discover(struct virtio_device *devices, unsigned int max);
/* A version 2 device that is there: the registers behind DeviceID may be used. */
bool virtio_is_usable(const struct virtio_device *device);
bool virtio_has_feature(const struct virtio_device *device, unsigned int bit);

/* 3.1.1, step by step: reset; negotiate; [config space, virtqueues]; driver_ok. */
void virtio_reset(struct virtio_device *device);
bool virtio_negotiate(struct virtio_device *device, uint64_t features);
void virtio_driver_ok(struct virtio_device *device);
/* Given up (3.1.1): sets FAILED. */
void virtio_fail(struct virtio_device *device);

uint32_t virtio_status(const struct virtio_device *device);
uint64_t virtio_offered_features(const struct virtio_device *device);
uint32_t virtio_config_generation(const struct virtio_device *device);
uint32_t virtio_queue_size_max(const struct virtio_device *device, uint16_t queue);
bool virtio_queue_ready(const struct virtio_device *device, uint16_t queue);

/* Config space, with accesses of the field's width (4.2.2.2) and one ConfigGeneration (2.5.1). */
uint8_t virtio_config_read8(const struct virtio_device *device, size_t offset);
uint16_t virtio_config_read16(const struct virtio_device *device, size_t offset);
uint32_t virtio_config_read32(const struct virtio_device *device, size_t offset);
uint64_t virtio_config_read64(const struct virtio_device *device, size_t offset);
void virtio_config_write8(const struct virtio_device *device, size_t offset, uint8_t value);
void virtio_config_write32(const struct virtio_device *device, size_t offset, uint32_t value);

/* Connect the device's interrupt; needed once, before virtio_driver_ok. */
void virtio_enable_interrupt(struct virtio_device *device);
/* Sleep until a used buffer notification beyond the first `seen`; false when the device broke. */
bool virtio_wait_interrupt(const struct virtio_device *device, uint32_t seen);

const char *virtio_device_name(uint32_t device_id);
/* NULL for a bit that the specification does not define. */
const char *virtio_feature_name(uint32_t device_id, unsigned int bit);

/* ----- 2.7: split virtqueues ----- */

#define VIRTQ_DESC_F_NEXT		1
#define VIRTQ_DESC_F_WRITE		2
#define VIRTQ_DESC_F_INDIRECT		4
#define VIRTQ_AVAIL_F_NO_INTERRUPT	1
#define VIRTQ_USED_F_NO_NOTIFY		1

struct virtq_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct virtq_avail {
	uint16_t flags;
	uint16_t idx;
	uint16_t ring[];	/* Queue Size entries, then used_event */
};

struct virtq_used_elem {
	uint32_t id;
	uint32_t len;
};

struct virtq_used {
	uint16_t flags;
	uint16_t idx;
	struct virtq_used_elem ring[];	/* Queue Size entries, then avail_event */
};

/* Entries of an indirect table; this driver keeps one table for each descriptor. */
#define VIRTQ_TABLE_SIZE	32

/* Where a chain's descriptors live. */
enum virtq_placement {
	VIRTQ_DIRECT,		/* all in the descriptor table */
	VIRTQ_INDIRECT,		/* all in one indirect table */
	VIRTQ_MIXED,		/* the first one direct, the others in one indirect table */
};

/* One buffer element. */
struct virtq_element {
	void *addr;
	uint32_t len;
};

struct virtq {
	struct virtio_device *device;
	uint16_t index;
	uint16_t size;
	bool event_idx;

	struct virtq_desc *desc;
	struct virtq_avail *avail;
	struct virtq_used *used;
	uint16_t *used_event;	/* written here, read by the device */
	uint16_t *avail_event;	/* the other way round */

	struct virtq_desc *tables;	/* size * VIRTQ_TABLE_SIZE */
	void **tokens;			/* by head: what the caller knows the chain by */
	uint16_t free_head;
	uint16_t num_free;
	uint16_t next_avail;		/* the idx to be, with what was added */
	uint16_t last_used;

	uint32_t kicks;
	uint32_t kicks_suppressed;
};

/* Allocates the rings and hands them to the device, between FEATURES_OK and DRIVER_OK. */
void virtq_setup(struct virtq *vq, struct virtio_device *device, uint16_t index, uint16_t size);

/* The same with the largest power of two that both the device and `wanted` allow; it must exist. */
void virtq_setup_at_most(struct virtq *vq, struct virtio_device *device, uint16_t index,
			 uint32_t wanted);

/* The transport's half of it: the part addresses, then QueueReady (4.2.3.2). */
void virtio_enable_queue(const struct virtq *vq);

/*
 * Add a chain: `readable` elements, then `writable` ones.  The device sees it after virtq_kick().
 * False when there is no room; one free descriptor is enough for an indirect chain.
 */
bool virtq_add(struct virtq *vq, const struct virtq_element *elements, unsigned int readable,
	       unsigned int writable, enum virtq_placement placement, void *token);
/* Publish what was added and notify the device, unless it asked not to.  True if notified. */
bool virtq_kick(struct virtq *vq);

bool virtq_has_used(const struct virtq *vq);
/* The token of the next used chain, or NULL. */
void *virtq_get_used(struct virtq *vq, uint32_t *len);

void virtq_disable_interrupts(struct virtq *vq);
void virtq_enable_interrupts(struct virtq *vq);
/* Ask for the interrupt only when `count` more chains are used; EVENT_IDX only. */
void virtq_interrupt_after(struct virtq *vq, uint16_t count);

/* Sleep until `awake(context)`, which any interrupt of the device may bring about, or needs_reset. */
void virtio_sleep(const struct virtio_device *device, bool (*awake)(const void *context),
		  const void *context);

/* Until a chain is used.  False when the device needs a reset instead. */
bool virtq_sleep(struct virtq *vq);	/* by interrupt */
bool virtq_poll(struct virtq *vq);	/* by looking */

/*
 * A patience of some seconds (5 to 20, as fast as the time stamp counter counts), for an answer that
 * the other side may owe.  Both are false when nothing came, or the device needs a reset.
 */
uint64_t virtio_deadline(void);
bool virtq_poll_until(struct virtq *vq, uint64_t deadline);

/*
 * Cut memory into elements of these lengths, up to a 0, and a last one of what is left.  Returns how
 * many there are: at most one more than `pieces` has.
 */
unsigned int virtq_cut(struct virtq_element *elements, void *memory, uint32_t len,
		       const uint16_t *pieces);

#endif

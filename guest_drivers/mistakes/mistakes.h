/* SPDX-License-Identifier: MIT */
/*
 * A driver that makes one mistake, or none: what a judge of drivers is held against.  Each mistake
 * has a name, the statement of the specification that it breaks, and the device that it takes.
 */
#ifndef MISTAKES_H
#define MISTAKES_H

#include <stdbool.h>
#include <stdint.h>

#include "virtio.h"

/* M(identifier, name, statement, device, "what the driver does") */
#define MISTAKES(M)										\
	/* Initialization (2.1, 2.2, 2.4, 3.1) */						\
	M(NO_RESET, "no-reset", "3.1.1:1", "blk", "does not reset the device first")		\
	M(NO_ACKNOWLEDGE, "no-acknowledge", "2.1.1:1", "blk", "does not set ACKNOWLEDGE")	\
	M(NO_DRIVER, "no-driver", "2.1.1:1", "blk", "does not set DRIVER")			\
	M(NO_FEATURES_OK, "no-features-ok", "2.1.1:1", "blk", "does not set FEATURES_OK")	\
	M(DRIVER_FIRST, "driver-first", "3.1.1:1", "blk", "sets DRIVER before ACKNOWLEDGE")	\
	M(NO_REREAD, "no-reread", "3.1.1:1", "blk",						\
	  "does not read FEATURES_OK back")							\
	M(CLEARED_BIT, "cleared-bit", "2.1.1:2", "blk", "clears ACKNOWLEDGE at DRIVER_OK")	\
	M(FAILED_GOES_ON, "failed-goes-on", "2.1.1:3", "blk",					\
	  "sets FAILED, and initializes the device again without a reset")			\
	M(RESET_NOT_READ, "reset-not-read", "2.4.2:1", "blk",					\
	  "does not wait for the status 0 of a reset")						\
	M(FEATURES_NOT_READ, "features-not-read", "2.2.1:3", "blk",				\
	  "accepts features without a look at those offered")					\
	M(NOT_OFFERED, "not-offered", "2.2.1:1", "blk", "accepts a feature that is not offered") \
	M(RESERVED, "reserved", "2.2.1:5", "blk", "accepts a reserved feature bit")		\
	M(DEPENDENCY, "dependency", "2.2.1:2", "net",						\
	  "accepts VIRTIO_NET_F_GUEST_TSO4 without VIRTIO_NET_F_GUEST_CSUM")			\
	M(NO_VERSION_1, "no-version-1", "6.1:1", "blk", "does not accept VIRTIO_F_VERSION_1")	\
	M(SR_IOV, "sr-iov", "6.1:10", "blk", "accepts VIRTIO_F_SR_IOV over MMIO")		\
	M(LATE_FEATURE, "late-feature", "3.1.1:4", "blk",					\
	  "accepts a feature after FEATURES_OK")						\
	M(REFUSED_GOES_ON, "refused-goes-on", "3.1.1:6", "blk",					\
	  "goes on after the device has refused FEATURES_OK")					\
	M(EARLY_CONFIG_WRITE, "early-config-write", "3.1.1:3", "blk",				\
	  "writes the configuration space before FEATURES_OK")					\
	M(EARLY_KICK, "early-kick", "3.1.1:7", "blk", "kicks before DRIVER_OK")			\
	M(EARLY_QUEUES, "early-queues", "3.1.1:1", "blk", "sets queues up before FEATURES_OK")	\
	M(LATE_QUEUES, "late-queues", "3.1.1:1", "blk", "sets queues up after DRIVER_OK")	\
	M(SUSPEND, "suspend", "3.4.1:1", "blk", "sets SUSPEND, which was not negotiated")	\
	M(TORN_CONFIG, "torn-config", "2.5.1:2", "blk",						\
	  "reads capacity without a look at ConfigGeneration")					\
	M(OPTIONAL_FIELD, "optional-field", "2.5.1:3", "blk",					\
	  "reads zoned, whose feature is not offered")						\
	M(RING_RESET_NOT_READ, "ring-reset-not-read", "2.6.1.1.2:1", "blk",			\
	  "does not read QueueReset back")							\
	M(RING_RESET_BARE, "ring-reset-bare", "2.6.1.2.2:1", "blk",				\
	  "enables a queue after its reset without configuring it")				\
	/* Registers (4.2) */									\
	M(NO_MAGIC, "no-magic", "4.2.3.1.1:1", "blk", "does not read MagicValue")		\
	M(NO_DEVICE_ID, "no-device-id", "4.2.3.1.1:2", "blk", "does not read DeviceID")		\
	M(NO_FEATURES_SEL, "no-features-sel", "4.2.2.2:12", "blk",				\
	  "reads DeviceFeatures before it writes DeviceFeaturesSel")				\
	M(NO_DRIVER_SEL, "no-driver-sel", "4.2.2.2:13", "blk",					\
	  "writes DriverFeatures before it writes DriverFeaturesSel")				\
	M(UNDEFINED, "undefined", "4.2.2.2:1", "blk", "reads a register that is not described") \
	M(BEYOND_CONFIG, "beyond-config", "4.2.2.2:1", "blk",					\
	  "reads beyond the configuration space")						\
	M(WRITES_READ_ONLY, "writes-read-only", "4.2.2.2:2", "blk", "writes DeviceID")		\
	M(READS_WRITE_ONLY, "reads-write-only", "4.2.2.2:3", "blk", "reads QueueNotify")	\
	M(BYTE_ACCESS, "byte-access", "4.2.2.2:4", "blk", "reads Status by a byte")		\
	M(HALF_ACCESS, "half-access", "4.2.2.2:4", "blk", "writes QueueSel by 16 bits")		\
	M(CONFIG_WIDTH, "config-width", "4.2.2.2:5", "blk", "reads seg_max by bytes")		\
	M(QUEUE_TOO_LARGE, "queue-too-large", "4.2.2.2:14", "blk",				\
	  "writes a QueueSize above QueueSizeMax")						\
	M(READY_CHANGED, "ready-changed", "4.2.2.2:15", "blk",					\
	  "writes QueueDescLow while QueueReady is 1")						\
	M(READY_NOT_READ, "ready-not-read", "4.2.2.2:17", "blk",				\
	  "does not read QueueReady back after writing 0")					\
	M(SHARED_MEMORY, "shared-memory", "4.2.3.1.1:5", "blk",					\
	  "uses the registers of shared memory")						\
	M(NO_INTERRUPT_STATUS, "no-interrupt-status", "4.2.3.4.1:1", "blk",			\
	  "does not read InterruptStatus after an interrupt")					\
	M(NO_ACK, "no-ack", "4.2.3.4.1:3", "blk", "does not acknowledge interrupts")		\
	M(ACK_UNDEFINED, "ack-undefined", "4.2.2.2:20", "blk",					\
	  "acknowledges undefined interrupts")							\
	/* Rings (2.7, 3.3) */									\
	M(MISALIGNED_TABLE, "misaligned-table", "2.7.1:1", "blk",				\
	  "has its descriptor table at a multiple of 8")					\
	M(MISALIGNED_AVAILABLE, "misaligned-available", "2.7.1:1", "blk",			\
	  "has its available ring at an odd address")						\
	M(MISALIGNED_USED, "misaligned-used", "2.7.1:1", "blk",					\
	  "has its used ring at a multiple of 2")						\
	M(QUEUE_NOWHERE, "queue-nowhere", "6.1:5", "blk",					\
	  "has its descriptor table where there is no memory")					\
	M(BUFFER_NOWHERE, "buffer-nowhere", "6.1:5", "blk",					\
	  "has a buffer where there is no memory")						\
	M(WRITABLE_FIRST, "writable-first", "2.7.4.2:1", "blk",					\
	  "has a device-writable descriptor before a device-readable one")			\
	M(LOOP, "loop", "2.7.5.2:1", "blk", "has a loop in a chain")				\
	M(TOO_LONG, "too-long", "2.7.5.3.1:3", "blk",						\
	  "has a chain that is longer than the queue, in an indirect table")			\
	M(INDIRECT_UNASKED, "indirect-unasked", "2.7.5.3.1:1", "blk",				\
	  "uses an indirect table without VIRTIO_F_INDIRECT_DESC")				\
	M(INDIRECT_TWICE, "indirect-twice", "2.7.5.3.1:2", "blk",				\
	  "has an indirect table in an indirect table")						\
	M(INDIRECT_NEXT, "indirect-next", "2.7.5.3.1:4", "blk",					\
	  "has INDIRECT and NEXT in one descriptor")						\
	M(INDEX_BACK, "index-back", "2.7.6.1:1", "blk", "takes the available index back")	\
	M(INDEX_BY_TWO, "index-by-two", "3.3.1:1", "blk",					\
	  "counts an entry of the available ring twice")					\
	M(FLAGS_2, "flags-2", "2.7.7.1:1", "blk", "has flags 2 in the available ring")		\
	M(FLAGS_WITH_EVENT, "flags-with-event", "2.7.7.1:3", "blk",				\
	  "has flags 1 in the available ring with VIRTIO_F_EVENT_IDX")				\
	M(USED_FLAGS, "used-flags", "2.7.10.1:1", "blk",					\
	  "leaves flags 1 in the used ring that it sets up")					\
	M(NO_KICK, "no-kick", "2.7.10.1:4", "blk", "does not kick")				\
	M(NO_KICK_EVENT, "no-kick-event", "2.7.10.1:6", "blk",					\
	  "does not kick with VIRTIO_F_EVENT_IDX")						\
	M(KICK_TOO_MUCH, "kick-too-much", "2.7.10.1:7", "blk",					\
	  "kicks a second time for nothing")				\
	M(KICK_FIRST, "kick-first", "2.7.10.1:4", "blk",					\
	  "kicks before it updates the available index, and not after")				\
	/* Block device (5.2) */								\
	M(BLK_BEYOND, "blk-beyond", "5.2.6.1:2", "blk", "reads beyond capacity")		\
	M(BLK_FLUSH_SECTOR, "blk-flush-sector", "5.2.6.1:4", "blk", "flushes sector 8")		\
	M(BLK_FLUSH_DATA, "blk-flush-data", "5.2.6.1:5", "blk", "flushes with data")		\
	M(BLK_ODD, "blk-odd", "5.2.6.1:6", "blk", "reads 100 bytes")				\
	M(BLK_DISCARD_SIZE, "blk-discard-size", "5.2.6.1:7", "blk",				\
	  "discards with a segment of 12 bytes")						\
	M(BLK_ID_SIZE, "blk-id-size", "5.2.6.1:8", "blk", "gets the ID into 16 bytes")		\
	M(BLK_DISCARD_UNMAP, "blk-discard-unmap", "5.2.6.1:14", "blk",				\
	  "discards with the unmap bit")							\
	M(BLK_EARLY_WRITEBACK, "blk-early-writeback", "5.2.5.1:4", "blk",			\
	  "reads writeback before FEATURES_OK")							\
	M(BLK_NO_FLUSH, "blk-no-flush", "5.2.5.1:1", "blk",					\
	  "accepts VIRTIO_BLK_F_FLUSH and never flushes")					\
	/* Network device (5.1) */								\
	M(NET_CONFIG_WRITE, "net-config-write", "5.1.4.2:1", "net", "writes mac")		\
	M(NET_NUM_BUFFERS, "net-num-buffers", "5.1.9.2.1:2", "net", "sends num_buffers 1")	\
	M(NET_FLAGS, "net-flags", "5.1.9.2.1:3", "net",						\
	  "sends NEEDS_CSUM without VIRTIO_NET_F_CSUM")						\
	M(NET_GSO, "net-gso", "5.1.9.2.1:7", "net", "sends TCPV4 without VIRTIO_NET_F_HOST_TSO4") \
	M(NET_DATA_VALID, "net-data-valid", "5.1.9.2.1:45", "net", "sends DATA_VALID")		\
	M(NET_SMALL_BUFFERS, "net-small-buffers", "5.1.9.3.1:2", "net",				\
	  "receives into 600 bytes without VIRTIO_NET_F_MRG_RXBUF")				\
	M(NET_NO_MAC, "net-no-mac", "5.1.4.2:2", "net", "does not accept VIRTIO_NET_F_MAC")	\
	/* Console (5.3) */									\
	M(CONSOLE_READABLE, "console-readable", "5.3.6.1:1", "console",				\
	  "puts a device-readable buffer into the receiveq")					\
	M(CONSOLE_WRITABLE, "console-writable", "5.3.6.1:2", "console",				\
	  "puts a device-writable buffer into the transmitq")					\
	M(CONSOLE_NOT_READY, "console-not-ready", "5.3.6.2.2:1", "console",			\
	  "does not send DEVICE_READY")								\
	/* Entropy (5.4) */									\
	M(RNG_READABLE, "rng-readable", "5.4.6.1:1", "rng",					\
	  "puts a device-readable buffer into the queue")					\
	/* Balloon (5.5) */									\
	M(ALTERED, "altered", "3.3.1:1", "balloon",						\
	  "alters a descriptor that the device has")						\
	M(BALLOON_STATS_SIZE, "balloon-stats-size", "5.5.6.3.1:5", "balloon",			\
	  "supplies 25 bytes of statistics")							\
	M(BALLOON_STATS_TWO, "balloon-stats-two", "5.5.6.3.1:1", "balloon",			\
	  "makes two buffers of statistics available")						\
	M(BALLOON_NO_STATS, "balloon-no-stats", "5.5.6.3.1:2", "balloon",			\
	  "makes no buffer of statistics available")						\
	M(BALLOON_EARLY_DEFLATE, "balloon-early-deflate", "5.5.6.1:10", "balloon",		\
	  "asks for pages back that the device has not taken yet")				\
	M(BALLOON_NO_ACTUAL, "balloon-no-actual", "5.5.6.1:11", "balloon",			\
	  "does not write actual")

enum mistake {
	MISTAKE_NONE,
#define M(identifier, name, statement, device, text) identifier,
	MISTAKES(M)
#undef M
};

/* Whether this is the mistake that the driver is to make. */
bool makes(enum mistake mistake);
/* Whether it is to make any: then an answer that does not come is no wonder. */
bool makes_any(void);

/* ----- the driver ----- */

#define RING_SIZE	16
#define QUEUES_MAX	4

/* One queue; a request is added when the one before is used, so that it always has descriptor 0. */
struct ring {
	uint16_t index;
	uint16_t size;			/* RING_SIZE, or less where the device has less */
	struct virtq_desc *desc;
	struct virtq_avail *avail;
	struct virtq_used *used;
	struct virtq_desc *table;	/* an indirect one */
	uint16_t next;			/* the available index to be */
	uint16_t seen;			/* used entries that were looked at */
	uint16_t used_len;
};

struct element {
	void *addr;
	uint32_t len;
	bool writable;
};

struct driver {
	uint64_t base;
	uint32_t gsi;
	uint32_t id;
	uint64_t features;		/* accepted */
	struct ring rings[QUEUES_MAX];
};

uint32_t reg_read(const struct driver *driver, uint32_t reg);
void reg_write(const struct driver *driver, uint32_t reg, uint32_t value);

/* 4.2.3.1.1: false where there is no device. */
bool driver_identify(struct driver *driver);
/*
 * 3.1.1: from the reset to DRIVER_OK, with those of these features that are offered, and `queues`
 * queues.  False when the device refused.
 */
bool driver_start(struct driver *driver, uint64_t features, unsigned int queues);
/* 2.4: the reset at the end. */
void driver_stop(struct driver *driver);

/* Allocate a ring and hand it to the device (4.2.3.2). */
void ring_set_up(struct driver *driver, struct ring *ring);
#define NO_HEAD		UINT16_MAX

/* Fill descriptors from `first` on; returns the head, or NO_HEAD where the queue has too few. */
uint16_t ring_fill(struct ring *ring, uint16_t first, const struct element *elements,
		   unsigned int count);
/* Make a head available, and kick as the device asks (2.7.13). */
void ring_publish(struct driver *driver, struct ring *ring, uint16_t head);
/* Wait until one more entry is used; false when none came. */
bool ring_wait(struct ring *ring);
/* All three, for a request that begins at descriptor 0. */
bool ring_request(struct driver *driver, struct ring *ring, const struct element *elements,
		  unsigned int count);

void blk_run(struct driver *driver);
void net_run(struct driver *driver);
void console_run(struct driver *driver);
void rng_run(struct driver *driver);
void balloon_run(struct driver *driver);

#endif

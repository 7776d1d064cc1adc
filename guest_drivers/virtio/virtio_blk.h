/* SPDX-License-Identifier: MIT */
/* The driver of a block device (5.2), made to choose how a request is framed. */
#ifndef VIRTIO_BLK_H
#define VIRTIO_BLK_H

#include "virtio.h"

/* ----- 5.2.3: feature bits ----- */

#define VIRTIO_BLK_F_SIZE_MAX		1
#define VIRTIO_BLK_F_SEG_MAX		2
#define VIRTIO_BLK_F_RO			5
#define VIRTIO_BLK_F_BLK_SIZE		6
#define VIRTIO_BLK_F_FLUSH		9
#define VIRTIO_BLK_F_CONFIG_WCE		11
#define VIRTIO_BLK_F_MQ			12
#define VIRTIO_BLK_F_DISCARD		13
#define VIRTIO_BLK_F_WRITE_ZEROES	14
#define VIRTIO_BLK_F_SECURE_ERASE	16

/* ----- 5.2.4: device configuration layout, as far as it is read here ----- */

struct __attribute__((packed)) virtio_blk_config {
	uint64_t capacity;
	uint32_t size_max;
	uint32_t seg_max;
	struct {
		uint16_t cylinders;
		uint8_t heads;
		uint8_t sectors;
	} geometry;
	uint32_t blk_size;
	struct {
		uint8_t physical_block_exp;
		uint8_t alignment_offset;
		uint16_t min_io_size;
		uint32_t opt_io_size;
	} topology;
	uint8_t writeback;
	uint8_t unused0;
	uint16_t num_queues;
	uint32_t max_discard_sectors;
	uint32_t max_discard_seg;
	uint32_t discard_sector_alignment;
	uint32_t max_write_zeroes_sectors;
	uint32_t max_write_zeroes_seg;
	uint8_t write_zeroes_may_unmap;
	uint8_t unused1[3];
};

/* Read a field with an access of its width: BLK_CONFIG(32, device, blk_size). */
#define BLK_CONFIG(bits, device, field)	\
	virtio_config_read##bits(device, offsetof(struct virtio_blk_config, field))

/* ----- 5.2.6: device operation ----- */

#define VIRTIO_BLK_T_IN			0
#define VIRTIO_BLK_T_OUT		1
#define VIRTIO_BLK_T_FLUSH		4
#define VIRTIO_BLK_T_GET_ID		8
#define VIRTIO_BLK_T_DISCARD		11
#define VIRTIO_BLK_T_WRITE_ZEROES	13
#define VIRTIO_BLK_T_SECURE_ERASE	14

#define VIRTIO_BLK_S_OK			0
#define VIRTIO_BLK_S_IOERR		1
#define VIRTIO_BLK_S_UNSUPP		2
/* Ours: in the status byte until the device writes it. */
#define BLK_STATUS_NONE			0xff

#define VIRTIO_BLK_ID_BYTES		20
#define VIRTIO_BLK_WRITE_ZEROES_UNMAP	1

#define SECTOR_SIZE			512

struct virtio_blk_header {
	uint32_t type;
	uint32_t reserved;
	uint64_t sector;
};

struct virtio_blk_discard_write_zeroes {
	uint64_t sector;
	uint32_t num_sectors;
	uint32_t flags;
};

/*
 * A request lies in memory as the specification writes it down: header, data, status, with nothing
 * between.  So it can be cut into descriptors anywhere, within a part or across two.
 */
struct blk_request {
	struct virtio_blk_header *header;
	uint8_t *data;
	uint32_t capacity;	/* bytes that data has room for */
	uint32_t data_len;
	bool data_readable;	/* by the device: the driver's data to write */
	bool done;
	uint32_t used_len;
	unsigned int completions;
};

#define BLK_FRAMING_CUTS	20

/*
 * Where to cut the device-readable and the device-writable part: pieces from the front, then the
 * rest, then pieces from the back; a length of 0 ends a list.  An empty rest makes no descriptor.
 */
struct blk_framing {
	const char *name;
	uint16_t readable_front[BLK_FRAMING_CUTS];
	uint16_t writable_front[BLK_FRAMING_CUTS];
	uint16_t writable_back;
};

/* Header, data and status in a descriptor each. */
extern const struct blk_framing blk_plain_framing;

#define BLK_QUEUES_MAX	4

struct virtio_blk {
	struct virtio_device *device;
	struct virtq queues[BLK_QUEUES_MAX];
	unsigned int queue_count;
	uint64_t capacity;	/* sectors */
	uint64_t memory;	/* where the memory of these queues starts */
	enum virtq_placement placement;	/* for requests that don't say */
};

/*
 * Reset the device and bring it up with these features (VERSION_1 comes with them), `queue_count`
 * queues, each of at most `queue_size` entries.  False when the device refuses the features.
 * Memory that was allocated since the last blk_open() is given back first.
 */
bool blk_open(struct virtio_blk *blk, struct virtio_device *device, uint64_t features,
	      unsigned int queue_count, uint32_t queue_size);

void blk_alloc_request(struct blk_request *request, uint32_t capacity);
/* Fill in the header; the data's direction follows from the type. */
void blk_prepare(struct blk_request *request, uint32_t type, uint64_t sector, uint32_t data_len);
uint8_t blk_status(const struct blk_request *request);

/* How many descriptors this framing makes of the request. */
unsigned int blk_framing_elements(const struct blk_framing *framing,
				  const struct blk_request *request);
/* False when the queue has no room; see virtq_add(). */
bool blk_submit_framed(struct virtq *vq, struct blk_request *request,
		       const struct blk_framing *framing, enum virtq_placement placement);
bool blk_submit(struct virtio_blk *blk, unsigned int queue, struct blk_request *request);
/* Take every used chain, without waiting; returns how many there were. */
unsigned int blk_reap(struct virtq *vq);

/* Submit, notify, sleep until done.  The status, or BLK_STATUS_NONE if the device broke. */
uint8_t blk_do(struct virtio_blk *blk, struct blk_request *request);
uint8_t blk_do_framed(struct virtio_blk *blk, struct blk_request *request,
		      const struct blk_framing *framing, enum virtq_placement placement);

#endif

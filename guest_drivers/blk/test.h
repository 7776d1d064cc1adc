/* SPDX-License-Identifier: MIT */
/* What the tests of a block device share. */
#ifndef BLK_TEST_H
#define BLK_TEST_H

#include "runtime.h"
#include "virtio_blk.h"
#include "virtio_test.h"

/*
 * The sectors that the tests write.  A disk smaller than the area is only tested with what writes
 * nothing.
 */
#define AREA_SECTORS		512
#define FINAL_SECTORS		64	/* 0..63: what the host looks at afterwards */
#define SCRATCH_SECTOR		64
#define RING_SECTOR		128

/* Small queues wrap soon; large enough for a header in one-byte pieces. */
#define TEST_QUEUE_SIZE		32
/* Below this even a plain request does not fit. */
#define MIN_QUEUE_SIZE		4

struct blk_test {
	struct virtio_device *device;
	struct virtio_blk blk;
	char disk[8];		/* "blk0" */
	char name[64];		/* the disk, and the features under test */
	bool qemu;		/* it is QEMU's, or its block layer's */
	bool libvhost_user;	/* ... served by that: qemu-storage-daemon */
	bool mixed_chains;	/* work on this device */
	uint8_t seed;		/* of the last pattern written */
};

/* Reset and bring up one queue; bails out when the device refuses what it offered. */
void test_open(struct blk_test *t, uint64_t features);
void test_open_queues(struct blk_test *t, uint64_t features, unsigned int queues, uint32_t size);
bool test_offers(const struct blk_test *t, unsigned int feature);

/* Word i of sector s is s << 32 | i << 8 | seed. */
#define FINAL_SEED	0xb5
uint8_t next_seed(struct blk_test *t);
void pattern_fill(void *data, uint64_t sector, unsigned int sectors, uint8_t seed);
bool pattern_matches(const void *data, uint64_t sector, unsigned int sectors, uint8_t seed);

/* Write, or read and compare, `sectors` with the pattern; false, with a note, unless all is well. */
bool write_pattern(struct blk_test *t, uint64_t sector, unsigned int sectors, uint8_t seed);
bool read_pattern(struct blk_test *t, uint64_t sector, unsigned int sectors, uint8_t seed);
bool read_zeroes(struct blk_test *t, uint64_t sector, unsigned int sectors);
/* The status of one request. */
uint8_t do_request(struct blk_test *t, uint32_t type, uint64_t sector, uint32_t data_len);

/* Sleep until all are done; false when the device broke. */
bool wait_all(struct virtq *vq, struct blk_request *requests, unsigned int count);

/* blk.requests: random reads, counted and timed (workload.h). */
void random_reads(struct blk_test *t, uint64_t count);

bool write_final_pattern(struct blk_test *t);
bool read_final_pattern(struct blk_test *t);

/* ----- the groups of tests, a file each ----- */

void test_transport(struct blk_test *t);
void test_framing(struct blk_test *t);
void test_interrupts(struct blk_test *t);
void test_full_ring(struct blk_test *t);
void test_wrapping(struct blk_test *t);
void test_smallest_queue(struct blk_test *t);
void test_largest_queue(struct blk_test *t);
void test_multiqueue(struct blk_test *t);
void test_commands(struct blk_test *t);
void test_errors(struct blk_test *t);
void test_last_sector(struct blk_test *t);
void test_read_only(struct blk_test *t);
void test_cache_modes(struct blk_test *t);
void test_discard(struct blk_test *t);
void test_write_zeroes(struct blk_test *t);

#endif

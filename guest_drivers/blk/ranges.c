// SPDX-License-Identifier: MIT
/* DISCARD and WRITE_ZEROES, whose data is a list of ranges of sectors (5.2.6). */
#include "test.h"

typedef struct virtio_blk_discard_write_zeroes range_t;

#define RANGE_SECTORS	4
#define GUARD_SECTORS	1	/* before and after: must keep what they have */
#define RANGE_SECTOR	(SCRATCH_SECTOR + GUARD_SECTORS)
#define RANGES_MAX	128	/* limits above are not tried */
#define UNKNOWN_FLAG	(1u << 31)

static uint8_t do_ranges(struct blk_test *t, uint32_t type, const range_t *ranges,
			 unsigned int count)
{
	const uint64_t mark = memory_mark();
	struct blk_request request;
	uint8_t status;

	blk_alloc_request(&request, (uint32_t)(count * sizeof(*ranges)));
	memcpy(request.data, ranges, count * sizeof(*ranges));
	blk_prepare(&request, type, 0, (uint32_t)(count * sizeof(*ranges)));
	status = blk_do(&t->blk, &request);
	memory_release(mark);
	return status;
}

static uint8_t do_range(struct blk_test *t, uint32_t type, uint64_t sector, uint32_t flags)
{
	const range_t range = { sector, RANGE_SECTORS, flags };

	return do_ranges(t, type, &range, 1);
}

static bool write_guarded(struct blk_test *t, uint8_t seed)
{
	return write_pattern(t, SCRATCH_SECTOR, RANGE_SECTORS + 2 * GUARD_SECTORS, seed);
}

static bool guards_intact(struct blk_test *t, uint8_t seed)
{
	return read_pattern(t, SCRATCH_SECTOR, GUARD_SECTORS, seed)
	       && read_pattern(t, RANGE_SECTOR + RANGE_SECTORS, GUARD_SECTORS, seed);
}

/* 5.2.6.1: too many segments are a driver error; which status says so is left open. */
static void test_too_many(struct blk_test *t, uint32_t type, uint32_t max, const char *name)
{
	range_t ranges[RANGES_MAX];
	uint8_t status;

	if (max >= RANGES_MAX) {
		tap_skip("the limit is high", "%s: %s fails with too many segments (5.2.6.1)", t->name,
			 name);
		return;
	}
	for (unsigned int i = 0; i <= max; i++)
		ranges[i] = (range_t){ SCRATCH_SECTOR + i, 1, 0 };
	status = do_ranges(t, type, ranges, max + 1);
	if (!tap_ok(status == VIRTIO_BLK_S_IOERR || status == VIRTIO_BLK_S_UNSUPP,
		    "%s: %s fails with too many segments, %u (5.2.6.1)", t->name, name, max + 1))
		tap_note("status 0x%02x", status);
}

static void test_bad_ranges(struct blk_test *t, uint32_t type, const char *name)
{
	const uint32_t odd_len = sizeof(range_t) + 1;
	uint8_t status;

	tap_is(do_range(t, type, RANGE_SECTOR, UNKNOWN_FLAG), VIRTIO_BLK_S_UNSUPP,
	       "%s: %s with an unknown flag is UNSUPP (5.2.6.2)", t->name, name);
	tap_is(do_range(t, type, t->blk.capacity - 1, 0), VIRTIO_BLK_S_IOERR,
	       "%s: %s across capacity is IOERR (5.2.6)", t->name, name);
	tap_is(do_range(t, type, UINT64_MAX, 0), VIRTIO_BLK_S_IOERR,
	       "%s: %s that overflows 64 bits is IOERR (5.2.6)", t->name, name);
	status = do_request(t, type, 0, odd_len);
	if (!tap_ok(status == VIRTIO_BLK_S_IOERR || status == VIRTIO_BLK_S_UNSUPP,
		    "%s: %s fails with %u bytes, not whole segments (5.2.6.1)", t->name, name,
		    odd_len))
		tap_note("status 0x%02x", status);
}

/* ----- DISCARD ----- */

void test_discard(struct blk_test *t)
{
	const uint8_t seed = next_seed(t);
	uint32_t max_seg;

	if (!test_offers(t, VIRTIO_BLK_F_DISCARD)) {
		test_open(t, 0);
		CHECK_EXCEPT_QEMU(t, do_range(t, VIRTIO_BLK_T_DISCARD, RANGE_SECTOR, 0)
				     == VIRTIO_BLK_S_UNSUPP, "serves what it does not offer",
				  "DISCARD is UNSUPP when not offered (5.2.6)");
		return;
	}
	test_open(t, BIT(VIRTIO_BLK_F_DISCARD));
	max_seg = BLK_CONFIG(32, t->device, max_discard_seg);
	tap_note("%s: discards up to %u sectors in %u segments, alignment %u", t->disk,
		 BLK_CONFIG(32, t->device, max_discard_sectors), max_seg,
		 BLK_CONFIG(32, t->device, discard_sector_alignment));
	CHECK(t, write_guarded(t, seed)
	      && do_range(t, VIRTIO_BLK_T_DISCARD, RANGE_SECTOR, 0) == VIRTIO_BLK_S_OK
	      && guards_intact(t, seed),
	      "DISCARD succeeds and leaves the sectors around it (5.2.6)");
	CHECK_IS(t, do_range(t, VIRTIO_BLK_T_DISCARD, RANGE_SECTOR, VIRTIO_BLK_WRITE_ZEROES_UNMAP),
		 VIRTIO_BLK_S_UNSUPP, "DISCARD with the unmap flag is UNSUPP (5.2.6.2)");
	test_bad_ranges(t, VIRTIO_BLK_T_DISCARD, "DISCARD");
	test_too_many(t, VIRTIO_BLK_T_DISCARD, max_seg, "DISCARD");
}

/* ----- WRITE_ZEROES ----- */

static bool zeroes(struct blk_test *t, uint32_t flags)
{
	const uint8_t seed = next_seed(t);

	return write_guarded(t, seed)
	       && do_range(t, VIRTIO_BLK_T_WRITE_ZEROES, RANGE_SECTOR, flags) == VIRTIO_BLK_S_OK
	       && read_zeroes(t, RANGE_SECTOR, RANGE_SECTORS) && guards_intact(t, seed);
}

static bool zeroes_two_segments(struct blk_test *t)
{
	const range_t ranges[] = {
		{ RANGE_SECTOR, 1, 0 },
		{ RANGE_SECTOR + RANGE_SECTORS - 1, 1, 0 },
	};
	const uint8_t seed = next_seed(t);

	return write_guarded(t, seed)
	       && do_ranges(t, VIRTIO_BLK_T_WRITE_ZEROES, ranges, ARRAY_SIZE(ranges))
		  == VIRTIO_BLK_S_OK
	       && read_zeroes(t, ranges[0].sector, 1) && read_zeroes(t, ranges[1].sector, 1)
	       && read_pattern(t, RANGE_SECTOR + 1, RANGE_SECTORS - 2, seed)
	       && guards_intact(t, seed);
}

void test_write_zeroes(struct blk_test *t)
{
	uint32_t max_seg;

	if (!test_offers(t, VIRTIO_BLK_F_WRITE_ZEROES)) {
		test_open(t, 0);
		CHECK_EXCEPT_QEMU(t, do_range(t, VIRTIO_BLK_T_WRITE_ZEROES, RANGE_SECTOR, 0)
				     == VIRTIO_BLK_S_UNSUPP, "serves what it does not offer",
				  "WRITE_ZEROES is UNSUPP when not offered (5.2.6)");
		return;
	}
	test_open(t, BIT(VIRTIO_BLK_F_WRITE_ZEROES));
	max_seg = BLK_CONFIG(32, t->device, max_write_zeroes_seg);
	tap_note("%s: writes zeroes to up to %u sectors in %u segments, may unmap: %u", t->disk,
		 BLK_CONFIG(32, t->device, max_write_zeroes_sectors), max_seg,
		 BLK_CONFIG(8, t->device, write_zeroes_may_unmap));
	CHECK(t, zeroes(t, 0), "WRITE_ZEROES makes zeroes, and only there (5.2.6.2)");
	CHECK(t, zeroes(t, VIRTIO_BLK_WRITE_ZEROES_UNMAP),
	      "WRITE_ZEROES with the unmap flag makes zeroes, and only there (5.2.6.2)");
	if (max_seg > 1)
		CHECK(t, zeroes_two_segments(t), "WRITE_ZEROES takes two segments (5.2.6)");
	else
		SKIP(t, "max_write_zeroes_seg is 1", "WRITE_ZEROES takes two segments (5.2.6)");
	test_bad_ranges(t, VIRTIO_BLK_T_WRITE_ZEROES, "WRITE_ZEROES");
	test_too_many(t, VIRTIO_BLK_T_WRITE_ZEROES, max_seg, "WRITE_ZEROES");
}

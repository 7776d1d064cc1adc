// SPDX-License-Identifier: MIT
/* Requests other than ordinary reads and writes, requests in error, and cache modes. */
#include "test.h"

#define UNKNOWN_TYPE		0x7f	/* not defined */
#define SECTOR_OVERFLOW		(UINT64_C(1) << 55)	/* times 512 is 2^64 */
#define GARBAGE			0xa5

/* ----- GET_ID, FLUSH, unknown types ----- */

/* 5.2.6: a NUL-padded string; a terminator only if it is shorter than 20 bytes. */
static bool is_padded(const uint8_t *id)
{
	unsigned int i = 0;

	while (i < VIRTIO_BLK_ID_BYTES && id[i])
		i++;
	while (i < VIRTIO_BLK_ID_BYTES && !id[i])
		i++;
	return i == VIRTIO_BLK_ID_BYTES;
}

static void test_get_id(struct blk_test *t)
{
	char text[VIRTIO_BLK_ID_BYTES + 1] = "";
	struct blk_request request;
	uint8_t status;

	blk_alloc_request(&request, VIRTIO_BLK_ID_BYTES);
	memset(request.data, GARBAGE, VIRTIO_BLK_ID_BYTES);
	blk_prepare(&request, VIRTIO_BLK_T_GET_ID, 0, VIRTIO_BLK_ID_BYTES);
	status = blk_do(&t->blk, &request);
	if (!CHECK_IS(t, status, VIRTIO_BLK_S_OK, "GET_ID succeeds (5.2.6)"))
		return;
	CHECK_EXCEPT_QEMU(t, is_padded(request.data), "writes one NUL and leaves the rest as it was",
			  "the device ID is padded with NULs to 20 bytes (5.2.6)");
	CHECK_IS(t, request.used_len, VIRTIO_BLK_ID_BYTES + 1,
		 "used len counts the device ID and the status (2.7.8)");
	memcpy(text, request.data, VIRTIO_BLK_ID_BYTES);
	tap_note("%s: device ID \"%s\"", t->disk, text);
}

static void test_flush(struct blk_test *t)
{
	if (!test_offers(t, VIRTIO_BLK_F_FLUSH)) {
		SKIP(t, "FLUSH is not offered", "FLUSH succeeds (5.2.6)");
		return;
	}
	CHECK_IS(t, do_request(t, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK,
		 "FLUSH succeeds (5.2.6)");
}

void test_commands(struct blk_test *t)
{
	test_open(t, t->device->offered & BIT(VIRTIO_BLK_F_FLUSH));
	test_get_id(t);
	test_flush(t);
	CHECK_IS(t, do_request(t, UNKNOWN_TYPE, 0, SECTOR_SIZE), VIRTIO_BLK_S_UNSUPP,
		 "an unknown request type is UNSUPP (5.2.6)");
	if (test_offers(t, VIRTIO_BLK_F_SECURE_ERASE))
		SKIP(t, "it is offered", "SECURE_ERASE is UNSUPP when not offered (5.2.6)");
	else
		CHECK_IS(t, do_request(t, VIRTIO_BLK_T_SECURE_ERASE, 0,
				       sizeof(struct virtio_blk_discard_write_zeroes)),
			 VIRTIO_BLK_S_UNSUPP, "SECURE_ERASE is UNSUPP when not offered (5.2.6)");
}

/* ----- driver errors: the specification has IOERR for "device or driver error" (5.2.6) ----- */

static const struct {
	uint32_t type;
	const char *name;
} directions[] = {
	{ VIRTIO_BLK_T_IN, "read" },
	{ VIRTIO_BLK_T_OUT, "write" },
};

static void test_errors_of(struct blk_test *t, uint32_t type, const char *name)
{
	const uint64_t capacity = t->blk.capacity;
	const struct {
		uint64_t sector;
		uint32_t data_len;
		const char *what;
	} errors[] = {
		{ capacity, SECTOR_SIZE, "beyond capacity" },
		{ capacity - 1, 2 * SECTOR_SIZE, "across capacity" },
		{ UINT64_MAX, 2 * SECTOR_SIZE, "whose end overflows 64 bits" },
		{ SECTOR_OVERFLOW, SECTOR_SIZE, "whose byte offset overflows 64 bits" },
		{ SCRATCH_SECTOR, SECTOR_SIZE - 1, "of 511 bytes" },
		{ SCRATCH_SECTOR, SECTOR_SIZE + 1, "of 513 bytes" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(errors); i++)
		tap_is(do_request(t, type, errors[i].sector, errors[i].data_len),
		       VIRTIO_BLK_S_IOERR, "%s: a %s %s is IOERR (5.2.6.1)", t->name, name,
		       errors[i].what);
}

void test_errors(struct blk_test *t)
{
	const bool read_only = test_offers(t, VIRTIO_BLK_F_RO);

	test_open(t, t->device->offered & BIT(VIRTIO_BLK_F_RO));
	for (size_t i = 0; i < ARRAY_SIZE(directions); i++)
		if (directions[i].type == VIRTIO_BLK_T_IN || !read_only)
			test_errors_of(t, directions[i].type, directions[i].name);
	CHECK_IS(t, do_request(t, VIRTIO_BLK_T_IN, 0, SECTOR_SIZE), VIRTIO_BLK_S_OK,
		 "a good read succeeds after the bad requests (5.2.6)");
}

/* ----- the last sector ----- */

void test_last_sector(struct blk_test *t)
{
	const uint8_t seed = next_seed(t);

	test_open(t, 0);
	CHECK(t, write_pattern(t, t->blk.capacity - 1, 1, seed)
	      && read_pattern(t, t->blk.capacity - 1, 1, seed),
	      "the last sector reads back what was written (5.2.4)");
}

/* ----- a read-only device ----- */

void test_read_only(struct blk_test *t)
{
	struct blk_request before, after;

	test_open(t, BIT(VIRTIO_BLK_F_RO));
	blk_alloc_request(&before, SECTOR_SIZE);
	blk_alloc_request(&after, SECTOR_SIZE);
	blk_prepare(&before, VIRTIO_BLK_T_IN, 0, SECTOR_SIZE);
	CHECK_IS(t, blk_do(&t->blk, &before), VIRTIO_BLK_S_OK, "a read succeeds (5.2.6)");

	blk_prepare(&after, VIRTIO_BLK_T_OUT, 0, SECTOR_SIZE);
	for (unsigned int i = 0; i < SECTOR_SIZE; i++)
		after.data[i] = (uint8_t)~before.data[i];
	CHECK_IS(t, blk_do(&t->blk, &after), VIRTIO_BLK_S_IOERR,
		 "a write to a read-only device is IOERR (5.2.6.2)");

	blk_prepare(&after, VIRTIO_BLK_T_IN, 0, SECTOR_SIZE);
	CHECK(t, blk_do(&t->blk, &after) == VIRTIO_BLK_S_OK
	      && !memcmp(before.data, after.data, SECTOR_SIZE),
	      "the refused write changed nothing (5.2.6.2)");
}

/* ----- the cache (5.2.5, 5.2.6.2) ----- */

enum cache_mode { WRITETHROUGH = 0, WRITEBACK = 1 };

static void test_cache_mode(struct blk_test *t, enum cache_mode mode, const char *name)
{
	const uint8_t seed = next_seed(t);

	virtio_config_write8(t->device, offsetof(struct virtio_blk_config, writeback), mode);
	tap_is(BLK_CONFIG(8, t->device, writeback), mode, "%s: switches to %s (5.2.6.1)", t->name,
	       name);
	tap_ok(write_pattern(t, SCRATCH_SECTOR, 1, seed) && read_pattern(t, SCRATCH_SECTOR, 1, seed),
	       "%s: reads back what it wrote in %s mode (5.2.6.2)", t->name, name);
}

void test_cache_modes(struct blk_test *t)
{
	const uint64_t wce = BIT(VIRTIO_BLK_F_CONFIG_WCE);

	if (!test_offers(t, VIRTIO_BLK_F_CONFIG_WCE)) {
		SKIP(t, "CONFIG_WCE is not offered", "switches its cache mode (5.2.6.1)");
		return;
	}
	CHECK(t, test_offers(t, VIRTIO_BLK_F_FLUSH), "FLUSH is offered with CONFIG_WCE (5.2.5.2)");
	test_open(t, wce | BIT(VIRTIO_BLK_F_FLUSH));
	test_cache_mode(t, WRITETHROUGH, "writethrough");
	test_cache_mode(t, WRITEBACK, "writeback");

	test_open(t, wce);
	CHECK_EXCEPT_QEMU(t, BLK_CONFIG(8, t->device, writeback) == WRITETHROUGH,
			  "keeps the mode it was in",
			  "writeback starts as 0 with CONFIG_WCE but not FLUSH (5.2.5.2)");
}

// SPDX-License-Identifier: MIT
/* What the tests of a block device share. */
#include "test.h"

#define WORDS_PER_SECTOR	(SECTOR_SIZE / sizeof(uint64_t))
#define FINAL_STEP		8	/* sectors a request */

bool test_offers(const struct blk_test *t, unsigned int feature)
{
	return t->device->offered & BIT(feature);
}

void test_open_queues(struct blk_test *t, uint64_t features, unsigned int queues, uint32_t size)
{
	if (!blk_open(&t->blk, t->device, features, queues, size))
		tap_bail_out("%s refuses features 0x%llx, all of which it offers (2.2.2)", t->disk,
			     (unsigned long long)features);
}

void test_open(struct blk_test *t, uint64_t features)
{
	test_open_queues(t, features, 1, TEST_QUEUE_SIZE);
}

/* ----- patterns ----- */

uint8_t next_seed(struct blk_test *t)
{
	return ++t->seed;
}

static uint64_t first_word(uint64_t sector, uint8_t seed)
{
	return sector << 32 | seed;
}

#define NEXT_WORD	(1 << 8)

void pattern_fill(void *data, uint64_t sector, unsigned int sectors, uint8_t seed)
{
	uint64_t *words = data;

	for (uint64_t end = sector + sectors; sector < end; sector++) {
		uint64_t word = first_word(sector, seed);

		for (size_t i = 0; i < WORDS_PER_SECTOR; i++, word += NEXT_WORD)
			*words++ = word;
	}
}

bool pattern_matches(const void *data, uint64_t sector, unsigned int sectors, uint8_t seed)
{
	const uint64_t *words = data;

	for (uint64_t end = sector + sectors; sector < end; sector++) {
		uint64_t word = first_word(sector, seed);

		for (size_t i = 0; i < WORDS_PER_SECTOR; i++, words++, word += NEXT_WORD) {
			if (*words == word)
				continue;
			tap_note("sector %llu, word %zu: expected 0x%016llx, got 0x%016llx",
				 (unsigned long long)sector, i, (unsigned long long)word,
				 (unsigned long long)*words);
			return false;
		}
	}
	return true;
}

/* ----- one request at a time ----- */

static bool succeeded(uint8_t status, const char *what, uint64_t sector)
{
	if (status == VIRTIO_BLK_S_OK)
		return true;
	tap_note("%s sector %llu: status 0x%02x", what, (unsigned long long)sector, status);
	return false;
}

bool write_pattern(struct blk_test *t, uint64_t sector, unsigned int sectors, uint8_t seed)
{
	const uint64_t mark = memory_mark();
	struct blk_request request;
	uint8_t status;

	blk_alloc_request(&request, sectors * SECTOR_SIZE);
	blk_prepare(&request, VIRTIO_BLK_T_OUT, sector, sectors * SECTOR_SIZE);
	pattern_fill(request.data, sector, sectors, seed);
	status = blk_do(&t->blk, &request);
	memory_release(mark);
	return succeeded(status, "writing", sector);
}

static bool read_sectors(struct blk_test *t, struct blk_request *request, uint64_t sector,
			 unsigned int sectors)
{
	blk_alloc_request(request, sectors * SECTOR_SIZE);
	blk_prepare(request, VIRTIO_BLK_T_IN, sector, sectors * SECTOR_SIZE);
	return succeeded(blk_do(&t->blk, request), "reading", sector);
}

bool read_pattern(struct blk_test *t, uint64_t sector, unsigned int sectors, uint8_t seed)
{
	const uint64_t mark = memory_mark();
	struct blk_request request;
	const bool good = read_sectors(t, &request, sector, sectors)
			  && pattern_matches(request.data, sector, sectors, seed);

	memory_release(mark);
	return good;
}

bool read_zeroes(struct blk_test *t, uint64_t sector, unsigned int sectors)
{
	const uint64_t mark = memory_mark();
	struct blk_request request;
	const uint64_t *words;
	bool good = read_sectors(t, &request, sector, sectors);

	words = (const uint64_t *)request.data;
	for (size_t i = 0; i < sectors * WORDS_PER_SECTOR && good; i++) {
		good = !words[i];
		if (!good)
			tap_note("sector %llu: 0x%016llx, not zero",
				 (unsigned long long)(sector + i / WORDS_PER_SECTOR),
				 (unsigned long long)words[i]);
	}
	memory_release(mark);
	return good;
}

uint8_t do_request(struct blk_test *t, uint32_t type, uint64_t sector, uint32_t data_len)
{
	const uint64_t mark = memory_mark();
	struct blk_request request;
	uint8_t status;

	blk_alloc_request(&request, data_len);
	blk_prepare(&request, type, sector, data_len);
	status = blk_do(&t->blk, &request);
	memory_release(mark);
	return status;
}

bool wait_all(struct virtq *vq, struct blk_request *requests, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++)
		while (!requests[i].done) {
			if (!virtq_sleep(vq))
				return false;
			blk_reap(vq);
		}
	return true;
}

/* ----- what the host finds in the image afterwards ----- */

bool write_final_pattern(struct blk_test *t)
{
	for (uint64_t sector = 0; sector < FINAL_SECTORS; sector += FINAL_STEP)
		if (!write_pattern(t, sector, FINAL_STEP, FINAL_SEED))
			return false;
	/* Without FLUSH the device decides by itself what becomes stable when (5.2.6.2). */
	if (!virtio_has_feature(t->device, VIRTIO_BLK_F_FLUSH))
		return true;
	return succeeded(do_request(t, VIRTIO_BLK_T_FLUSH, 0, 0), "flushing", 0);
}

bool read_final_pattern(struct blk_test *t)
{
	for (uint64_t sector = 0; sector < FINAL_SECTORS; sector += FINAL_STEP)
		if (!read_pattern(t, sector, FINAL_STEP, FINAL_SEED))
			return false;
	return true;
}

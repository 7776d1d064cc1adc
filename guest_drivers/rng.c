// SPDX-License-Identifier: MIT
/* Exercises every entropy device found (5.4). */
#include "cpu.h"
#include "virtio_test.h"

#define REQUESTQ	0
#define QUEUE_SIZE	16
#define PIECES_MAX	8
#define ROOM		4096	/* the largest buffer */
#define GUARD_SIZE	64	/* before and behind it */
#define FILL		0xa5
/*
 * A device may fill less than the buffer (5.4.6.2): this much must come before two reads, or the
 * bytes of one, can be said to differ.
 */
#define ENOUGH		8

static struct virtq queue;
static uint8_t memory[GUARD_SIZE + ROOM + GUARD_SIZE];
static uint8_t *const buffer = memory + GUARD_SIZE;

static void open(struct virtio_test *t, uint64_t features)
{
	virtio_test_negotiate(t, features);
	virtq_setup_at_most(&queue, t->device, REQUESTQ, QUEUE_SIZE);
	virtio_driver_ok(t->device);
}

/* One read of `size` bytes; returns how many the device says it wrote. */
static uint32_t read_pieces(struct virtio_test *t, uint32_t size, const uint16_t *pieces,
			    enum virtq_placement placement)
{
	struct virtq_element elements[PIECES_MAX + 1];
	const unsigned int count = virtq_cut(elements, buffer, size, pieces);
	uint32_t len;

	memset(memory, FILL, size + 2 * GUARD_SIZE);
	if (!virtq_add(&queue, elements, 0, count, placement, buffer))
		tap_bail_out("%s: no room for a buffer in an idle queue", t->name);
	virtq_kick(&queue);
	if (!virtq_sleep(&queue) || virtq_get_used(&queue, &len) != buffer)
		tap_bail_out("%s: the device broke", t->name);
	return len;
}

static uint32_t read_random(struct virtio_test *t, uint32_t size)
{
	static const uint16_t whole[] = { 0 };

	return read_pieces(t, size, whole, VIRTQ_DIRECT);
}

static bool guards_intact(uint32_t size)
{
	return memory_is(memory, FILL, GUARD_SIZE) && memory_is(buffer + size, FILL, GUARD_SIZE);
}

/* ----- sizes ----- */

static bool fills(struct virtio_test *t, uint32_t size)
{
	const uint32_t len = read_random(t, size);

	if (len < 1 || len > size) {
		tap_note("used len %u", len);
		return false;
	}
	return guards_intact(size) && (len < ENOUGH || !memory_is(buffer, buffer[0], len));
}

static void test_sizes(struct virtio_test *t)
{
	static const uint16_t sizes[] = { 1, 2, 63, 64, ROOM };

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
		tap_ok(fills(t, sizes[i]),
		       "%s: a buffer of %u gets 1 or more random bytes, its surroundings none (5.4.6.2)",
		       t->name, sizes[i]);
}

static void test_difference(struct virtio_test *t)
{
	uint8_t first[64];
	uint32_t len, again;

	len = read_random(t, sizeof(first));
	memcpy(first, buffer, sizeof(first));
	again = read_random(t, sizeof(first));
	len = MIN(len, again);
	if (len < ENOUGH)
		SKIP(t, "the device gives few bytes at a time", "two reads differ (5.4)");
	else
		CHECK(t, !memory_equal(first, buffer, len), "two reads differ (5.4)");
}

/* ----- 2.7.4: message framing ----- */

/* What is written is written from the front on, whatever the pieces are. */
static bool fills_in_order(uint32_t size, uint32_t len)
{
	const uint32_t end = MIN(len, size);
	uint32_t run = 0;

	if (len < 1 || len > size || !guards_intact(size))
		return false;
	/* Bytes that kept the fill may be chance; a row of them is not. */
	for (uint32_t i = 0; i < end; i++) {
		run = buffer[i] == FILL ? run + 1 : 0;
		if (run == ENOUGH)
			return false;
	}
	return true;
}

static void test_framing(struct virtio_test *t)
{
	static const uint16_t pieces[] = { 1, 2, 64, 7, 1, 300, 0 };
	static const char *const names[] = { "direct", "indirect" };
	const uint32_t size = 512;
	const bool indirect = virtio_has_feature(t->device, VIRTIO_F_INDIRECT_DESC);

	for (unsigned int placement = VIRTQ_DIRECT; placement <= indirect; placement++)
		tap_ok(fills_in_order(size, read_pieces(t, size, pieces, placement)),
		       "%s: a buffer in pieces is filled from the front, %s (2.7.4.1)", t->name,
		       names[placement]);
}

/* ----- rings ----- */

static bool returns_each_once(struct virtio_test *t, unsigned int count, uint32_t size)
{
	unsigned int seen[QUEUE_SIZE] = { 0 };
	unsigned int *token;
	uint32_t len;

	memset(memory, FILL, sizeof(memory));
	for (unsigned int i = 0; i < count; i++) {
		const struct virtq_element element = { buffer + i * size, size };

		if (!virtq_add(&queue, &element, 0, 1, VIRTQ_DIRECT, &seen[i]))
			return false;
	}
	virtq_kick(&queue);
	for (unsigned int i = 0; i < count; i++) {
		if (!virtq_sleep(&queue))
			tap_bail_out("%s: the device broke", t->name);
		token = virtq_get_used(&queue, &len);
		if ((*token)++ || len < 1 || len > size)
			return false;
	}
	return guards_intact(ROOM);
}

static void test_rings(struct virtio_test *t)
{
	const unsigned int rounds = 3;
	bool good = true;

	for (unsigned int i = 0; i < rounds && good; i++)
		good = returns_each_once(t, queue.size, ENOUGH);
	CHECK(t, good && queue.num_free == queue.size,
	      "a full ring comes back, each buffer once, three times over (2.7.14)");
}

static void test_interrupt(struct virtio_test *t)
{
	const struct virtq_element element = { buffer, ENOUGH };
	const uint32_t seen = t->device->used_interrupts;
	uint32_t len;

	virtq_enable_interrupts(&queue);
	virtq_add(&queue, &element, 0, 1, VIRTQ_DIRECT, buffer);
	virtq_kick(&queue);
	CHECK(t, virtio_wait_interrupt(t->device, seen) && virtq_sleep(&queue)
	      && virtq_get_used(&queue, &len) == buffer,
	      "an interrupt tells of the used buffer (2.7.7.2)");
}

/* ----- every feature set, every device ----- */

static void test_features(struct virtio_test *t, uint64_t features)
{
	open(t, features);
	test_interrupt(t);
	test_sizes(t);
	test_difference(t);
	test_framing(t);
	test_rings(t);
}

static void test_device(struct virtio_test *t)
{
	static const uint64_t feature_sets[] = {
		0,
		BIT(VIRTIO_F_INDIRECT_DESC),
		BIT(VIRTIO_F_EVENT_IDX),
		BIT(VIRTIO_F_INDIRECT_DESC) | BIT(VIRTIO_F_EVENT_IDX),
	};

	virtio_test_basics(t);
	virtio_test_feature_sets(t, feature_sets, ARRAY_SIZE(feature_sets), test_features);
}

int main(void)
{
	virtio_test_each(VIRTIO_ID_ENTROPY, "rng", test_device);
	tap_done();
}

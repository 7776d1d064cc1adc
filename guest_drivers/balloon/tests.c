// SPDX-License-Identifier: MIT
/* The tests of a balloon that need no help from the host. */
#include "cpu.h"
#include "balloon/test.h"

#define DEFAULT_PAGES	64
#define CYCLES		20	/* more than a queue has entries */
#define GUARD_PAGES	2	/* on each side of what is given away */
#define SETTLE_TICKS	(UINT64_C(1) << 27)

static struct virtio_balloon balloon;
static uint32_t page_count;
static uint8_t *guarded;	/* GUARD_PAGES, page_count, GUARD_PAGES */
static uint8_t *pages;

static void open(struct virtio_test *t, uint64_t features)
{
	virtio_test_name(t, features);
	balloon_open(&balloon, t->device, features);
	guarded = pages_alloc(page_count + 2 * GUARD_PAGES);
	pages = guarded + GUARD_PAGES * PAGE_SIZE;
	pages_mark(guarded, page_count + 2 * GUARD_PAGES);
}

static bool guards_intact(void)
{
	return pages_marked(guarded, GUARD_PAGES)
	       && pages_marked(pages + page_count * PAGE_SIZE, GUARD_PAGES);
}

/* ----- inflate and deflate ----- */

static bool shows_actual(struct virtio_test *t, uint32_t expected)
{
	return BALLOON_CONFIG(32, t->device, actual) == expected;
}

static void test_all_pages(struct virtio_test *t)
{
	tap_ok(balloon_inflate(&balloon, pages, page_count),
	       "%s: the device takes %u pages (5.5.6)", t->name, page_count);
	CHECK(t, shows_actual(t, page_count), "actual reads back what was written (5.5.6.1)");
	CHECK(t, balloon_deflate(&balloon, pages, page_count) && shows_actual(t, 0),
	      "the device gives them back (5.5.6)");
	CHECK(t, pages_usable(pages, page_count), "what it gave back can be used (5.5.6)");
	CHECK(t, guards_intact(), "memory around is as it was (5.5.6.2)");
}

static bool request_even(struct virtq *vq)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < page_count && count < BALLOON_PFNS_MAX; i += 2)
		balloon.pfns[count++] = (uint32_t)((uint64_t)pages / PAGE_SIZE + i);
	return balloon_request(vq, &balloon, count);
}

static bool odd_pages_marked(void)
{
	for (uint32_t i = 1; i < page_count; i += 2)
		if (!pages_marked(pages + i * PAGE_SIZE, 1))
			return false;
	return true;
}

/* A host whose pages are larger must not take more than it was given. */
static void test_even_pages(struct virtio_test *t)
{
	bool usable = true;

	pages_mark(pages, page_count);
	CHECK(t, request_even(&balloon.inflate) && odd_pages_marked()
	      && request_even(&balloon.deflate) && odd_pages_marked() && guards_intact(),
	      "of every other page, the ones between are as they were (5.5.6.2)");
	for (uint32_t i = 0; i < page_count && i < 2 * BALLOON_PFNS_MAX && usable; i += 2)
		usable = pages_usable(pages + i * PAGE_SIZE, 1);
	CHECK(t, usable, "every other page can be used again (5.5.6)");
}

static void test_framing(struct virtio_test *t)
{
	static const uint16_t pieces[] = { 4, 3, 1, 1, 2, 9, 0 };
	const uint32_t count = MIN(page_count, 8);
	const uint32_t size = count * (uint32_t)sizeof(balloon.pfns[0]);

	for (uint32_t i = 0; i < count; i++)
		balloon.pfns[i] = (uint32_t)((uint64_t)pages / PAGE_SIZE + i);
	CHECK(t, balloon_request_raw(&balloon.inflate, balloon.pfns, size, pieces, true)
	      && balloon_request_raw(&balloon.deflate, balloon.pfns, size, pieces, true)
	      && pages_usable(pages, count) && guards_intact(),
	      "takes an array cut at odd bytes (2.7.4.1)");
}

static void test_cycles(struct virtio_test *t)
{
	const uint32_t count = MIN(page_count, 4);
	bool good = true;

	for (unsigned int i = 0; i < CYCLES && good; i++)
		good = balloon_inflate(&balloon, pages, count)
		       && balloon_deflate(&balloon, pages, count) && pages_usable(pages, count);
	CHECK(t, good, "pages go there and back, again and again (5.5.6)");
}

static void test_interrupt(struct virtio_test *t)
{
	const uint32_t seen = t->device->used_interrupts;
	const uint64_t deadline = virtio_deadline();

	virtq_enable_interrupts(&balloon.inflate);
	if (balloon_inflate(&balloon, pages, 1))
		while (t->device->used_interrupts == seen && read_tsc() < deadline)
			cpu_relax();
	CHECK(t, t->device->used_interrupts != seen,
	      "an interrupt tells of the used buffer (2.7.7.2)");
	balloon_deflate(&balloon, pages, 1);
}

static void test_pages(struct virtio_test *t, uint64_t features)
{
	if ((t->device->offered & features) != features)
		return;
	open(t, features);
	test_interrupt(t);
	test_all_pages(t);
	test_even_pages(t);
	test_framing(t);
	test_cycles(t);
}

/* ----- statistics (5.5.6.3) ----- */

/* The device may keep the buffer for as long as it likes; that it comes back only when asked for. */
static void test_stats(struct virtio_test *t)
{
	const uint64_t features = BIT(VIRTIO_BALLOON_F_STATS_VQ);
	uint64_t end;

	virtio_test_name(t, features);
	if (!(t->device->offered & features)) {
		SKIP(t, "not offered", "the statsq takes a buffer (5.5.6.3)");
		return;
	}
	open(t, features);
	for (end = read_tsc() + SETTLE_TICKS; read_tsc() < end;)
		balloon_answer_stats(&balloon, 0, 0);
	CHECK(t, !t->device->needs_reset && balloon_inflate(&balloon, pages, page_count)
	      && balloon_deflate(&balloon, pages, page_count),
	      "the statsq takes a buffer (5.5.6.3)");
	tap_note("%s: asked for statistics %u times", t->name, balloon.stats_answered);
}

/* ----- free page reporting (5.5.6.7) ----- */

#define REPORT_PAGES	32

static bool reports(enum virtq_placement placement)
{
	/* Pages 0, 2-3 and 8-31: the others stay. */
	const struct virtq_element ranges[] = {
		{ pages, PAGE_SIZE },
		{ pages + 2 * PAGE_SIZE, 2 * PAGE_SIZE },
		{ pages + 8 * PAGE_SIZE, (REPORT_PAGES - 8) * PAGE_SIZE },
	};

	pages_mark(pages, page_count);
	return balloon_report(&balloon, ranges, ARRAY_SIZE(ranges), placement)
	       && pages_usable(pages, 1) && pages_usable(pages + 2 * PAGE_SIZE, 2)
	       && pages_usable(pages + 8 * PAGE_SIZE, REPORT_PAGES - 8)
	       && pages_marked(pages, page_count) && guards_intact();
}

static void test_reporting(struct virtio_test *t)
{
	const uint64_t features = BIT(VIRTIO_BALLOON_F_PAGE_REPORTING);
	const uint64_t indirect = t->device->offered & BIT(VIRTIO_F_INDIRECT_DESC);

	virtio_test_name(t, features);
	if (!(t->device->offered & features)) {
		SKIP(t, "not offered", "free pages are reported (5.5.6.7)");
		return;
	}
	if (page_count < REPORT_PAGES) {
		SKIP(t, "balloon.pages is less than 32", "free pages are reported (5.5.6.7)");
		return;
	}
	open(t, features | indirect);
	CHECK_EXCEPT_QEMU(t, balloon.reporting.index == 4, "counts only the queues that it has",
			  "reporting_vq is queue 4 (5.5.2)");
	CHECK(t, reports(VIRTQ_DIRECT), "free pages are reported, and used again (5.5.6.7)");
	if (indirect)
		CHECK(t, reports(VIRTQ_INDIRECT),
		      "free pages are reported by an indirect chain (5.5.6.7)");
	CHECK(t, balloon_inflate(&balloon, pages, page_count)
	      && balloon_deflate(&balloon, pages, page_count), "the balloon works beside that");
}

/* ----- every device ----- */

void run_tests(struct virtio_test *t)
{
	page_count = pages_option(DEFAULT_PAGES);
	balloon = (struct virtio_balloon){ 0 };
	virtio_test_basics(t);
	tap_note("%s: num_pages %u, actual %u", t->name, BALLOON_CONFIG(32, t->device, num_pages),
		 BALLOON_CONFIG(32, t->device, actual));
	test_pages(t, 0);
	test_pages(t, BIT(VIRTIO_F_INDIRECT_DESC));
	test_pages(t, BIT(VIRTIO_F_EVENT_IDX));
	test_pages(t, BIT(VIRTIO_BALLOON_F_DEFLATE_ON_OOM));
	test_stats(t);
	test_reporting(t);
	virtio_reset(t->device);
}

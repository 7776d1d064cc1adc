// SPDX-License-Identifier: MIT
/* balloon.mode=hostile: what no good driver sends.  Afterwards a good page goes there and back. */
#include "balloon/test.h"

#define PFN_LAST	UINT32_MAX
#define PFN_DEVICES	0xd0000		/* the hole below 4 GiB, where the devices are */
#define PFN_LOCAL_APIC	0xfee00
#define PFN_FAR		0x7ffffff	/* just below 512 GiB */
#define PAGES		8

static struct virtio_balloon balloon;
static const uint16_t whole[] = { 0 };
static uint8_t *pages;

static void open(struct virtio_test *t)
{
	balloon_open(&balloon, t->device,
		     t->device->offered & BIT(VIRTIO_BALLOON_F_PAGE_REPORTING));
	pages = pages_alloc(PAGES);
	pages_mark(pages, PAGES);
}

/* The device may ask for a reset, and works after it; all other pages are as they were. */
static void judge(struct virtio_test *t, const char *name)
{
	bool good = pages_marked(pages + PAGE_SIZE, PAGES - 1);

	if (t->device->needs_reset)
		open(t);
	balloon.actual = 0;
	good = good && balloon_inflate(&balloon, pages, 1) && balloon_deflate(&balloon, pages, 1)
	       && pages_usable(pages, 1) && pages_marked(pages + PAGE_SIZE, PAGES - 1);
	tap_ok(good, "%s: %s, and then a good page goes there and back (5.5.6)", t->name, name);
}

static void send(struct virtio_test *t, struct virtq *vq, unsigned int count)
{
	balloon_request_raw(vq, balloon.pfns, count * (uint32_t)sizeof(balloon.pfns[0]), whole, true);
	if (vq->num_free != vq->size && !t->device->needs_reset)
		tap_bail_out("%s: the device keeps a request", t->name);
}

static void test_pfn(struct virtio_test *t, uint32_t pfn, const char *inflated, const char *deflated)
{
	balloon.pfns[0] = pfn;
	send(t, &balloon.inflate, 1);
	judge(t, inflated);
	balloon.pfns[0] = pfn;
	send(t, &balloon.deflate, 1);
	judge(t, deflated);
}

/* The first page only: the others must stay. */
static void test_repeated(struct virtio_test *t)
{
	for (unsigned int i = 0; i < PAGES; i++)
		balloon.pfns[i] = (uint32_t)((uint64_t)pages / PAGE_SIZE);
	send(t, &balloon.inflate, PAGES);
	judge(t, "a page eight times in one request");
	balloon.pfns[0] = (uint32_t)((uint64_t)pages / PAGE_SIZE);
	send(t, &balloon.inflate, 1);
	send(t, &balloon.inflate, 1);
	judge(t, "a page in two requests");
	send(t, &balloon.deflate, 1);
	send(t, &balloon.deflate, 1);
	judge(t, "a page that is not in the balloon deflated");
}

static void test_mixed(struct virtio_test *t)
{
	const uint32_t page = (uint32_t)((uint64_t)pages / PAGE_SIZE);
	const uint32_t mixed[] = { PFN_LAST, page, PFN_DEVICES, page, 0xffff0000 };

	memcpy(balloon.pfns, mixed, sizeof(mixed));
	send(t, &balloon.inflate, ARRAY_SIZE(mixed));
	judge(t, "good and bad pages in one request");
}

static void test_shapes(struct virtio_test *t)
{
	balloon.pfns[0] = (uint32_t)((uint64_t)pages / PAGE_SIZE);
	balloon.pfns[1] = balloon.pfns[0] + 1;
	balloon_request_raw(&balloon.inflate, balloon.pfns, 2, whole, true);
	judge(t, "an array of two bytes");
	balloon.pfns[0] = (uint32_t)((uint64_t)pages / PAGE_SIZE);
	balloon_request_raw(&balloon.inflate, balloon.pfns, 5, whole, true);
	judge(t, "an array of five bytes");
	balloon_request_raw(&balloon.inflate, balloon.pfns, sizeof(balloon.pfns[0]), whole, false);
	judge(t, "an array that the device should write");
	balloon_write_actual(&balloon, UINT32_MAX);
	judge(t, "more pages in actual than there are");
}

/* ----- free page reporting ----- */

static void report(struct virtio_test *t, void *address, uint32_t len, const char *name)
{
	const struct virtq_element range = { address, len };

	if (!balloon_report(&balloon, &range, 1, VIRTQ_DIRECT) && !t->device->needs_reset
	    && balloon.reporting.num_free != balloon.reporting.size)
		tap_bail_out("%s: the device keeps a report", t->name);
	judge(t, name);
}

/* The words that mark a page lie outside of both ranges. */
static void report_part(struct virtio_test *t, uint32_t len, const char *name)
{
	report(t, pages + 16, len, name);
	tap_ok(pages_marked(pages, PAGES), "%s: %s changes nothing outside of it (5.5.6.7)", t->name,
	       name);
}

static void test_reports(struct virtio_test *t)
{
	if (!(t->device->offered & BIT(VIRTIO_BALLOON_F_PAGE_REPORTING)))
		return;
	report_part(t, 32, "a report of a few bytes");
	report_part(t, PAGE_SIZE - 24, "a report of nearly a page");
	report(t, (void *)((uint64_t)PFN_DEVICES * PAGE_SIZE), PAGE_SIZE, "a report of the hole");
	report(t, (void *)((uint64_t)PFN_FAR * PAGE_SIZE), PAGE_SIZE, "a report outside of memory");
	report(t, (void *)-(uint64_t)PAGE_SIZE, 2 * PAGE_SIZE, "a report that overflows 64 bits");
}

void run_hostile(struct virtio_test *t)
{
	balloon = (struct virtio_balloon){ 0 };
	open(t);
	test_pfn(t, PFN_LAST, "the last page number inflated", "the last page number deflated");
	test_pfn(t, PFN_FAR, "a page outside of memory inflated",
		 "a page outside of memory deflated");
	test_pfn(t, PFN_DEVICES, "a page in the hole below 4 GiB inflated",
		 "a page in the hole below 4 GiB deflated");
	test_pfn(t, PFN_LOCAL_APIC, "the local APIC's page inflated",
		 "the local APIC's page deflated");
	test_repeated(t);
	test_mixed(t);
	test_shapes(t);
	test_reports(t);
	virtio_reset(t->device);
}

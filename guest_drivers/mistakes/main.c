// SPDX-License-Identifier: MIT
/* mistake=NAME makes that mistake, mistake=list names all; without it the driver is sound. */
#include "mistakes.h"
#include "runtime.h"

const char *const guest_options[] = { "mistake", NULL };

static const struct {
	const char *name;
	const char *statement;
	const char *device;
	const char *text;
} mistakes[] = {
	[MISTAKE_NONE] = { "none", "", "", "makes no mistake" },
#define M(identifier, name, statement, device, text)	[identifier] = { name, statement, device, text },
	MISTAKES(M)
#undef M
};

static enum mistake chosen;

bool makes(enum mistake mistake)
{
	return chosen == mistake;
}

bool makes_any(void)
{
	return chosen != MISTAKE_NONE;
}

static void list(void)
{
	for (unsigned int i = 1; i < ARRAY_SIZE(mistakes); i++)
		tap_note("%s %s %s %s", mistakes[i].name, mistakes[i].statement, mistakes[i].device,
			 mistakes[i].text);
	tap_ok(true, "%u mistakes", (unsigned int)ARRAY_SIZE(mistakes) - 1);
	tap_done();
}

static void choose(const char *name)
{
	if (!name)
		return;
	if (string_equal(name, "list"))
		list();
	for (unsigned int i = 0; i < ARRAY_SIZE(mistakes); i++) {
		if (string_equal(name, mistakes[i].name)) {
			chosen = i;
			return;
		}
	}
	tap_bail_out("mistake=%s is none: mistake=list names them", name);
}

/* 4.2.1: virtio_mmio.device=<size>@<base>:<irq>, with the size in K. */
static bool parse(const char *text, struct driver *driver)
{
	uint64_t size, gsi;

	if (!parse_number(&text, &size))
		return false;
	if (*text == 'K')
		text++;
	if (*text++ != '@' || !parse_number(&text, &driver->base))
		return false;
	if (*text++ != ':' || !parse_number(&text, &gsi))
		return false;
	driver->gsi = (uint32_t)gsi;
	return true;
}

static void run(struct driver *driver)
{
	switch (driver->id) {
	case VIRTIO_ID_NETWORK:
		net_run(driver);
		break;
	case VIRTIO_ID_BLOCK:
		blk_run(driver);
		break;
	case VIRTIO_ID_CONSOLE:
		console_run(driver);
		break;
	case VIRTIO_ID_ENTROPY:
		rng_run(driver);
		break;
	case VIRTIO_ID_BALLOON:
		balloon_run(driver);
		break;
	default:
		break;
	}
}

int main(void)
{
	unsigned int position = 0;
	const char *text;

	choose(cmdline_option("mistake"));
	while ((text = cmdline_next("virtio_mmio.device", &position))) {
		struct driver *driver = memory_zalloc(sizeof(*driver), _Alignof(struct driver));

		if (!parse(text, driver))
			tap_bail_out("virtio_mmio.device=%s is not <size>@<base>:<irq>", text);
		if (driver_identify(driver))
			run(driver);
	}
	tap_ok(true, "the driver %s", mistakes[chosen].text);
	tap_done();
}

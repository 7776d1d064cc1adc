// SPDX-License-Identifier: MIT
/*
 * Exercises every console device found, or echoes or floods on the first.  Options:
 *
 *	console.mode=		tests (the default), echo or flood
 *	console.multiport=0	do not take MULTIPORT, although it is offered (echo, flood)
 *	console.port=		the port to flood; 0
 *	console.kib=		how much to flood it with; 64
 */
#include "console/test.h"

const char *const guest_options[] = {
	"console.mode", "console.multiport", "console.port", "console.kib", NULL,
};

uint64_t wanted_features(const struct virtio_test *t)
{
	uint64_t wanted = BIT(VIRTIO_CONSOLE_F_SIZE) | BIT(VIRTIO_F_EVENT_IDX);

	if (cmdline_number("console.multiport", 1))
		wanted |= BIT(VIRTIO_CONSOLE_F_MULTIPORT);
	return wanted & t->device->offered;
}

int main(void)
{
	const char *mode = cmdline_option("console.mode");

	if (!mode || string_equal(mode, "tests"))
		virtio_test_each(VIRTIO_ID_CONSOLE, "console", run_tests);
	else if (string_equal(mode, "echo"))
		virtio_test_each(VIRTIO_ID_CONSOLE, "console", run_echo);
	else if (string_equal(mode, "flood"))
		virtio_test_each(VIRTIO_ID_CONSOLE, "console", run_flood);
	else
		tap_bail_out("console.mode=%s is none of tests, echo and flood", mode);
	tap_done();
}

// SPDX-License-Identifier: MIT
/*
 * Exercises every balloon device found.  Options:
 *
 *	balloon.mode=	tests (the default), hostile or follow
 *	balloon.pages=	how many pages of 4096 bytes there are to give away; 64, follow: 4096
 *	balloon.zeroed=1	what was given away must come back as zeroes
 */
#include "balloon/test.h"

const char *const guest_options[] = { "balloon.mode", "balloon.pages", "balloon.zeroed", NULL };

int main(void)
{
	const char *mode = cmdline_option("balloon.mode");

	if (!mode || string_equal(mode, "tests"))
		virtio_test_each(VIRTIO_ID_BALLOON, "balloon", run_tests);
	else if (string_equal(mode, "hostile"))
		virtio_test_each(VIRTIO_ID_BALLOON, "balloon", run_hostile);
	else if (string_equal(mode, "follow"))
		virtio_test_each(VIRTIO_ID_BALLOON, "balloon", run_follow);
	else
		tap_bail_out("balloon.mode=%s is none of tests, hostile and follow", mode);
	tap_done();
}

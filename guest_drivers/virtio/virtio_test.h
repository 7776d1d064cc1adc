/* SPDX-License-Identifier: MIT */
/* What the tests of every device share. */
#ifndef VIRTIO_TEST_H
#define VIRTIO_TEST_H

#include "runtime.h"
#include "virtio.h"

/*
 * One result, named after what is tested: `t` has a `name`, and `qemu` says whose device it is.
 * `sentence` is a literal without conversions.
 */
#define CHECK(t, passed, sentence)		tap_ok(passed, "%s: " sentence, (t)->name)
#define CHECK_IS(t, got, expected, sentence)	tap_is(got, expected, "%s: " sentence, (t)->name)
#define SKIP(t, reason, sentence)		tap_skip(reason, "%s: " sentence, (t)->name)
/* For a requirement that QEMU is known not to meet: there, a failure is not ours to report. */
#define CHECK_EXCEPT_QEMU(t, passed, reason, sentence)	\
	((passed) || !(t)->qemu ? (void)CHECK(t, passed, sentence) : SKIP(t, "QEMU " reason, sentence))

struct virtio_test {
	struct virtio_device *device;
	char label[12];		/* "rng0" */
	char name[64];		/* the label, and the features under test */
	bool qemu;
};

/*
 * Find the devices with this ID and run each, its interrupt connected; `kind` is the label's word.
 * Bails out when there is none.
 */
void virtio_test_each(uint32_t device_id, const char *kind, void (*run)(struct virtio_test *t));

/* The name is the label, then the names of these features. */
void virtio_test_name(struct virtio_test *t, uint64_t features);

/* Identity, feature negotiation (2.2, 3.1.1) and reset (2.4) of a device of any kind. */
void virtio_test_basics(struct virtio_test *t);

/* Negotiate or bail out: all of `features` are offered. */
void virtio_test_negotiate(struct virtio_test *t, uint64_t features);

/*
 * Run the tests with each of the feature sets that the device offers whole: `t` is named after it,
 * and the device is reset, and memory released, afterwards.
 */
void virtio_test_feature_sets(struct virtio_test *t, const uint64_t *sets, size_t count,
			      void (*run)(struct virtio_test *t, uint64_t features));

/*
 * Whether a queue with a buffer in every descriptor, all of them this one for the device to read,
 * gives each back once, with nothing written, and is empty then.
 */
bool virtio_test_fill(struct virtq *vq, const struct virtq_element *element);

#endif

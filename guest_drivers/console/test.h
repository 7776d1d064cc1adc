/* SPDX-License-Identifier: MIT */
/* What the parts of console.elf share. */
#ifndef CONSOLE_TEST_H
#define CONSOLE_TEST_H

#include "virtio_console.h"
#include "virtio_test.h"

#define CONSOLE_FEATURES_RING	(BIT(VIRTIO_F_INDIRECT_DESC) | BIT(VIRTIO_F_EVENT_IDX))

/* The features that echo and flood take when they are offered; see main.c for `console.multiport`. */
uint64_t wanted_features(const struct virtio_test *t);

void run_tests(struct virtio_test *t);
void run_echo(struct virtio_test *t);
void run_flood(struct virtio_test *t);

#endif

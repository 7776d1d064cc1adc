/* SPDX-License-Identifier: MIT */
/* What the parts of balloon.elf share. */
#ifndef BALLOON_TEST_H
#define BALLOON_TEST_H

#include "virtio_balloon.h"
#include "virtio_test.h"

#define PAGE_SIZE	BALLOON_PAGE_SIZE

/* ----- pages.c: memory that is told apart by the first and the last word of each page ----- */

void *pages_alloc(uint32_t pages);
/* Write the words; this also makes the host give the page memory. */
void pages_mark(void *first, uint32_t pages);
bool pages_marked(const void *first, uint32_t pages);
/*
 * After the device gave pages back: usable, and zero if `balloon.zeroed=1` asks for that (a promise
 * of the device under test, not of the specification).
 */
bool pages_usable(void *first, uint32_t pages);

/* ----- modes ----- */

void run_tests(struct virtio_test *t);
void run_hostile(struct virtio_test *t);
void run_follow(struct virtio_test *t);

/* `balloon.pages` */
uint32_t pages_option(uint32_t otherwise);

#endif

// SPDX-License-Identifier: MIT
/* Requests to be counted and timed. */
#include "cpu.h"
#include "runtime.h"
#include "workload.h"

uint32_t workload_depth(const char *option, uint32_t most)
{
	const uint64_t depth = cmdline_number(option, 1);

	if (!depth || depth > most)
		tap_bail_out("%s is 1 to %u", option, most);
	return (uint32_t)depth;
}

struct expected {
	const struct virtq *vq;
	uint16_t count;
};

static bool are_used(const void *context)
{
	const struct expected *expected = context;

	return (uint16_t)(READ_ONCE(expected->vq->used->idx) - expected->vq->last_used)
	       >= expected->count;
}

/* Before the kick, so that it is one interrupt in every mode. */
static void ask_for_interrupt(struct virtq *vq, uint16_t count)
{
	if (vq->event_idx)
		virtq_interrupt_after(vq, count);
	else
		virtq_enable_interrupts(vq);
}

static bool run_batch(const struct workload *w, uint16_t count)
{
	struct expected expected = { w->vq, count };
	bool good = true;
	uint32_t len;
	void *token;

	ask_for_interrupt(w->vq, count);
	for (unsigned int slot = 0; slot < count; slot++)
		if (!w->submit(w->context, slot))
			tap_bail_out("no room for %u requests in a queue of %u", count, w->vq->size);
	virtq_kick(w->vq);
	virtio_sleep(w->vq->device, are_used, &expected);
	for (unsigned int slot = 0; slot < count; slot++) {
		token = virtq_get_used(w->vq, &len);
		if (!token || !w->check(w->context, token, len))
			good = false;
	}
	return good;
}

uint64_t workload_run(const struct workload *w)
{
	const struct virtq *vq = w->vq;
	const uint32_t kicks = vq->kicks;
	const uint32_t suppressed = vq->kicks_suppressed;
	uint32_t interrupts;
	uint64_t done = 0;
	uint16_t batch;
	bool good = true;

	measure_begin();
	measure_end();
	interrupts = vq->device->used_interrupts;
	measure_begin();
	while (done < w->requests && good) {
		batch = (uint16_t)MIN(w->depth, w->requests - done);
		good = run_batch(w, batch);
		if (good)
			done += batch;
	}
	measure_end();
	tap_note("measured requests=%llu kicks=%u suppressed=%u interrupts=%u",
		 (unsigned long long)done, vq->kicks - kicks, vq->kicks_suppressed - suppressed,
		 vq->device->used_interrupts - interrupts);
	return done;
}

// SPDX-License-Identifier: MIT
/*
 * net.mode=measure: sends or receives `net.frames` frames, `net.depth` at a time, one kick and one
 * interrupt for each batch (workload.h).  What is sent has an Ethertype and a destination that no
 * host has; what is received may be anything.
 */
#include "net/test.h"
#include "workload.h"

#define ETHERTYPE_EXPERIMENTAL	0x88b5	/* local experimental (IEEE 802) */
#define DEFAULT_FRAMES		1000
#define FRAME_SIZE		FRAME_MIN

static const uint8_t no_host[MAC_SIZE] = { 0x02, 0, 0, 0, 0x88, 0xb5 };

struct measurement {
	struct virtq *vq;
	struct net_packet *packets;	/* one for each request in flight */
	bool receives;
};

static bool submit_frame(void *context, unsigned int slot)
{
	const struct measurement *m = context;
	const uint32_t sent = (uint32_t)(sizeof(struct virtio_net_hdr) + FRAME_SIZE);
	const struct virtq_element element = {
		&m->packets[slot], m->receives ? (uint32_t)NET_PACKET_MAX : sent,
	};

	return virtq_add(m->vq, &element, !m->receives, m->receives, VIRTQ_DIRECT, element.addr);
}

/* 5.1.9.2: nothing is written to a packet that is sent; a received one has a header at least. */
static bool check_frame(void *context, void *token, uint32_t len)
{
	const struct measurement *m = context;

	(void)token;
	return m->receives ? len > sizeof(struct virtio_net_hdr) : !len;
}

static void fill_packets(const struct net_test *t, struct measurement *m, uint32_t count)
{
	struct ethernet *frame;

	m->packets = memory_zalloc(count * sizeof(*m->packets), sizeof(uint64_t));
	for (uint32_t i = 0; i < count; i++) {
		frame = (void *)m->packets[i].frame;
		memcpy(frame->destination, no_host, MAC_SIZE);
		memcpy(frame->source, t->link.mac, MAC_SIZE);
		frame->type = be16(ETHERTYPE_EXPERIMENTAL);
	}
}

void measure(struct net_test *t)
{
	static struct measurement m;
	struct workload workload = {
		.requests = cmdline_number("net.frames", DEFAULT_FRAMES),
		.depth = workload_depth("net.depth", WORKLOAD_DEPTH_MAX),
		.context = &m,
		.submit = submit_frame,
		.check = check_frame,
	};

	/* No buffers to receive into, but those of the workload. */
	stream_open(t, 0);
	m.receives = cmdline_number("net.receive", 0);
	m.vq = m.receives ? &t->net.rx[0] : &t->net.tx[0];
	workload.vq = m.vq;
	fill_packets(t, &m, workload.depth);
	tap_note("ready");
	tap_is(workload_run(&workload), workload.requests, "%s: every frame was %s", t->name,
	       m.receives ? "received" : "sent");
	/* No reset: the host looks afterwards at how the device was worked. */
	tap_done();
}

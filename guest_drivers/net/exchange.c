// SPDX-License-Identifier: MIT
/* Packets out and back, with every set of features, in frames of all sizes and in odd pieces. */
#include <stdatomic.h>

#include "cpu.h"
#include "net/test.h"

#define SMALL		56
#define LARGE_MAX	1400
#define SMALL_BUFFER	256	/* a large frame takes several, with MRG_RXBUF */
#define WRAPS		3
#define ETHERNET_MTU	1500

static const struct {
	const char *name;
	uint16_t pieces[NET_PIECES_MAX];
} framings[] = {
	{ "one descriptor", { 0 } },
	{ "the header apart", { 12, 0 } },
	{ "a descriptor for each layer", { 12, 14, 20, 8, 0 } },
	{ "the header in one-byte pieces", { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0 } },
	{ "cut at odd bytes", { 5, 8, 33, 1, 257, 3, 0 } },
};

static const char *const placement_names[] = {
	[VIRTQ_DIRECT] = "direct",
	[VIRTQ_INDIRECT] = "indirect",
};

/* The MTU counts from the IP header on (5.1.4.1). */
static uint32_t largest_frame(const struct net_test *t)
{
	uint32_t mtu = ETHERNET_MTU;

	if (virtio_has_feature(t->device, VIRTIO_NET_F_MTU))
		mtu = MIN(mtu, NET_CONFIG(16, t->device, mtu));
	return mtu + (uint32_t)sizeof(struct ethernet);
}

static uint32_t large_payload(const struct net_test *t)
{
	return MIN(largest_frame(t) - (uint32_t)PAYLOAD_OFFSET, LARGE_MAX);
}

/* ----- transmission ----- */

static void test_transmit_framing(struct net_test *t, enum virtq_placement placement)
{
	for (size_t i = 0; i < ARRAY_SIZE(framings); i++) {
		struct echo request = { SMALL, placement, framings[i].pieces, false, 0 };
		bool good = echo(t, &request);

		request.payload = large_payload(t);
		tap_ok(good && echo(t, &request),
		       "%s: sends %s, %s, and gets the echo (2.7.4.1)", t->name, framings[i].name,
		       placement_names[placement]);
	}
}

static void test_sizes(struct net_test *t)
{
	static const uint16_t sizes[] = {
		60, 61, 62, 63, 64, 65, 127, 128, 255, 256, 511, 512, 513, 1023, 1024, 1025, 1513, 1514,
	};
	const uint32_t largest = largest_frame(t);
	bool good = true;

	for (size_t i = 0; i < ARRAY_SIZE(sizes) && sizes[i] <= largest && good; i++)
		good = echo(t, &(struct echo){
			.payload = sizes[i] - (uint32_t)PAYLOAD_OFFSET,
			.pieces = net_whole,
		});
	tap_ok(good, "%s: frames of 60 to %u bytes come back (5.1.9.2)", t->name, MIN(largest, 1514));
}

/* Announcements of our own address (gratuitous ARP): no host has a use for them, and none answers. */
static bool fill_ring(struct net_test *t)
{
	static struct net_packet announcement;
	struct virtq_element element = { &announcement, sizeof(announcement.header) };
	struct net_link self = t->link;

	self.peer_ip = self.ip;
	element.len += make_arp(announcement.frame, &self, ARP_REQUEST);
	return virtio_test_fill(&t->net.tx[0], &element);
}

static void test_rings(struct net_test *t)
{
	bool good = true;

	for (unsigned int i = 0; i < WRAPS && good; i++)
		good = fill_ring(t);
	CHECK(t, good && echo_plain(t),
	      "a full ring of packets is sent, each once, three times over (2.7.14)");
}

static void test_checksum(struct net_test *t)
{
	struct echo request = { .payload = SMALL, .pieces = net_whole, .needs_csum = true };
	bool good = echo(t, &request);

	request.payload = large_payload(t) - 1;
	request.pieces = framings[ARRAY_SIZE(framings) - 1].pieces;
	CHECK(t, good && echo(t, &request),
	      "the device makes the checksum that NEEDS_CSUM asks for (5.1.9.2.2)");
}

/* ----- reception ----- */

static bool receives_into(struct net_test *t, uint64_t features, const struct net_buffers *buffers)
{
	uint32_t payload, total, expected;

	test_open(t, features, buffers);
	payload = large_payload(t);
	total = (uint32_t)(sizeof(struct virtio_net_hdr) + PAYLOAD_OFFSET) + payload;
	expected = (total + buffers->size - 1) / buffers->size;
	if (!echo(t, &(struct echo){ .payload = payload, .pieces = net_whole }))
		return false;
	if (t->received.buffers != expected) {
		tap_note("%u bytes are spread over %u buffers, not %u", total, t->received.buffers,
			 expected);
		return false;
	}
	/* As often as it takes to wrap the ring. */
	for (unsigned int i = 0; i < TEST_BUFFERS; i++)
		if (!echo_plain(t))
			return false;
	return t->received.buffers == 1;
}

static void test_receive_framing(struct net_test *t, uint64_t features)
{
	struct net_buffers buffers = net_plain_buffers;

	if (features & BIT(VIRTIO_F_INDIRECT_DESC))
		buffers.placement = VIRTQ_INDIRECT;
	else
		buffers.count = TEST_QUEUE_SIZE / NET_PIECES_MAX;
	for (size_t i = 1; i < ARRAY_SIZE(framings); i++) {
		buffers.pieces = framings[i].pieces;
		tap_ok(receives_into(t, features, &buffers),
		       "%s: receives into buffers of %s, %s (2.7.4.1)", t->name, framings[i].name,
		       placement_names[buffers.placement]);
	}
}

static void test_merging(struct net_test *t, uint64_t features)
{
	struct net_buffers buffers = net_plain_buffers;

	buffers.size = SMALL_BUFFER;
	CHECK(t, receives_into(t, features, &buffers),
	      "a packet fills several small buffers, and num_buffers says so (5.1.9.4.1)");
	buffers.pieces = framings[ARRAY_SIZE(framings) - 1].pieces;
	buffers.count /= 2;
	CHECK(t, receives_into(t, features, &buffers),
	      "a packet fills several small buffers of odd pieces (5.1.9.4.1)");
}

static void test_interrupt(struct net_test *t)
{
	uint32_t seen;
	uint64_t deadline;

	virtq_disable_interrupts(&t->net.tx[0]);
	/* 2.7.14: what came before interrupts were asked for brings none, so it is taken first. */
	do {
		seen = t->device->used_interrupts;
		virtq_enable_interrupts(&t->net.rx[0]);
		atomic_thread_fence(memory_order_seq_cst);
	} while (net_receive(&t->net, 0, &t->received, 0));
	deadline = virtio_deadline();
	if (echo_plain(t))
		while (t->device->used_interrupts == seen && read_tsc() < deadline)
			cpu_relax();
	CHECK(t, t->device->used_interrupts != seen,
	      "an interrupt tells of the received packet (2.7.7.2)");
}

/* What all the packets of this feature set showed. */
static void test_headers(struct net_test *t, uint64_t features)
{
	if (!CHECK(t, !t->fault, "headers of received packets are as negotiated (5.1.9.4.1)"))
		tap_note("%s", t->fault);
	t->fault = NULL;
	if (t->vhost && t->num_buffers_wrong)
		SKIP(t, "vhost leaves it alone before Linux 6.14",
		     "num_buffers is 1 without MRG_RXBUF (5.1.9.4.1)");
	else if (!(features & BIT(VIRTIO_NET_F_MRG_RXBUF)))
		CHECK_EXCEPT_QEMU(t, !t->num_buffers_wrong, "7.2 leaves it alone",
				  "num_buffers is 1 without MRG_RXBUF (5.1.9.4.1)");
	t->num_buffers_wrong = false;
}

/* ----- feature sets ----- */

static void test_feature_set(struct net_test *t, uint64_t features)
{
	test_open(t, features, &net_plain_buffers);
	if (!CHECK(t, find_peer(t), "the peer answers ARP"))
		tap_bail_out("%s: no host answers at net.peer", t->name);
	test_interrupt(t);
	test_transmit_framing(t, VIRTQ_DIRECT);
	if (features & BIT(VIRTIO_F_INDIRECT_DESC))
		test_transmit_framing(t, VIRTQ_INDIRECT);
	test_sizes(t);
	test_rings(t);
	if (features & BIT(VIRTIO_NET_F_CSUM))
		test_checksum(t);
	test_receive_framing(t, features);
	if (features & BIT(VIRTIO_NET_F_MRG_RXBUF))
		test_merging(t, features);
	test_headers(t, features);
}

void test_feature_sets(struct net_test *t)
{
	static const uint64_t sets[] = {
		0,
		BIT(VIRTIO_NET_F_MRG_RXBUF),
		BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_GUEST_CSUM),
		BIT(VIRTIO_F_INDIRECT_DESC),
		BIT(VIRTIO_F_EVENT_IDX),
		NET_FEATURES_PACKET | NET_FEATURES_RING,
	};

	for (size_t i = 0; i < ARRAY_SIZE(sets); i++) {
		virtio_test_name(t->base, sets[i]);
		if ((t->device->offered & sets[i]) != sets[i])
			SKIP(t, "not offered", "the peer answers ARP");
		else
			test_feature_set(t, sets[i]);
	}
	/* Whatever there is of all of them. */
	if ((t->device->offered & sets[ARRAY_SIZE(sets) - 1]) != sets[ARRAY_SIZE(sets) - 1])
		test_feature_set(t, t->device->offered & sets[ARRAY_SIZE(sets) - 1]);
}

// SPDX-License-Identifier: MIT
/* What the parts of net.elf share. */
#include "net/test.h"

#define ARP_TRIES	3
#define PING_PAYLOAD	56

const uint16_t net_whole[] = { 0 };
const struct net_buffers net_plain_buffers = {
	.size = NET_PACKET_MAX,
	.count = TEST_BUFFERS,
	.placement = VIRTQ_DIRECT,
	.pieces = net_whole,
};

static struct net_packet packet;

bool test_offers(const struct net_test *t, unsigned int feature)
{
	return t->device->offered & BIT(feature);
}

void test_open(struct net_test *t, uint64_t features, const struct net_buffers *buffers)
{
	virtio_test_name(t->base, features);
	features = (features | NET_FEATURES_BASE) & t->device->offered;
	net_open(&t->net, t->device, features, 1, TEST_QUEUE_SIZE, buffers);
}

/* ----- receiving ----- */

/* 5.1.9.4.1: what the header may say, as negotiated. */
static const char *header_fault(struct net_test *t)
{
	const struct virtio_net_hdr *header = &t->received.packet.header;
	const uint8_t csum_flags = VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID;

	if (!virtio_has_feature(t->device, VIRTIO_NET_F_MRG_RXBUF) && header->num_buffers != 1)
		t->num_buffers_wrong = true;
	if (!virtio_has_feature(t->device, VIRTIO_NET_F_GUEST_CSUM) && header->flags)
		return "flags are not 0 without GUEST_CSUM";
	if (header->flags & ~csum_flags)
		return "flags has a bit that was not negotiated";
	if (header->gso_type != VIRTIO_NET_HDR_GSO_NONE)
		return "gso_type is not NONE without GUEST_TSO and its like";
	return t->received.fault;
}

static bool is_validated(const struct net_received *received)
{
	return received->packet.header.flags
	       & (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID);
}

static void answer_arp(struct net_test *t)
{
	packet.header = (struct virtio_net_hdr){ 0 };
	memcpy(packet.frame, t->received.packet.frame, t->received.len);
	turn_arp(packet.frame, &t->link);
	net_transmit(&t->net, 0, &packet, t->received.len, VIRTQ_DIRECT, net_whole);
}

bool await(struct net_test *t, unsigned int pair, enum packet_kind wanted)
{
	const uint64_t deadline = virtio_deadline();
	enum packet_kind kind;

	while (net_receive(&t->net, pair, &t->received, deadline)) {
		if (!t->fault)
			t->fault = header_fault(t);
		kind = classify(t->received.packet.frame, t->received.len, &t->link,
				is_validated(&t->received));
		if (kind == wanted)
			return true;
		if (kind == PACKET_ARP_REQUEST)
			answer_arp(t);
		if (kind == PACKET_BAD_CHECKSUM)
			tap_note("a packet with a bad checksum");
	}
	return false;
}

bool find_peer(struct net_test *t)
{
	const struct arp_frame *reply = (const void *)t->received.packet.frame;
	uint32_t len;

	for (unsigned int i = 0; i < ARP_TRIES; i++) {
		packet.header = (struct virtio_net_hdr){ 0 };
		len = make_arp(packet.frame, &t->link, ARP_REQUEST);
		if (!net_transmit(&t->net, 0, &packet, len, VIRTQ_DIRECT, net_whole))
			return false;
		if (await(t, 0, PACKET_ARP_REPLY) && reply->arp.sender_ip == t->link.peer_ip) {
			memcpy(t->link.peer_mac, reply->arp.sender_mac, MAC_SIZE);
			return true;
		}
	}
	return false;
}

/* ----- echo ----- */

#define PATTERN_STEP	UINT64_C(0x9e3779b97f4a7c15)	/* 2^64 over the golden ratio */

/* Words that depend on their place; every payload is a part of them. */
static const uint8_t *pattern(void)
{
	static uint64_t words[PAYLOAD_MAX / sizeof(uint64_t) + UINT8_MAX];

	if (!words[1])
		for (size_t i = 1; i < ARRAY_SIZE(words); i++)
			words[i] = words[i - 1] + PATTERN_STEP;
	return (const uint8_t *)words;
}

static const uint8_t *payload(uint16_t sequence)
{
	return pattern() + (uint8_t)sequence * sizeof(uint64_t);
}

static uint32_t make_request(struct net_test *t, const struct echo *echo)
{
	struct echo_frame *request = (void *)packet.frame;
	uint32_t len;

	memcpy(request->payload, payload(++t->sequence), echo->payload);
	len = make_echo(packet.frame, &t->link, t->sequence, echo->payload);
	packet.header = (struct virtio_net_hdr){ 0 };
	if (echo->needs_csum) {
		packet.header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
		packet.header.csum_start = offsetof(struct echo_frame, icmp);
		packet.header.csum_offset = offsetof(struct icmp_echo, checksum);
		/* ICMP has no pseudo header. */
		request->icmp.checksum = 0;
	}
	return len;
}

static bool is_reply(const struct net_test *t, const struct echo *echo)
{
	const struct echo_frame *reply = (const void *)t->received.packet.frame;

	return reply->ip.source == t->link.peer_ip
	       && be16(reply->ip.length) == sizeof(reply->ip) + sizeof(reply->icmp) + echo->payload
	       && memory_equal(reply->payload, payload(t->sequence), echo->payload);
}

bool echo(struct net_test *t, const struct echo *echo)
{
	const struct echo_frame *reply = (const void *)t->received.packet.frame;
	const uint32_t len = make_request(t, echo);

	if (!net_transmit(&t->net, echo->pair, &packet, len, echo->placement, echo->pieces)) {
		tap_note("a request of %u bytes did not come back from the device, used len 0",
			 echo->payload);
		return false;
	}
	do {
		if (!await(t, echo->pair, PACKET_ECHO_REPLY)) {
			tap_note("no reply to a request of %u bytes", echo->payload);
			return false;
		}
	} while (reply->icmp.sequence != be16(t->sequence));
	if (is_reply(t, echo))
		return true;
	tap_note("the reply to a request of %u bytes differs from it", echo->payload);
	return false;
}

bool echo_plain(struct net_test *t)
{
	return echo(t, &(struct echo){ .payload = PING_PAYLOAD, .pieces = net_whole });
}

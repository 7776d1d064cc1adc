// SPDX-License-Identifier: MIT
/*
 * net.mode=serve: answers ARP, echo requests and UDP to port 7 until `stop` comes to UDP port 9.  A
 * packet is turned round where it lies: its buffer goes from the receive queue to the transmit queue
 * and back.
 */
#include "net/test.h"

#define PORT_ECHO	7
#define PORT_DISCARD	9
#define BUFFERS		256
#define BATCH		32	/* packets between two looks at the other queue */

static struct {
	unsigned int arp;
	unsigned int icmp;
	unsigned int udp;
	unsigned int bad_checksum;
	unsigned int other;
	unsigned int dropped;	/* no room in the transmit queue */
} counts;

static bool stopped;
static uint32_t config_seen;

/* ----- one packet ----- */

/* Finish the checksum that the peer's host left to a device which has no wire behind it. */
static bool complete_checksum(struct net_packet *packet, uint32_t len)
{
	const struct udp_frame *frame = (const void *)packet->frame;
	const uint32_t start = packet->header.csum_start;
	const uint32_t field = start + packet->header.csum_offset;
	const uint32_t end = (uint32_t)sizeof(frame->ethernet) + be16(frame->ip.length);
	uint16_t checksum;

	if (end > len || field + sizeof(checksum) > end)
		return false;
	checksum = (uint16_t)~sum_fold(sum_bytes(0, packet->frame + start, end - start));
	/* RFC 768: 0 would say that there is none. */
	*(uint16_t *)(packet->frame + field) = checksum ? checksum : UINT16_MAX;
	return true;
}

/* The header to send with: what is left to do about the checksum, and nothing else. */
static bool turn_header(struct net_test *t, struct net_packet *packet, uint32_t len,
			enum packet_kind kind)
{
	const struct virtio_net_hdr header = packet->header;

	if (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM
	    && (kind != PACKET_UDP || !virtio_has_feature(t->device, VIRTIO_NET_F_CSUM))
	    && !complete_checksum(packet, len))
		return false;
	packet->header = (struct virtio_net_hdr){ 0 };
	if (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM && kind == PACKET_UDP
	    && virtio_has_feature(t->device, VIRTIO_NET_F_CSUM)) {
		/* The sum of the pseudo header stays as it is when the addresses change places. */
		packet->header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
		packet->header.csum_start = header.csum_start;
		packet->header.csum_offset = header.csum_offset;
	}
	return true;
}

static bool is_stop(const struct udp_frame *frame)
{
	static const char word[4] = "stop";

	return frame->udp.destination == be16(PORT_DISCARD)
	       && be16(frame->udp.length) >= sizeof(frame->udp) + sizeof(word)
	       && !memcmp(frame->payload, word, sizeof(word));
}

static bool turn_udp_echo(struct net_test *t, struct udp_frame *frame)
{
	if (frame->udp.destination == be16(PORT_ECHO)) {
		turn_udp(frame, &t->link);
		counts.udp++;
		return true;
	}
	if (is_stop(frame))
		stopped = true;
	else
		counts.other++;
	return false;
}

/* Whether the packet has become a reply. */
static bool turn_packet(struct net_test *t, struct net_packet *packet, uint32_t used_len)
{
	const bool validated = packet->header.flags
			       & (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID);
	const uint32_t len = used_len - (uint32_t)sizeof(packet->header);
	enum packet_kind kind = PACKET_OTHER;

	if (used_len > sizeof(packet->header) && used_len <= NET_PACKET_MAX)
		kind = classify(packet->frame, len, &t->link, validated);
	if (kind > PACKET_BAD_CHECKSUM && !turn_header(t, packet, len, kind))
		kind = PACKET_OTHER;
	switch (kind) {
	case PACKET_ARP_REQUEST:
		turn_arp(packet->frame, &t->link);
		counts.arp++;
		return true;
	case PACKET_ECHO_REQUEST:
		turn_echo(packet->frame, &t->link);
		counts.icmp++;
		return true;
	case PACKET_UDP:
		return turn_udp_echo(t, (void *)packet->frame);
	case PACKET_BAD_CHECKSUM:
		counts.bad_checksum++;
		return false;
	default:
		counts.other++;
		return false;
	}
}

/* ----- the queues ----- */

static void supply(struct net_test *t, struct net_packet *packet)
{
	const struct virtq_element element = { packet, t->net.buffers.size };

	virtq_add(&t->net.rx[0], &element, 0, 1, VIRTQ_DIRECT, packet);
}

static unsigned int take_received(struct net_test *t)
{
	struct net_packet *packet;
	struct virtq_element element;
	unsigned int count = 0;
	uint32_t len;

	while (count < BATCH && !stopped && (packet = virtq_get_used(&t->net.rx[0], &len))) {
		count++;
		element = (struct virtq_element){ packet, len };
		if (!turn_packet(t, packet, len)) {
			supply(t, packet);
		} else if (!virtq_add(&t->net.tx[0], &element, 1, 0, VIRTQ_DIRECT, packet)) {
			counts.dropped++;
			supply(t, packet);
		}
	}
	return count;
}

static unsigned int take_transmitted(struct net_test *t)
{
	struct net_packet *packet;
	unsigned int count = 0;
	uint32_t len;

	for (; (packet = virtq_get_used(&t->net.tx[0], &len)); count++)
		supply(t, packet);
	return count;
}

/* Few buffers are left to receive into: what comes back from the transmit queue matters now. */
static bool is_starved(const struct net_test *t)
{
	return t->net.rx[0].num_free > t->net.rx[0].size / 2;
}

static bool is_awake(const void *context)
{
	const struct net_test *t = context;

	return virtq_has_used(&t->net.rx[0]) || t->device->config_interrupts != config_seen
	       || (is_starved(t) && virtq_has_used(&t->net.tx[0]));
}

static void sleep(struct net_test *t)
{
	virtq_enable_interrupts(&t->net.rx[0]);
	if (is_starved(t))
		virtq_enable_interrupts(&t->net.tx[0]);
	virtio_sleep(t->device, is_awake, t);
	if (t->device->needs_reset)
		tap_bail_out("%s: the device needs a reset", t->name);
	virtq_disable_interrupts(&t->net.rx[0]);
	virtq_disable_interrupts(&t->net.tx[0]);
}

/* ----- 5.1.9.5.4: gratuitous packet sending ----- */

static void announce(struct net_test *t)
{
	static struct net_packet packet;
	struct net_link self = t->link;

	self.peer_ip = self.ip;
	/* Everything that is on its way comes back first, so that what comes next is this. */
	while (t->net.tx[0].num_free != t->net.tx[0].size && virtq_poll(&t->net.tx[0]))
		take_transmitted(t);
	net_transmit(&t->net, 0, &packet, make_arp(packet.frame, &self, ARP_REQUEST), VIRTQ_DIRECT,
		     net_whole);
	tap_note("announced, ack %u",
		 net_command(&t->net, VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, NULL, 0));
}

static void look_at_config(struct net_test *t)
{
	static uint16_t seen = VIRTIO_NET_S_LINK_UP;
	uint16_t status;

	config_seen = t->device->config_interrupts;
	if (!virtio_has_feature(t->device, VIRTIO_NET_F_STATUS))
		return;
	status = NET_CONFIG(16, t->device, status);
	if ((status ^ seen) & VIRTIO_NET_S_LINK_UP)
		tap_note("link %s", status & VIRTIO_NET_S_LINK_UP ? "up" : "down");
	seen = status;
	if (status & VIRTIO_NET_S_ANNOUNCE
	    && virtio_has_feature(t->device, VIRTIO_NET_F_GUEST_ANNOUNCE))
		announce(t);
}

/* ----- the loop ----- */

void serve(struct net_test *t)
{
	const uint64_t limit = cmdline_number("net.frames", 0);
	unsigned int count;

	stream_open(t, BUFFERS);
	virtq_disable_interrupts(&t->net.tx[0]);
	config_seen = t->device->config_interrupts;
	tap_note("ready");
	while (!stopped && !(limit && counts.icmp + counts.udp >= limit)) {
		count = take_received(t);
		virtq_kick(&t->net.tx[0]);
		count += take_transmitted(t);
		virtq_kick(&t->net.rx[0]);
		if (t->device->config_interrupts != config_seen)
			look_at_config(t);
		if (!count)
			sleep(t);
	}
	while (t->net.tx[0].num_free != t->net.tx[0].size && virtq_poll(&t->net.tx[0]))
		take_transmitted(t);
	tap_note("served arp=%u icmp=%u udp=%u bad_checksum=%u other=%u dropped=%u", counts.arp,
		 counts.icmp, counts.udp, counts.bad_checksum, counts.other, counts.dropped);
	CHECK(t, t->net.tx[0].num_free == t->net.tx[0].size, "every reply was sent");
	virtio_reset(t->device);
	tap_done();
}

// SPDX-License-Identifier: MIT
/*
 * net.mode=send and net.mode=receive: numbered UDP datagrams.  A payload is words of 8 bytes,
 * little-endian: the sequence number, then again and again the number times PATTERN_STEP (modulo
 * 2^64), the last one cut off where the payload ends.
 */
#include "net/test.h"

#define PATTERN_STEP	UINT64_C(0x9e3779b97f4a7c15)	/* 2^64 over the golden ratio */
#define WORD		sizeof(uint64_t)
#define SEQUENCE_END	UINT64_MAX
#define SEQUENCE_LIMIT	(UINT64_C(1) << 22)	/* numbers that are kept account of */

#define QUEUE_SIZE	256
#define BUFFER_SIZE	1536
#define BATCH		32	/* packets between two kicks */
#define DEFAULT_PORT	5001
#define DEFAULT_FRAMES	1000
#define DEFAULT_SIZE	64

void stream_open(struct net_test *t, unsigned int count)
{
	const struct net_buffers buffers = {
		.size = BUFFER_SIZE,
		.count = count,
		.placement = VIRTQ_DIRECT,
		.pieces = net_whole,
	};
	const uint64_t wanted = cmdline_number("net.features", BIT(VIRTIO_F_EVENT_IDX))
				& (NET_FEATURES_PACKET | NET_FEATURES_RING);

	net_open(&t->net, t->device, t->device->offered
		 & (wanted | NET_FEATURES_BASE | BIT(VIRTIO_NET_F_CTRL_VQ)
		    | BIT(VIRTIO_NET_F_GUEST_ANNOUNCE)),
		 1, QUEUE_SIZE, &buffers);
}

static uint16_t port_option(void)
{
	return (uint16_t)cmdline_number("net.port", DEFAULT_PORT);
}

/* ----- sending ----- */

static struct sender {
	uint32_t size;		/* of the payload */
	uint32_t len;		/* of the packet */
	uint64_t words;		/* of pattern */
	uint64_t tail_mask;	/* what of one more word still fits */
	uint64_t sum;		/* of what is the same in every datagram */
	struct net_packet packet;
	uint64_t sequence;	/* of the next one */
} sender;

static uint64_t tail_mask(uint32_t size)
{
	return (UINT64_C(1) << size % WORD * 8) - 1;
}

static void prepare_sender(struct net_test *t)
{
	struct udp_frame *frame = (void *)sender.packet.frame;

	sender.size = (uint32_t)cmdline_number("net.size", DEFAULT_SIZE);
	if (sender.size < WORD || sender.size > PAYLOAD_MAX)
		tap_bail_out("net.size is 8 to %zu", PAYLOAD_MAX);
	sender.words = sender.size / WORD - 1;
	sender.tail_mask = tail_mask(sender.size);
	sender.len = (uint32_t)sizeof(sender.packet.header)
		     + make_udp(frame, &t->link, port_option(), sender.size);
	sender.sum = sum_bytes(sum_pseudo(&frame->ip, be16(frame->udp.length)), &frame->udp,
			       sizeof(frame->udp));
}

/* The checksum follows from the number: equal words add up to a product. */
static void number_packet(struct net_packet *packet, uint64_t sequence)
{
	struct udp_frame *frame = (void *)packet->frame;
	const uint64_t word = sequence * PATTERN_STEP;
	const uint64_t tail = word & sender.tail_mask;
	void *position = frame->payload + WORD;
	uint64_t count = sender.words;
	uint16_t checksum;

	*(uint64_t *)frame->payload = sequence;
	__asm__ volatile("rep stosq" : "+D"(position), "+c"(count) : "a"(word) : "memory");
	if (sender.tail_mask)
		memcpy(position, &tail, sender.size % WORD);
	checksum = (uint16_t)~sum_fold(sum_add(sum_add(sender.sum + sender.words * sum_fold(word),
						       sequence), tail));
	frame->udp.checksum = checksum ? checksum : UINT16_MAX;
}

static void send_one(struct virtq *vq, struct net_packet *packet)
{
	const struct virtq_element element = { packet, sender.len };

	number_packet(packet, sender.sequence++);
	virtq_add(vq, &element, 1, 0, VIRTQ_DIRECT, packet);
	if (sender.sequence % BATCH == 0)
		virtq_kick(vq);
}

static bool is_used(const void *context)
{
	return virtq_has_used(context);
}

/* One interrupt for half of what is in flight, where that can be asked for. */
static bool sleep_for_half(struct virtq *vq)
{
	if (vq->event_idx)
		virtq_interrupt_after(vq, (uint16_t)(vq->size - vq->num_free + 1) / 2);
	else
		virtq_enable_interrupts(vq);
	virtio_sleep(vq->device, is_used, vq);
	virtq_disable_interrupts(vq);
	return virtq_has_used(vq);
}

/* Send with every packet that comes back, until as many as asked for are sent. */
static bool send_all(struct virtq *vq, uint64_t frames)
{
	struct net_packet *packet;
	uint32_t len;

	while (vq->num_free && sender.sequence < frames) {
		packet = memory_alloc(sizeof(*packet), WORD);
		memcpy(packet, &sender.packet, sender.len);
		send_one(vq, packet);
	}
	for (;;) {
		while ((packet = virtq_get_used(vq, &len)))
			if (sender.sequence < frames)
				send_one(vq, packet);
		virtq_kick(vq);
		if (vq->num_free == vq->size)
			return true;
		if (!sleep_for_half(vq))
			return false;
	}
}

void send(struct net_test *t)
{
	const uint64_t frames = cmdline_number("net.frames", DEFAULT_FRAMES);

	stream_open(t, TEST_BUFFERS);
	if (!find_peer(t))
		tap_bail_out("%s: no host answers at net.peer", t->name);
	virtq_disable_interrupts(&t->net.rx[0]);
	prepare_sender(t);
	tap_note("ready");
	CHECK(t, send_all(&t->net.tx[0], frames), "every datagram was sent");
	tap_note("sent %llu", (unsigned long long)sender.sequence);
	virtio_reset(t->device);
	tap_done();
}

/* ----- receiving ----- */

static struct {
	uint64_t received;	/* different ones */
	uint64_t repeated;
	uint64_t corrupted;
	uint64_t reordered;
	uint64_t next;		/* the highest number so far, and one */
	bool ended;
} counts;

static bool payload_matches(const uint8_t *payload, uint32_t size, uint64_t sequence)
{
	const uint64_t word = sequence * PATTERN_STEP;
	const uint64_t tail = word & tail_mask(size);
	const void *position = payload + WORD;
	uint64_t count = size / WORD - 1;
	bool equal;

	__asm__ volatile("cmpq %%rax, %%rax\n\trepe scasq"
			 : "=@cce"(equal), "+D"(position), "+c"(count) : "a"(word) : "memory");
	return equal && (size % WORD == 0 || !memcmp(position, &tail, size % WORD));
}

static void count_datagram(const struct udp_frame *frame)
{
	static uint64_t seen[SEQUENCE_LIMIT / 64];
	const uint32_t size = be16(frame->udp.length) - (uint32_t)sizeof(frame->udp);
	const uint64_t sequence = *(const uint64_t *)frame->payload;

	if (size >= WORD && sequence == SEQUENCE_END) {
		counts.ended = true;
		return;
	}
	if (size < WORD || sequence >= SEQUENCE_LIMIT
	    || !payload_matches(frame->payload, size, sequence)) {
		counts.corrupted++;
		return;
	}
	if (seen[sequence / 64] & BIT(sequence % 64)) {
		counts.repeated++;
		return;
	}
	seen[sequence / 64] |= BIT(sequence % 64);
	counts.received++;
	if (sequence < counts.next)
		counts.reordered++;
	else
		counts.next = sequence + 1;
}

static void answer_arp(struct net_test *t, const struct net_packet *request, uint32_t len)
{
	static struct net_packet reply;

	memcpy(reply.frame, request->frame, len);
	turn_arp(reply.frame, &t->link);
	net_transmit(&t->net, 0, &reply, len, VIRTQ_DIRECT, net_whole);
}

static void take_packet(struct net_test *t, const struct net_packet *packet, uint32_t used_len,
			uint16_t port)
{
	const struct udp_frame *frame = (const void *)packet->frame;
	const bool validated = packet->header.flags
			       & (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID);
	const uint32_t len = used_len - (uint32_t)sizeof(packet->header);

	if (used_len < sizeof(packet->header) || used_len > NET_PACKET_MAX)
		return;
	switch (classify(frame, len, &t->link, validated)) {
	case PACKET_UDP:
		if (frame->udp.destination == port)
			count_datagram(frame);
		break;
	case PACKET_ARP_REQUEST:
		answer_arp(t, packet, len);
		break;
	case PACKET_BAD_CHECKSUM:
		counts.corrupted++;
		break;
	default:
		break;
	}
}

static void receive_batch(struct net_test *t, uint16_t port)
{
	struct virtq *vq = &t->net.rx[0];
	struct virtq_element element = { NULL, t->net.buffers.size };
	uint32_t len;

	for (unsigned int i = 0; i < BATCH && (element.addr = virtq_get_used(vq, &len)); i++) {
		take_packet(t, element.addr, len, port);
		virtq_add(vq, &element, 0, 1, VIRTQ_DIRECT, element.addr);
	}
	virtq_kick(vq);
}

void receive(struct net_test *t)
{
	const uint16_t port = be16(port_option());
	struct virtq *vq = &t->net.rx[0];

	stream_open(t, QUEUE_SIZE);
	virtq_disable_interrupts(&t->net.tx[0]);
	tap_note("ready");
	while (!counts.ended && virtq_sleep(vq)) {
		virtq_disable_interrupts(vq);
		while (!counts.ended && virtq_has_used(vq))
			receive_batch(t, port);
	}
	tap_note("received %llu missing %llu repeated %llu corrupted %llu",
		 (unsigned long long)counts.received,
		 (unsigned long long)(counts.next - counts.received),
		 (unsigned long long)counts.repeated, (unsigned long long)counts.corrupted);
	tap_note("reordered %llu", (unsigned long long)counts.reordered);
	CHECK(t, counts.ended && !counts.repeated && !counts.corrupted,
	      "no datagram came twice or changed");
	virtio_reset(t->device);
	tap_done();
}

// SPDX-License-Identifier: MIT
/*
 * Exercises every socket device found (5.10).
 *
 *	vsock.echo=PORT		a program of the host's there sends back what it gets: talk to it
 *	vsock.messages=PORT	the same by seqpacket sockets
 *	vsock.sink=PORT		a program there takes what it gets: with
 *	vsock.packets=N		send it N packets of 4 KiB, counted and timed,
 *	vsock.depth=N		so many at a time
 *	vsock.sound=1		send no malformed packet: the kernel's vhost-vsock gives its queue up
 */
#include "cpu.h"
#include "virtio_test.h"
#include "workload.h"

#define VIRTIO_ID_VSOCK			19

#define VIRTIO_VSOCK_F_STREAM		0
#define VIRTIO_VSOCK_F_SEQPACKET	1
#define VIRTIO_VSOCK_F_NO_IMPLIED_STREAM 2

#define RX				0
#define TX				1
#define EVENT				2
#define QUEUE_SIZE			64

#define HOST_CID			2
#define TYPE_STREAM			1
#define TYPE_SEQPACKET			2
#define SHUTDOWN_BOTH			3
#define SEQ_EOM				1

enum operation {
	OP_REQUEST = 1, OP_RESPONSE, OP_RST, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST,
};

struct __attribute__((packed)) header {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port, len;
	uint16_t type, op;
	uint32_t flags, buf_alloc, fwd_cnt;
};

#define DATA_MAX	4096
#define BUFFERS		16
#define NO_PORT		0xfffffffd	/* at which no program listens */

struct packet {
	struct header header;
	uint8_t data[DATA_MAX];
};

struct connection {
	uint32_t port, host_port;
	uint16_t type;
	uint32_t buf_alloc, received, sent;	/* ours; and bytes both ways */
	uint32_t peer_buf_alloc, peer_fwd_cnt;
};

const char *const guest_options[] = {
	"vsock.echo", "vsock.messages", "vsock.sink", "vsock.packets", "vsock.depth",
	"vsock.sound", NULL
};

static struct virtq rx, tx, event;
static uint64_t guest_cid;
static uint32_t next_port;
static struct packet buffers[BUFFERS], outgoing[WORKLOAD_DEPTH_MAX];
static uint8_t event_buffer[4];

/* ----- packets ----- */

static void supply(struct packet *packet)
{
	const struct virtq_element elements[] = {
		{ &packet->header, sizeof(packet->header) }, { packet->data, DATA_MAX },
	};

	if (!virtq_add(&rx, elements, 0, 2, VIRTQ_DIRECT, packet))
		tap_bail_out("no room for a buffer in the rx queue");
	virtq_kick(&rx);
}

static void transmit(struct virtio_test *t, const struct virtq_element *elements,
		     unsigned int count, enum virtq_placement placement)
{
	uint32_t len;

	if (!virtq_add(&tx, elements, count, 0, placement, outgoing))
		tap_bail_out("%s: no room for a packet in an idle queue", t->name);
	virtq_kick(&tx);
	if (!virtq_sleep(&tx) || !virtq_get_used(&tx, &len))
		tap_bail_out("%s: the device broke", t->name);
	if (len)
		tap_bail_out("%s: %u bytes written to a packet", t->name, len);
}

static void fill(struct header *header, const struct connection *c, enum operation op, uint32_t len,
		 uint32_t flags)
{
	*header = (struct header){
		.src_cid = guest_cid, .dst_cid = HOST_CID,
		.src_port = c->port, .dst_port = c->host_port,
		.len = len, .type = c->type, .op = op, .flags = flags,
		.buf_alloc = c->buf_alloc, .fwd_cnt = c->received,
	};
}

static void send(struct virtio_test *t, struct connection *c, enum operation op, const uint8_t *data,
		 uint32_t len, uint32_t flags)
{
	const struct virtq_element elements[] = {
		{ &outgoing[0].header, sizeof(struct header) }, { outgoing[0].data, len },
	};

	fill(&outgoing[0].header, c, op, len, flags);
	memcpy(outgoing[0].data, data, len);
	transmit(t, elements, len ? 2 : 1, VIRTQ_DIRECT);
	c->sent += op == OP_RW ? len : 0;
}

/*
 * The next packet from the device, whose buffer goes back by supply(); NULL where none comes.  A RST
 * of another connection is no news: Linux's vhost-vsock says it again when the program closes.
 */
static struct packet *receive(const struct connection *c)
{
	struct packet *packet;
	uint32_t len;

	for (;;) {
		if (!virtq_poll_until(&rx, virtio_deadline()))
			return NULL;
		packet = virtq_get_used(&rx, &len);
		if (len < sizeof(packet->header)
		    || len != sizeof(packet->header) + packet->header.len)
			tap_bail_out("a packet of %u bytes that says it has %u", len,
				     packet->header.len);
		if (packet->header.op != OP_RST || packet->header.dst_port == c->port)
			return packet;
		supply(packet);
	}
}

/* The same, past what tells of credit, which may come at any time (5.10.6.3). */
static struct packet *receive_past_credit(const struct connection *c)
{
	struct packet *packet;

	while ((packet = receive(c)) && packet->header.op == OP_CREDIT_UPDATE)
		supply(packet);
	return packet;
}

/* Whether the next packet is this one of a connection; its credit is taken note of. */
static bool receive_op(struct connection *c, enum operation op)
{
	struct packet *packet = op == OP_CREDIT_UPDATE ? receive(c) : receive_past_credit(c);
	bool right;

	if (!packet)
		return false;
	right = packet->header.op == op && packet->header.type == c->type
		&& packet->header.src_cid == HOST_CID && packet->header.dst_cid == guest_cid
		&& packet->header.src_port == c->host_port && packet->header.dst_port == c->port;
	if (!right)
		tap_note("operation %u of port %u to port %u, not %u", packet->header.op,
			 packet->header.src_port, packet->header.dst_port, op);
	c->peer_buf_alloc = packet->header.buf_alloc;
	c->peer_fwd_cnt = packet->header.fwd_cnt;
	supply(packet);
	return right;
}

static struct connection new_connection(uint32_t host_port, uint16_t type)
{
	return (struct connection){
		.port = next_port++, .host_port = host_port, .type = type, .buf_alloc = 65536,
	};
}

static uint32_t credit(const struct connection *c)
{
	return c->peer_buf_alloc - (c->sent - c->peer_fwd_cnt);
}

/* ----- what is for no connection ----- */

static bool refuses(struct virtio_test *t, enum operation op, uint16_t type)
{
	struct connection c = new_connection(NO_PORT, type);

	send(t, &c, op, NULL, 0, 0);
	return receive_op(&c, OP_RST);
}

static bool refuses_in_pieces(struct virtio_test *t, const uint16_t *pieces,
			      enum virtq_placement placement)
{
	struct connection c = new_connection(NO_PORT, TYPE_STREAM);
	struct virtq_element elements[16];
	unsigned int count;

	fill(&outgoing[0].header, &c, OP_REQUEST, 0, 0);
	count = virtq_cut(elements, &outgoing[0].header, sizeof(struct header), pieces);
	transmit(t, elements, count, placement);
	return receive_op(&c, OP_RST);
}

static void test_refusals(struct virtio_test *t)
{
	static const uint16_t cut[] = { 1, 8, 7, 4, 20, 0 };
	const struct virtq_element cut_short = { &outgoing[0].header, sizeof(struct header) - 1 };
	struct connection c = new_connection(NO_PORT, TYPE_STREAM);

	CHECK(t, refuses(t, OP_REQUEST, TYPE_STREAM),
	      "a port without a program refuses by a RST (5.10.6.5)");
	CHECK(t, refuses(t, OP_REQUEST, 3), "an unknown type is answered by a RST (5.10.6.4.2)");
	CHECK(t, refuses(t, OP_RW, TYPE_STREAM), "data for no connection are answered by a RST");
	CHECK(t, refuses(t, OP_CREDIT_REQUEST, TYPE_STREAM), "so is a question for credit");
	send(t, &c, OP_RST, NULL, 0, 0);
	CHECK(t, refuses(t, OP_REQUEST, TYPE_STREAM), "a RST itself has no answer");
	if (!cmdline_number("vsock.sound", 0)) {
		transmit(t, &cut_short, 1, VIRTQ_DIRECT);
		CHECK(t, refuses(t, OP_REQUEST, TYPE_STREAM),
		      "a packet without a whole header is dropped");
	}
	CHECK(t, refuses_in_pieces(t, cut, VIRTQ_DIRECT), "a header may be cut anywhere (2.7.4)");
	if (virtio_has_feature(t->device, VIRTIO_F_INDIRECT_DESC))
		CHECK(t, refuses_in_pieces(t, cut, VIRTQ_INDIRECT),
		      "a header may be in an indirect table (2.7.5.3)");
}

/* ----- talking to a program ----- */

static bool connect(struct virtio_test *t, struct connection *c)
{
	send(t, c, OP_REQUEST, NULL, 0, 0);
	return receive_op(c, OP_RESPONSE) && c->peer_buf_alloc;
}

static bool disconnect(struct virtio_test *t, struct connection *c)
{
	send(t, c, OP_SHUTDOWN, NULL, 0, SHUTDOWN_BOTH);
	return receive_op(c, OP_RST);
}

static uint8_t byte_at(uint32_t position)
{
	return (uint8_t)(position * 31 + (position >> 8));
}

/* Take packets until `count` bytes have come in all, each as it was sent. */
static bool receive_echo(struct connection *c, uint32_t count)
{
	struct packet *packet;
	bool good = true;

	while (good && c->received < count) {
		packet = receive(c);
		if (!packet)
			return false;
		c->peer_buf_alloc = packet->header.buf_alloc;
		c->peer_fwd_cnt = packet->header.fwd_cnt;
		if (packet->header.op == OP_RW)
			for (uint32_t i = 0; i < packet->header.len; i++)
				good &= packet->data[i] == byte_at(c->received++);
		else
			good = packet->header.op == OP_CREDIT_UPDATE
			       || packet->header.op == OP_CREDIT_REQUEST;
		supply(packet);
	}
	return good && c->received == count;
}

static void send_bytes(struct virtio_test *t, struct connection *c, uint32_t len)
{
	static uint8_t data[DATA_MAX];

	for (uint32_t i = 0; i < len; i++)
		data[i] = byte_at(c->sent + i);
	send(t, c, OP_RW, data, len, 0);
}

static void test_echo(struct virtio_test *t, uint32_t port)
{
	struct connection c = new_connection(port, TYPE_STREAM);
	bool good = true;

	if (!CHECK(t, connect(t, &c), "a program accepts a connection (5.10.6.5)"))
		return;
	for (unsigned int i = 0; i < 8 && good; i++) {
		send_bytes(t, &c, 1000 + i);
		good = receive_echo(&c, c.sent);
	}
	CHECK(t, good, "bytes go to the program and come back as they were");
	CHECK(t, credit(&c) <= c.peer_buf_alloc, "no more has left the buffer than was sent (5.10.6.3)");

	send(t, &c, OP_CREDIT_REQUEST, NULL, 0, 0);
	CHECK(t, receive_op(&c, OP_CREDIT_UPDATE), "a question for credit is answered (5.10.6.3)");
	CHECK_IS(t, c.peer_fwd_cnt, c.sent, "all that was sent has left the buffer");

	/* Room for 100 bytes more than have come: so many come. Some devices then ask for more. */
	c.buf_alloc = 100;
	send_bytes(t, &c, 250);
	CHECK(t, receive_echo(&c, c.sent - 150),
	      "no more comes than there is room for (5.10.6.3.2)");
	c.buf_alloc = 65536;
	send(t, &c, OP_CREDIT_UPDATE, NULL, 0, 0);
	CHECK(t, receive_echo(&c, c.sent), "the rest comes once there is room");
	CHECK(t, disconnect(t, &c), "a connection that is shut down ends with a RST (5.10.6.5)");

	for (unsigned int i = 0; i < 20 && good; i++) {
		c = new_connection(port, TYPE_STREAM);
		good = connect(t, &c) && disconnect(t, &c);
	}
	CHECK(t, good, "connections come and go");
}

static bool receive_message(struct connection *c, const uint8_t *data, uint32_t len)
{
	struct packet *packet = receive_past_credit(c);
	bool good;

	if (!packet)
		return false;
	good = packet->header.op == OP_RW && packet->header.len == len
	       && packet->header.flags & SEQ_EOM && memory_equal(packet->data, data, len);
	c->received += packet->header.len;
	supply(packet);
	return good;
}

static void test_messages(struct virtio_test *t, uint32_t port)
{
	static const uint8_t text[] = "one message in two packets";
	struct connection c = new_connection(port, TYPE_SEQPACKET);

	if (!CHECK(t, connect(t, &c), "a program accepts a seqpacket connection (5.10.6.6)"))
		return;
	send(t, &c, OP_RW, text, 12, 0);
	send(t, &c, OP_RW, text + 12, sizeof(text) - 12, SEQ_EOM);
	CHECK(t, receive_message(&c, text, sizeof(text)), "a message in packets is one (5.10.6.6.1)");
	send(t, &c, OP_RW, text, 3, SEQ_EOM);
	send(t, &c, OP_RW, text, 5, SEQ_EOM);
	CHECK(t, receive_message(&c, text, 3) && receive_message(&c, text, 5),
	      "messages that follow one another stay apart (5.10.6.6.1)");
	CHECK(t, disconnect(t, &c), "it ends with a RST (5.10.6.5)");
}

/* ----- packets to be counted ----- */

struct flow {
	struct virtio_test *t;
	struct connection connection;
	uint32_t depth;
};

static bool submit(void *context, unsigned int slot)
{
	struct flow *flow = context;
	struct connection *c = &flow->connection;
	struct packet *packet = &outgoing[slot];
	const struct virtq_element elements[] = {
		{ &packet->header, sizeof(packet->header) }, { packet->data, DATA_MAX },
	};

	/* For the whole batch: what was added and not kicked would not be answered. */
	while (!slot && credit(c) < flow->depth * DATA_MAX)
		if (!receive_op(c, OP_CREDIT_UPDATE))
			tap_bail_out("%s: no credit", flow->t->name);
	fill(&packet->header, c, OP_RW, DATA_MAX, 0);
	c->sent += DATA_MAX;
	return virtq_add(&tx, elements, 2, 0, VIRTQ_DIRECT, packet);
}

static bool check(void *context, void *token, uint32_t len)
{
	(void)context;
	return token && !len;
}

static void measure(struct virtio_test *t, uint32_t port, uint64_t packets)
{
	struct flow flow = {
		.t = t, .connection = new_connection(port, TYPE_STREAM),
		.depth = workload_depth("vsock.depth", 16u),
	};
	const struct workload workload = {
		.vq = &tx, .requests = packets, .depth = flow.depth,
		.context = &flow, .submit = submit, .check = check,
	};

	if (!connect(t, &flow.connection))
		tap_bail_out("%s: no program takes packets at port %u", t->name, port);
	CHECK_IS(t, workload_run(&workload), packets, "the packets were taken");
}

/* ----- a device ----- */

static void open(struct virtio_test *t, uint64_t features)
{
	const struct virtq_element room = { event_buffer, sizeof(event_buffer) };

	virtio_test_name(t, features);
	virtio_test_negotiate(t, features);
	virtq_setup_at_most(&rx, t->device, RX, QUEUE_SIZE);
	virtq_setup_at_most(&tx, t->device, TX, QUEUE_SIZE);
	virtq_setup_at_most(&event, t->device, EVENT, 8);
	virtio_driver_ok(t->device);
	guest_cid = virtio_config_read64(t->device, 0);
	if (!virtq_add(&event, &room, 0, 1, VIRTQ_DIRECT, event_buffer))
		tap_bail_out("%s: no room for an event", t->name);
	virtq_kick(&event);
	for (size_t i = 0; i < BUFFERS; i++)
		supply(&buffers[i]);
}

static void test_features(struct virtio_test *t, uint64_t features)
{
	const uint32_t echo = (uint32_t)cmdline_number("vsock.echo", 0);
	const uint32_t messages = (uint32_t)cmdline_number("vsock.messages", 0);

	open(t, features);
	CHECK(t, guest_cid > HOST_CID && guest_cid < 0xffffffff,
	      "guest_cid is no reserved one (5.10.6.4.2)");
	test_refusals(t);
	if (echo)
		test_echo(t, echo);
	if (messages && virtio_has_feature(t->device, VIRTIO_VSOCK_F_SEQPACKET))
		test_messages(t, messages);
	CHECK(t, !virtq_has_used(&event), "no event came, for none was due (5.10.6.7)");
}

static void test_device(struct virtio_test *t)
{
	static const uint64_t feature_sets[] = {
		0,
		BIT(VIRTIO_VSOCK_F_STREAM) | BIT(VIRTIO_VSOCK_F_NO_IMPLIED_STREAM),
		BIT(VIRTIO_VSOCK_F_SEQPACKET),
		BIT(VIRTIO_VSOCK_F_SEQPACKET) | BIT(VIRTIO_F_EVENT_IDX) | BIT(VIRTIO_F_INDIRECT_DESC),
	};
	const uint64_t packets = cmdline_number("vsock.packets", 0);

	if (packets) {
		open(t, t->device->offered & (BIT(VIRTIO_F_EVENT_IDX)));
		measure(t, (uint32_t)cmdline_number("vsock.sink", 0), packets);
		virtio_reset(t->device);
		return;
	}
	virtio_test_basics(t);
	virtio_test_feature_sets(t, feature_sets, ARRAY_SIZE(feature_sets), test_features);
}

int main(void)
{
	next_port = 1000;
	virtio_test_each(VIRTIO_ID_VSOCK, "vsock", test_device);
	tap_done();
}

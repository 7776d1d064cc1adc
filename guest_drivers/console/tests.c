// SPDX-License-Identifier: MIT
/* The tests of a console that need no program on the other side, although what they write arrives there. */
#include "console/test.h"

#define UNKNOWN_EVENT	0xeeee

static struct virtio_console console;
static const uint16_t whole[] = { 0 };

/* ----- output ----- */

static void test_framing(struct virtio_test *t, struct console_port *port)
{
	static const struct {
		const char *name;
		uint16_t pieces[9];
	} framings[] = {
		{ "one descriptor", { 0 } },
		{ "one-byte pieces", { 1, 1, 1, 1, 1, 1, 1, 1, 0 } },
		{ "odd pieces", { 3, 1, 7, 0 } },
	};
	static const char *const placements[] = { "direct", "indirect" };
	const bool indirect = virtio_has_feature(t->device, VIRTIO_F_INDIRECT_DESC);
	char line[96];
	size_t len;

	for (unsigned int placement = VIRTQ_DIRECT; placement <= indirect; placement++)
		for (size_t i = 0; i < ARRAY_SIZE(framings); i++) {
			len = snprintf(line, sizeof(line), "%s: %s, %s\n", t->name, framings[i].name,
				       placements[placement]);
			tap_ok(console_write_framed(port, line, (uint32_t)len, placement,
						    framings[i].pieces),
			       "%s: writes in %s, %s (2.7.4.1)", t->name, framings[i].name,
			       placements[placement]);
		}
}

static void test_output(struct virtio_test *t, struct console_port *port)
{
	static const char newline[] = "\n";
	const unsigned int rounds = 3;
	const uint32_t seen = t->device->used_interrupts;
	const struct virtq_element element = { (void *)newline, 1 };
	const struct virtq_element dot = { (void *)".", 1 };
	bool good = true;
	uint32_t len;

	virtq_enable_interrupts(&port->tx);
	virtq_add(&port->tx, &element, 1, 0, VIRTQ_DIRECT, port);
	virtq_kick(&port->tx);
	CHECK(t, virtio_wait_interrupt(t->device, seen) && virtq_sleep(&port->tx)
	      && virtq_get_used(&port->tx, &len) == port,
	      "an interrupt tells of the used buffer (2.7.7.2)");
	virtq_disable_interrupts(&port->tx);
	test_framing(t, port);
	for (unsigned int i = 0; i < rounds && good; i++)
		good = virtio_test_fill(&port->tx, &dot);
	CHECK(t, good && console_write(port, newline, 1),
	      "a full ring is written, each buffer once, three times over (2.7.14)");
}

/* ----- MULTIPORT (5.3.6.2) ----- */

static struct {
	unsigned int added[CONSOLE_PORTS_MAX];
	unsigned int count;
	unsigned int names;
	const char *fault;
	bool nul_in_name;
} seen;

static void judge_message(struct virtio_console *c, const struct console_message *message,
			  uint32_t len)
{
	const uint32_t id = message->control.id;
	const uint32_t extra = len - (uint32_t)sizeof(message->control);

	if (len < sizeof(message->control)) {
		seen.fault = "a control message is too short";
		return;
	}
	if (id >= c->max_nr_ports) {
		seen.fault = "a port is not less than max_nr_ports";
		return;
	}
	switch (message->control.event) {
	case VIRTIO_CONSOLE_DEVICE_ADD:
		seen.count++;
		if (id < CONSOLE_PORTS_MAX && seen.added[id]++)
			seen.fault = "a port is added twice";
		break;
	case VIRTIO_CONSOLE_PORT_NAME:
		seen.names++;
		if (!extra)
			seen.fault = "a name is empty";
		else if (!message->name[MIN(extra, CONSOLE_NAME_SIZE) - 1])
			seen.nul_in_name = true;
		break;
	case VIRTIO_CONSOLE_RESIZE:
		if (extra < sizeof(message->resize))
			seen.fault = "RESIZE has no size";
		break;
	case VIRTIO_CONSOLE_CONSOLE_PORT:
	case VIRTIO_CONSOLE_PORT_OPEN:
	case VIRTIO_CONSOLE_DEVICE_REMOVE:
		break;
	default:
		seen.fault = "an event is not one that a device sends";
	}
}

static struct console_port *first_port(void)
{
	for (unsigned int i = 0; i < console.port_count; i++)
		if (console.ports[i].exists)
			return &console.ports[i];
	return NULL;
}

static bool send_nonsense(void)
{
	static const struct virtio_console_control nonsense[] = {
		{ 0, UNKNOWN_EVENT, 1 },
		{ UINT32_MAX, VIRTIO_CONSOLE_PORT_READY, 1 },
		{ UINT32_MAX, VIRTIO_CONSOLE_PORT_OPEN, 1 },
		{ CONSOLE_PORTS_MAX + 1, VIRTIO_CONSOLE_PORT_READY, 1 },
		{ 0, VIRTIO_CONSOLE_DEVICE_ADD, 1 },
		{ 0, VIRTIO_CONSOLE_DEVICE_REMOVE, 1 },
	};
	static const struct console_message large = { .control = { 0, UNKNOWN_EVENT, 1 } };

	for (size_t i = 0; i < ARRAY_SIZE(nonsense); i++)
		if (!console_send_control(&console, &nonsense[i], sizeof(nonsense[i])))
			return false;
	return console_send_control(&console, &nonsense[0], sizeof(nonsense[0]) / 2)
	       && console_send_control(&console, &nonsense[0], 1)
	       && console_send_control(&console, &large, sizeof(large));
}

static void test_ports(struct virtio_test *t)
{
	struct console_port *port = first_port();

	if (!CHECK(t, !seen.fault, "control messages are as they should be (5.3.6.2)"))
		tap_note("%s", seen.fault);
	CHECK_EXCEPT_QEMU(t, !seen.nul_in_name, "7.2 sends it", "no name ends in a NUL (5.3.6.2)");
	tap_note("%s: %u of up to %u ports, %u with a name", t->name, seen.count,
		 console.max_nr_ports, seen.names);
	if (!port) {
		SKIP(t, "there is no port", "a port takes output (5.3.6)");
		return;
	}
	CHECK(t, send_nonsense() && console_write(port, "!\n", 2),
	      "control messages that mean nothing are taken, and do nothing (5.3.6.2)");
	console_settle(&console);
	CHECK(t, port->exists && !seen.fault, "no port came or went for that");
}

static void test_multiport(struct virtio_test *t, uint64_t features)
{
	struct console_port *port;

	memset(&seen, 0, sizeof(seen));
	console.on_message = judge_message;
	features |= BIT(VIRTIO_CONSOLE_F_MULTIPORT);
	virtio_test_name(t, features);
	console_open(&console, t->device, features);
	CHECK(t, console.max_nr_ports >= 1, "max_nr_ports is 1 or more (5.3.4)");
	console_settle(&console);
	test_ports(t);
	port = first_port();
	if (port)
		test_output(t, port);
}

/* ----- configuration space (5.3.4) ----- */

static void test_config(struct virtio_test *t)
{
	virtio_reset(t->device);
	if (t->device->offered & BIT(VIRTIO_CONSOLE_F_EMERG_WRITE)) {
		console_emergency_write(t->device, "emergency before\n");
		console_open(&console, t->device, 0);
		console_emergency_write(t->device, "emergency after\n");
		CHECK(t, console_write_framed(&console.ports[0], "ordinary\n", 9, VIRTQ_DIRECT, whole),
		      "emerg_wr is taken before and after initialization (5.3.5.1)");
	} else {
		SKIP(t, "EMERG_WRITE is not offered",
		     "emerg_wr is taken before and after initialization (5.3.5.1)");
	}
	if (!(t->device->offered & BIT(VIRTIO_CONSOLE_F_SIZE))) {
		SKIP(t, "SIZE is not offered", "cols and rows are there (5.3.4)");
		return;
	}
	console_open(&console, t->device, BIT(VIRTIO_CONSOLE_F_SIZE));
	CHECK_IS(t, CONSOLE_CONFIG(32, t->device, cols),
		 CONSOLE_CONFIG(16, t->device, cols) | CONSOLE_CONFIG(16, t->device, rows) << 16,
		 "cols and rows are there (5.3.4)");
	tap_note("%s: %u columns, %u rows", t->name, CONSOLE_CONFIG(16, t->device, cols),
		 CONSOLE_CONFIG(16, t->device, rows));
}

void run_tests(struct virtio_test *t)
{
	static const uint64_t sets[] = {
		0,
		BIT(VIRTIO_F_INDIRECT_DESC),
		BIT(VIRTIO_F_EVENT_IDX),
		CONSOLE_FEATURES_RING,
	};

	console = (struct virtio_console){ 0 };
	virtio_test_basics(t);
	test_config(t);
	for (size_t i = 0; i < ARRAY_SIZE(sets); i++) {
		if ((t->device->offered & sets[i]) != sets[i])
			continue;
		virtio_test_name(t, sets[i]);
		console_open(&console, t->device, sets[i]);
		test_output(t, &console.ports[0]);
	}
	virtio_test_name(t, BIT(VIRTIO_CONSOLE_F_MULTIPORT));
	if (t->device->offered & BIT(VIRTIO_CONSOLE_F_MULTIPORT)) {
		test_multiport(t, 0);
		test_multiport(t, t->device->offered & CONSOLE_FEATURES_RING);
	} else {
		SKIP(t, "MULTIPORT is not offered", "control messages are as they should be (5.3.6.2)");
	}
	virtio_reset(t->device);
}

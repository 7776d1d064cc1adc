// SPDX-License-Identifier: MIT
/* The driver of a console device (5.3). */
#include "cpu.h"
#include "runtime.h"
#include "virtio_console.h"

#define QUEUE_SIZE	16
#define ALIGN		16
#define PIECES_MAX	16
#define QUIET_TICKS	(UINT64_C(1) << 29)

void console_emergency_write(const struct virtio_device *device, const char *text)
{
	for (; *text; text++)
		virtio_config_write32(device, offsetof(struct virtio_console_config, emerg_wr),
				      (uint8_t)*text);
}

/* ----- initialization (5.3.5) ----- */

/* 5.3.2: the control queues lie between port 0 and port 1. */
static uint16_t receiveq(unsigned int port)
{
	return (uint16_t)(port ? 2 * port + 2 : 0);
}

#define CONTROL_RECEIVEQ	2
#define CONTROL_TRANSMITQ	3

static void add_port(struct console_port *port)
{
	port->exists = true;
	if (port->buffers)
		return;		/* it was here before, and the device has its buffers */
	port->buffers = memory_alloc(CONSOLE_BUFFERS * sizeof(*port->buffers), ALIGN);
	for (unsigned int i = 0; i < CONSOLE_BUFFERS; i++)
		console_recycle(port, &port->buffers[i]);
	virtq_kick(&port->rx);
}

static void post_message(struct virtq *vq, struct console_message *message)
{
	const struct virtq_element element = { message, sizeof(*message) };

	virtq_add(vq, &element, 0, 1, VIRTQ_DIRECT, message);
}

static void open_control(struct virtio_console *console)
{
	struct virtq *vq = &console->control_rx;
	struct console_message *messages;

	virtq_setup_at_most(vq, console->device, CONTROL_RECEIVEQ, QUEUE_SIZE);
	virtq_setup_at_most(&console->control_tx, console->device, CONTROL_TRANSMITQ, QUEUE_SIZE);
	messages = memory_alloc(vq->size * sizeof(*messages), ALIGN);
	for (unsigned int i = 0; i < vq->size; i++)
		post_message(vq, &messages[i]);
}

void console_open(struct virtio_console *console, struct virtio_device *device, uint64_t features)
{
	if (!console->memory)
		console->memory = memory_mark();
	if (!virtio_negotiate(device, features | BIT(VIRTIO_F_VERSION_1)))
		tap_bail_out("slot %u refuses features 0x%llx, all of which it offers (2.2.2)",
			     device->slot, (unsigned long long)features);
	memory_release(console->memory);
	memset(console->ports, 0, sizeof(console->ports));
	console->device = device;
	console->multiport = virtio_has_feature(device, VIRTIO_CONSOLE_F_MULTIPORT);
	console->max_nr_ports = console->multiport ? CONSOLE_CONFIG(32, device, max_nr_ports) : 1;
	console->port_count = MIN(console->max_nr_ports, CONSOLE_PORTS_MAX);
	for (unsigned int i = 0; i < console->port_count; i++) {
		struct console_port *port = &console->ports[i];

		virtq_setup_at_most(&port->rx, device, receiveq(i), QUEUE_SIZE);
		virtq_setup_at_most(&port->tx, device, (uint16_t)(receiveq(i) + 1), QUEUE_SIZE);
	}
	if (console->multiport)
		open_control(console);
	virtio_driver_ok(device);
	if (console->multiport) {
		virtq_kick(&console->control_rx);
		console_send(console, 0, VIRTIO_CONSOLE_DEVICE_READY, 1);
	} else {
		add_port(&console->ports[0]);
	}
}

/* ----- control messages (5.3.6.2) ----- */

bool console_send_control(struct virtio_console *console, const void *data, uint32_t len)
{
	static uint8_t message[sizeof(struct console_message)];
	const struct virtq_element element = { message, len };
	struct virtq *vq = &console->control_tx;
	uint32_t used_len;

	memcpy(message, data, len);
	if (!virtq_add(vq, &element, 1, 0, VIRTQ_DIRECT, message))
		return false;
	virtq_kick(vq);
	return virtq_poll_until(vq, virtio_deadline()) && virtq_get_used(vq, &used_len) == message;
}

bool console_send(struct virtio_console *console, uint32_t port, uint16_t event, uint16_t value)
{
	const struct virtio_console_control control = { port, event, value };

	return console_send_control(console, &control, sizeof(control));
}

static void take_name(struct console_port *port, const struct console_message *message, uint32_t len)
{
	len = MIN(len - (uint32_t)sizeof(message->control), CONSOLE_NAME_SIZE);
	memcpy(port->name, message->name, len);
	port->name[len] = '\0';
}

static void handle_message(struct virtio_console *console, const struct console_message *message,
			   uint32_t len)
{
	const uint32_t id = message->control.id;
	struct console_port *port;

	if (len < sizeof(message->control) || id >= console->port_count)
		return;
	port = &console->ports[id];
	switch (message->control.event) {
	case VIRTIO_CONSOLE_DEVICE_ADD:
		add_port(port);
		console_send(console, id, VIRTIO_CONSOLE_PORT_READY, 1);
		console_send(console, id, VIRTIO_CONSOLE_PORT_OPEN, 1);
		break;
	case VIRTIO_CONSOLE_DEVICE_REMOVE:
		port->exists = false;
		break;
	case VIRTIO_CONSOLE_CONSOLE_PORT:
		port->console = true;
		/* 5.3.6.2.2: it must be answered so, although the port is open already. */
		console_send(console, id, VIRTIO_CONSOLE_PORT_OPEN, 1);
		break;
	case VIRTIO_CONSOLE_PORT_NAME:
		take_name(port, message, len);
		break;
	default:
		break;
	}
}

unsigned int console_take_messages(struct virtio_console *console)
{
	struct console_message *message;
	unsigned int count = 0;
	uint32_t len;

	if (!console->multiport)
		return 0;
	for (; (message = virtq_get_used(&console->control_rx, &len)); count++) {
		len = MIN(len, (uint32_t)sizeof(*message));
		if (console->on_message)
			console->on_message(console, message, len);
		handle_message(console, message, len);
		post_message(&console->control_rx, message);
	}
	virtq_kick(&console->control_rx);
	return count;
}

static bool has_port(const struct virtio_console *console)
{
	for (unsigned int i = 0; i < console->port_count; i++)
		if (console->ports[i].exists)
			return true;
	return false;
}

void console_settle(struct virtio_console *console)
{
	if (!console->multiport)
		return;
	/* The first one may take as long as the device needs to wake up. */
	if (!has_port(console))
		virtq_poll_until(&console->control_rx, virtio_deadline());
	while (virtq_poll_until(&console->control_rx, read_tsc() + QUIET_TICKS))
		console_take_messages(console);
}

/* ----- data (5.3.6) ----- */

struct console_buffer *console_receive(struct console_port *port)
{
	struct console_buffer *buffer;
	uint32_t len;

	buffer = virtq_get_used(&port->rx, &len);
	if (buffer) {
		buffer->len = MIN(len, CONSOLE_BUFFER_SIZE);
		port->receiving--;
	}
	return buffer;
}

void console_recycle(struct console_port *port, struct console_buffer *buffer)
{
	const struct virtq_element element = { buffer->data, CONSOLE_BUFFER_SIZE };

	if (virtq_add(&port->rx, &element, 0, 1, VIRTQ_DIRECT, buffer))
		port->receiving++;
}

void console_echo(struct console_port *port, struct console_buffer *buffer)
{
	const struct virtq_element element = { buffer->data, buffer->len };

	if (!buffer->len || !virtq_add(&port->tx, &element, 1, 0, VIRTQ_DIRECT, buffer))
		console_recycle(port, buffer);
}

unsigned int console_take_sent(struct console_port *port)
{
	struct console_buffer *buffer;
	unsigned int count = 0;
	uint32_t len;

	for (; (buffer = virtq_get_used(&port->tx, &len)); count++)
		/* A write that was given up for lost comes back as well. */
		if (buffer >= port->buffers && buffer < port->buffers + CONSOLE_BUFFERS)
			console_recycle(port, buffer);
	return count;
}

bool console_write_framed(struct console_port *port, const void *data, uint32_t len,
			  enum virtq_placement placement, const uint16_t *pieces)
{
	struct virtq_element elements[PIECES_MAX + 1];
	const unsigned int count = virtq_cut(elements, (void *)data, len, pieces);
	struct virtq *vq = &port->tx;
	uint32_t used_len;

	/* Nothing else may be on its way, so that what comes back is this. */
	while (vq->num_free != vq->size && virtq_poll_until(vq, virtio_deadline()))
		console_take_sent(port);
	if (!virtq_add(vq, elements, count, 0, placement, elements))
		return false;
	virtq_kick(vq);
	return virtq_poll_until(vq, virtio_deadline())
	       && virtq_get_used(vq, &used_len) == elements && !used_len;
}

bool console_write(struct console_port *port, const void *data, uint32_t len)
{
	static const uint16_t whole[] = { 0 };

	return console_write_framed(port, data, len, VIRTQ_DIRECT, whole);
}

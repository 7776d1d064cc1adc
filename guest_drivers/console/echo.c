// SPDX-License-Identifier: MIT
/*
 * console.mode=echo: what comes in on a port goes out on it again, byte for byte, until a line `quit`
 * ends what came in.  A console port is greeted first.
 */
#include "console/test.h"

#define WINDOW	6	/* "\nquit\n" */

static struct virtio_console console;
static bool greeted[CONSOLE_PORTS_MAX];
static uint32_t config_seen;
static uint64_t echoed[CONSOLE_PORTS_MAX];
/* The last bytes of each port's input. */
static char windows[CONSOLE_PORTS_MAX][WINDOW];

/* ----- control messages ----- */

static void note_message(struct virtio_console *unused, const struct console_message *message,
			 uint32_t len)
{
	const struct virtio_console_control *control = &message->control;
	char name[CONSOLE_NAME_SIZE + 1] = "";
	const uint32_t extra = len < sizeof(*control) ? 0 : len - (uint32_t)sizeof(*control);

	(void)unused;
	if (len < sizeof(*control)) {
		tap_note("a control message of %u bytes", len);
		return;
	}
	switch (control->event) {
	case VIRTIO_CONSOLE_DEVICE_ADD:
		tap_note("port %u added", control->id);
		break;
	case VIRTIO_CONSOLE_DEVICE_REMOVE:
		tap_note("port %u removed", control->id);
		break;
	case VIRTIO_CONSOLE_CONSOLE_PORT:
		tap_note("port %u console", control->id);
		break;
	case VIRTIO_CONSOLE_RESIZE:
		if (extra >= sizeof(message->resize))
			tap_note("port %u size %u %u", control->id, message->resize.cols,
				 message->resize.rows);
		break;
	case VIRTIO_CONSOLE_PORT_OPEN:
		tap_note("port %u open %u", control->id, control->value);
		break;
	case VIRTIO_CONSOLE_PORT_NAME:
		memcpy(name, message->name, MIN(extra, CONSOLE_NAME_SIZE));
		tap_note("port %u name %s", control->id, name);
		break;
	default:
		tap_note("port %u event %u value %u, ignored", control->id, control->event,
			 control->value);
	}
}

static void note_size(const struct virtio_test *t)
{
	config_seen = t->device->config_interrupts;
	if (virtio_has_feature(t->device, VIRTIO_CONSOLE_F_SIZE))
		tap_note("size %u %u", CONSOLE_CONFIG(16, t->device, cols),
			 CONSOLE_CONFIG(16, t->device, rows));
}

/* A console is for people to read; other ports are for programs. */
static void greet(void)
{
	static const char greeting[] = "virtiopy console guest: echo until quit\r\n";

	for (unsigned int i = 0; i < console.port_count; i++) {
		struct console_port *port = &console.ports[i];

		if (!port->exists || greeted[i] || (console.multiport && !port->console))
			continue;
		greeted[i] = true;
		console_write(port, greeting, sizeof(greeting) - 1);
	}
}

/* ----- data ----- */

/* Keep the last bytes of everything so far; cheaper than to look at each byte. */
static bool ends_with_quit(unsigned int port, const struct console_buffer *buffer)
{
	static const char quit[] = "\nquit";
	char *window = windows[port];
	const uint32_t fresh = MIN(buffer->len, WINDOW);

	for (uint32_t i = 0; i < WINDOW - fresh; i++)
		window[i] = window[i + fresh];
	memcpy(window + WINDOW - fresh, buffer->data + buffer->len - fresh, fresh);
	if (window[0] == '\r')
		window[0] = '\n';
	return !memcmp(window, quit, sizeof(quit) - 1)
	       && (window[WINDOW - 1] == '\n' || window[WINDOW - 1] == '\r');
}

static bool work_port(unsigned int number, unsigned int *count)
{
	struct console_port *port = &console.ports[number];
	struct console_buffer *buffer;
	bool quit = false;

	*count += console_take_sent(port);
	while ((buffer = console_receive(port))) {
		(*count)++;
		echoed[number] += buffer->len;
		quit = ends_with_quit(number, buffer);
		console_echo(port, buffer);
	}
	virtq_kick(&port->tx);
	virtq_kick(&port->rx);
	return quit;
}

/* Every port that has queues: a removed one may still give back what it has. */
static bool work_ports(unsigned int *count)
{
	bool quit = false;

	for (unsigned int i = 0; i < console.port_count; i++)
		if (console.ports[i].buffers)
			quit |= work_port(i, count);
	return quit;
}

/* With nothing left to receive into, what was sent matters. */
static bool waits_for_sent(const struct console_port *port)
{
	return !port->receiving;
}

static bool is_awake(const void *context)
{
	const struct virtio_device *device = context;

	if (device->config_interrupts != config_seen
	    || (console.multiport && virtq_has_used(&console.control_rx)))
		return true;
	for (unsigned int i = 0; i < console.port_count; i++) {
		const struct console_port *port = &console.ports[i];

		if (port->buffers && (virtq_has_used(&port->rx)
				      || (waits_for_sent(port) && virtq_has_used(&port->tx))))
			return true;
	}
	return false;
}

static void sleep(struct virtio_test *t)
{
	if (console.multiport)
		virtq_enable_interrupts(&console.control_rx);
	for (unsigned int i = 0; i < console.port_count; i++) {
		struct console_port *port = &console.ports[i];

		if (!port->buffers)
			continue;
		virtq_enable_interrupts(&port->rx);
		if (waits_for_sent(port))
			virtq_enable_interrupts(&port->tx);
		else
			virtq_disable_interrupts(&port->tx);
	}
	virtio_sleep(t->device, is_awake, t->device);
	if (t->device->needs_reset)
		tap_bail_out("%s: the device needs a reset", t->name);
}

/* What is on its way goes out before the end. */
static bool drain(void)
{
	for (unsigned int i = 0; i < console.port_count; i++) {
		struct console_port *port = &console.ports[i];

		while (port->buffers && port->tx.num_free != port->tx.size) {
			if (!virtq_poll_until(&port->tx, virtio_deadline()))
				return false;
			console_take_sent(port);
		}
	}
	return true;
}

void run_echo(struct virtio_test *t)
{
	unsigned int count;
	bool quit = false;

	console.on_message = note_message;
	memset(windows, '\n', sizeof(windows));
	note_size(t);
	console_open(&console, t->device, wanted_features(t));
	note_size(t);
	console_settle(&console);
	greet();
	tap_note("ready");
	while (!quit) {
		count = console_take_messages(&console);
		if (count)
			greet();
		quit = work_ports(&count);
		if (t->device->config_interrupts != config_seen)
			note_size(t);
		if (!count && !quit)
			sleep(t);
	}
	CHECK(t, drain(), "everything echoed was sent");
	for (unsigned int i = 0; i < console.port_count; i++)
		if (echoed[i])
			tap_note("echoed port=%u bytes=%llu", i, (unsigned long long)echoed[i]);
	virtio_reset(t->device);
	tap_done();
}

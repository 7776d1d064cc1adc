/* SPDX-License-Identifier: MIT */
/* The driver of a console device (5.3): port 0, or with MULTIPORT as many as there are. */
#ifndef VIRTIO_CONSOLE_H
#define VIRTIO_CONSOLE_H

#include "virtio.h"

/* ----- 5.3.3: feature bits ----- */

#define VIRTIO_CONSOLE_F_SIZE		0
#define VIRTIO_CONSOLE_F_MULTIPORT	1
#define VIRTIO_CONSOLE_F_EMERG_WRITE	2

/* ----- 5.3.4: device configuration layout ----- */

struct virtio_console_config {
	uint16_t cols;
	uint16_t rows;
	uint32_t max_nr_ports;
	uint32_t emerg_wr;
};

/* Read a field with an access of its width: CONSOLE_CONFIG(16, device, cols). */
#define CONSOLE_CONFIG(bits, device, field)	\
	virtio_config_read##bits(device, offsetof(struct virtio_console_config, field))

void console_emergency_write(const struct virtio_device *device, const char *text);

/* ----- 5.3.6.2: multiport device operation ----- */

#define VIRTIO_CONSOLE_DEVICE_READY	0
#define VIRTIO_CONSOLE_DEVICE_ADD	1
#define VIRTIO_CONSOLE_DEVICE_REMOVE	2
#define VIRTIO_CONSOLE_PORT_READY	3
#define VIRTIO_CONSOLE_CONSOLE_PORT	4
#define VIRTIO_CONSOLE_RESIZE		5
#define VIRTIO_CONSOLE_PORT_OPEN	6
#define VIRTIO_CONSOLE_PORT_NAME	7

struct virtio_console_control {
	uint32_t id;
	uint16_t event;
	uint16_t value;
};

struct virtio_console_resize {
	uint16_t cols;
	uint16_t rows;
};

#define CONSOLE_NAME_SIZE	48

/* As the device sends it; `name` has whatever follows. */
struct console_message {
	struct virtio_console_control control;
	union {
		struct virtio_console_resize resize;
		char name[CONSOLE_NAME_SIZE];
	};
};

#define CONSOLE_PORTS_MAX	8	/* that this driver looks after */
#define CONSOLE_BUFFERS		8	/* of each port, to receive into */
#define CONSOLE_BUFFER_SIZE	512

struct console_buffer {
	uint32_t len;		/* received */
	uint8_t data[CONSOLE_BUFFER_SIZE];
};

struct console_port {
	struct virtq rx;
	struct virtq tx;
	struct console_buffer *buffers;		/* NULL until the port is there */
	unsigned int receiving;			/* buffers that the receiveq has */
	bool exists;
	bool console;
	char name[CONSOLE_NAME_SIZE + 1];
};

struct virtio_console {
	struct virtio_device *device;
	bool multiport;
	uint32_t max_nr_ports;
	unsigned int port_count;	/* whose queues are set up */
	struct console_port ports[CONSOLE_PORTS_MAX];
	struct virtq control_rx;
	struct virtq control_tx;
	uint64_t memory;
	/* Told of every control message, after the driver's own part; may be NULL. */
	void (*on_message)(struct virtio_console *console, const struct console_message *message,
			   uint32_t len);
};

/*
 * Reset the device and bring it up with these features; bails out when it refuses.  Without MULTIPORT
 * port 0 is there at once, else ports come as the device announces them.
 */
void console_open(struct virtio_console *console, struct virtio_device *device, uint64_t features);

/* Answers what control messages there are; returns how many. */
unsigned int console_take_messages(struct virtio_console *console);
/* Until no message has come for a while; some tenths of a second. */
void console_settle(struct virtio_console *console);
/* False when the device does not take it. */
bool console_send_control(struct virtio_console *console, const void *message, uint32_t len);
bool console_send(struct virtio_console *console, uint32_t port, uint16_t event, uint16_t value);

/* What was received, or NULL.  The buffer is the caller's, until it goes to one of the two below. */
struct console_buffer *console_receive(struct console_port *port);
void console_recycle(struct console_port *port, struct console_buffer *buffer);
/* Send what is in it and receive into it again when that is done. */
void console_echo(struct console_port *port, struct console_buffer *buffer);
/* Buffers that were sent go back to the receiveq; returns how many. */
unsigned int console_take_sent(struct console_port *port);

/* Write and wait until the device is done, for some seconds; in pieces, see virtq_cut(). */
bool console_write_framed(struct console_port *port, const void *data, uint32_t len,
			  enum virtq_placement placement, const uint16_t *pieces);
bool console_write(struct console_port *port, const void *data, uint32_t len);

#endif

// SPDX-License-Identifier: MIT
/* A console (5.3) with its control queues. */
#include "mistakes.h"
#include "runtime.h"
#include "virtio_console.h"

#define RECEIVEQ	0
#define TRANSMITQ	1
#define CONTROL_IN	2
#define CONTROL_OUT	3

static struct console_message message;
static struct virtio_console_control answer;
static uint8_t input[64];
static char text[] = "a driver was here\n";

static bool send_control(struct driver *driver, uint16_t event, uint16_t value)
{
	const struct element element = { &answer, sizeof(answer), false };

	answer = (struct virtio_console_control){ .event = event, .value = value };
	return ring_request(driver, &driver->rings[CONTROL_OUT], &element, 1);
}

static void receive_control(struct driver *driver)
{
	const struct element element = { &message, sizeof(message), true };
	struct ring *ring = &driver->rings[CONTROL_IN];

	ring_publish(driver, ring, ring_fill(ring, 0, &element, 1));
}

/* Answer what the device sends until port 0 is a console, and open. */
static void converse(struct driver *driver)
{
	receive_control(driver);
	if (makes(CONSOLE_NOT_READY) || !send_control(driver, VIRTIO_CONSOLE_DEVICE_READY, 1))
		return;
	while (ring_wait(&driver->rings[CONTROL_IN])) {
		const uint16_t event = message.control.event;

		receive_control(driver);
		if (event == VIRTIO_CONSOLE_DEVICE_ADD)
			send_control(driver, VIRTIO_CONSOLE_PORT_READY, 1);
		if (event == VIRTIO_CONSOLE_CONSOLE_PORT) {
			send_control(driver, VIRTIO_CONSOLE_PORT_OPEN, 1);
			return;
		}
	}
}

/* The device takes the buffer of the receiveq when there is input. */
static void receive(struct driver *driver)
{
	struct ring *ring = &driver->rings[RECEIVEQ];
	const struct element element = { input, sizeof(input), !makes(CONSOLE_READABLE) };

	ring_publish(driver, ring, ring_fill(ring, 0, &element, 1));
	/* A device that has input takes the buffer, and gives it back. */
	if (makes(CONSOLE_READABLE))
		ring_wait(ring);
}

void console_run(struct driver *driver)
{
	const struct element element = { text, sizeof(text) - 1, makes(CONSOLE_WRITABLE) };

	if (!driver_start(driver, BIT(VIRTIO_CONSOLE_F_MULTIPORT) | BIT(VIRTIO_F_EVENT_IDX), 4))
		return;
	if (driver->features & BIT(VIRTIO_CONSOLE_F_MULTIPORT))
		converse(driver);
	receive(driver);
	ring_request(driver, &driver->rings[TRANSMITQ], &element, 1);
	driver_stop(driver);
}

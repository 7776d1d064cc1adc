// SPDX-License-Identifier: MIT
/* A guest that gives its VMM work without end: what that costs others is measured from outside. */
#include "cpu.h"
#include "runtime.h"
#include "virtio_console.h"
#include "virtio_net.h"

#define FLOOD_SIZE	64	/* entries of a queue, and the ring that the disk overwrites */
#define RING_SIZE	(2 * sizeof(uint16_t) + FLOOD_SIZE * sizeof(uint16_t))
#define SECTOR_SIZE	512
#define HEADER_SIZE	16	/* of a block request */

#define CONSOLE_TRANSMIT	1
#define NET_CONTROL		2	/* without MQ (5.1.2) */

#define STRAY_BEGIN	UINT64_C(0xc0000000)	/* no RAM, no device */
#define STRAY_END	UINT64_C(0xf0000000)

static struct virtq queue;

static struct virtio_device *find(uint32_t device_id)
{
	static struct virtio_device devices[VIRTIO_DEVICES_MAX];
	const unsigned int count = virtio_discover(devices, VIRTIO_DEVICES_MAX);

	for (unsigned int i = 0; i < count; i++)
		if (virtio_is_usable(&devices[i]) && devices[i].device_id == device_id)
			return &devices[i];
	tap_bail_out("there is no %s device", virtio_device_name(device_id));
}

static void open(uint32_t device_id, uint64_t features, uint16_t index)
{
	struct virtio_device *device = find(device_id);

	virtio_reset(device);
	if (!virtio_negotiate(device, features | BIT(VIRTIO_F_VERSION_1)))
		tap_bail_out("the device refuses its features");
	virtq_setup(&queue, device, index, FLOOD_SIZE);
	virtio_driver_ok(device);
	virtq_disable_interrupts(&queue);
	tap_note("ready");
}

/* Makes each chain available again as soon as it is used. */
static _Noreturn void flood(const struct virtq_element *elements, unsigned int readable,
			    unsigned int writable)
{
	uint32_t len;

	while (virtq_add(&queue, elements, readable, writable, VIRTQ_DIRECT, &queue))
		;
	for (;;) {
		virtq_kick(&queue);
		while (virtq_get_used(&queue, &len))
			virtq_add(&queue, elements, readable, writable, VIRTQ_DIRECT, &queue);
	}
}

/*
 * The disk's sector n is a ring that has n + 2 chains, and a request to read sector n + 1: each read
 * makes the next one available.
 */
static void ring(void)
{
	static uint8_t header[HEADER_SIZE], rest[SECTOR_SIZE - RING_SIZE - HEADER_SIZE + 1];
	struct virtq_element elements[4];

	open(VIRTIO_ID_BLOCK, 0, 0);
	elements[0] = (struct virtq_element){ header, sizeof(header) };
	elements[1] = (struct virtq_element){ queue.avail, RING_SIZE };
	elements[2] = elements[0];
	elements[3] = (struct virtq_element){ rest, sizeof(rest) };
	virtq_add(&queue, elements, 1, 3, VIRTQ_DIRECT, &queue);
	virtq_kick(&queue);
	for (;;)
		cpu_relax();
}

static void console(void)
{
	static char data[4096];
	const struct virtq_element element = { data, sizeof(data) };

	memset(data, 'x', sizeof(data));
	open(VIRTIO_ID_CONSOLE, 0, CONSOLE_TRANSMIT);
	flood(&element, 1, 0);
}

static void control(void)
{
	static uint8_t command[] = { VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, 1 }, ack;
	const struct virtq_element elements[] = { { command, sizeof(command) }, { &ack, 1 } };

	open(VIRTIO_ID_NETWORK, BIT(VIRTIO_NET_F_CTRL_VQ) | BIT(VIRTIO_NET_F_CTRL_RX), NET_CONTROL);
	flood(elements, 1, 1);
}

static void marks(void)
{
	tap_note("ready");
	for (;;) {
		outb(MEASUREMENT_PORT, 1);
		outb(MEASUREMENT_PORT, 0);
	}
}

static void addresses(void)
{
	tap_note("ready");
	for (uint64_t address = STRAY_BEGIN;; address += sizeof(uint32_t))
		(void)mmio_read32(address < STRAY_END ? address : (address = STRAY_BEGIN));
}

static const struct {
	const char *name;
	void (*run)(void);
} attacks[] = {
	{ "ring", ring },
	{ "console", console },
	{ "control", control },
	{ "marks", marks },
	{ "addresses", addresses },
};

const char *const guest_options[] = { "attack", NULL };

int main(void)
{
	const char *wanted = cmdline_option("attack");

	for (size_t i = 0; wanted && i < ARRAY_SIZE(attacks); i++)
		if (string_equal(wanted, attacks[i].name))
			attacks[i].run();

	for (size_t i = 0; i < ARRAY_SIZE(attacks); i++)
		tap_note("attack=%s", attacks[i].name);
	tap_bail_out("say on the command line how to attack");
}

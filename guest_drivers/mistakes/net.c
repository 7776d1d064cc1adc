// SPDX-License-Identifier: MIT
/* A network device (5.1): buffers to receive into, and one frame to send. */
#include "cpu.h"
#include "mistakes.h"
#include "runtime.h"
#include "virtio_net.h"

#define RECEIVEQ		0
#define TRANSMITQ		1
#define GSO_TCPV4		1
#define FRAME_SIZE		60
#define SMALL			600
#define ETHERTYPE_OFFSET	12
#define EXPERIMENTAL		0x88	/* 0x88b5: local experiments (IEEE 802) */

static struct net_packet received, sent;

static void fill_frame(void)
{
	memset(sent.frame, 0xff, MAC_SIZE);
	sent.frame[MAC_SIZE] = 0x02;
	sent.frame[ETHERTYPE_OFFSET] = EXPERIMENTAL;
	sent.frame[ETHERTYPE_OFFSET + 1] = 0xb5;
	if (makes(NET_NUM_BUFFERS))
		sent.header.num_buffers = 1;
	if (makes(NET_FLAGS))
		sent.header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
	if (makes(NET_DATA_VALID))
		sent.header.flags = VIRTIO_NET_HDR_F_DATA_VALID;
	if (makes(NET_GSO)) {
		sent.header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
		sent.header.gso_type = GSO_TCPV4;
		sent.header.gso_size = 1;
	}
}

static uint64_t features(void)
{
	uint64_t wanted = BIT(VIRTIO_F_EVENT_IDX) | BIT(VIRTIO_NET_F_MAC) | BIT(VIRTIO_NET_F_STATUS)
			  | BIT(VIRTIO_NET_F_MTU);

	if (makes(NET_NO_MAC))
		wanted &= ~BIT(VIRTIO_NET_F_MAC);
	if (makes(NET_GSO) || makes(NET_DATA_VALID))
		wanted |= BIT(VIRTIO_NET_F_CSUM);
	return wanted;
}

void net_run(struct driver *driver)
{
	const uint32_t room = makes(NET_SMALL_BUFFERS) ? SMALL : sizeof(received);
	const struct element buffer = { &received, room, true };
	const struct element frame = { &sent, sizeof(sent.header) + FRAME_SIZE, false };

	if (!driver_start(driver, features(), 2))
		return;
	if (makes(NET_CONFIG_WRITE))
		mmio_write8(driver->base + VIRTIO_MMIO_CONFIG, 2);
	fill_frame();
	ring_publish(driver, &driver->rings[RECEIVEQ],
		     ring_fill(&driver->rings[RECEIVEQ], 0, &buffer, 1));
	ring_request(driver, &driver->rings[TRANSMITQ], &frame, 1);
	driver_stop(driver);
}

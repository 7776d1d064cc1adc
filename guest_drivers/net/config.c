// SPDX-License-Identifier: MIT
/* Configuration space (5.1.4). */
#include "net/test.h"

#define MAC_GROUP_BIT	1	/* in the first byte: a group, not a device */
#define MTU_MIN		68
#define PAIRS_LIMIT	0x8000

static void test_mac(struct net_test *t)
{
	static const uint8_t zero[MAC_SIZE];
	uint8_t mac[MAC_SIZE];

	if (!test_offers(t, VIRTIO_NET_F_MAC)) {
		SKIP(t, "MAC is not offered", "mac is the address of one device (5.1.4)");
		return;
	}
	net_read_mac(t->device, mac);
	CHECK(t, !(mac[0] & MAC_GROUP_BIT) && memcmp(mac, zero, MAC_SIZE),
	      "mac is the address of one device (5.1.4)");
	tap_note("%s: mac %02x:%02x:%02x:%02x:%02x:%02x", t->name, mac[0], mac[1], mac[2], mac[3],
		 mac[4], mac[5]);
}

static void test_status(struct net_test *t)
{
	const uint16_t known = VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE;
	uint16_t status;

	if (!test_offers(t, VIRTIO_NET_F_STATUS)) {
		SKIP(t, "STATUS is not offered", "the link is up (5.1.4)");
		return;
	}
	status = NET_CONFIG(16, t->device, status);
	CHECK(t, status & VIRTIO_NET_S_LINK_UP, "the link is up (5.1.4)");
	CHECK_IS(t, status & ~known, 0, "status has no bit that is not defined (5.1.4)");
}

static void test_mtu(struct net_test *t)
{
	uint16_t mtu;

	if (!test_offers(t, VIRTIO_NET_F_MTU)) {
		SKIP(t, "MTU is not offered", "mtu is 68 or more (5.1.4.1)");
		return;
	}
	mtu = NET_CONFIG(16, t->device, mtu);
	CHECK(t, mtu >= MTU_MIN, "mtu is 68 or more (5.1.4.1)");
	tap_note("%s: mtu %u", t->name, mtu);
}

static void test_pairs(struct net_test *t)
{
	uint16_t pairs;

	if (!test_offers(t, VIRTIO_NET_F_MQ)) {
		SKIP(t, "MQ is not offered", "max_virtqueue_pairs is 1 to 0x8000 (5.1.4.1)");
		return;
	}
	test_open(t, BIT(VIRTIO_NET_F_CTRL_VQ) | BIT(VIRTIO_NET_F_MQ), &net_plain_buffers);
	pairs = NET_CONFIG(16, t->device, max_virtqueue_pairs);
	CHECK(t, pairs >= 1 && pairs <= PAIRS_LIMIT,
	      "max_virtqueue_pairs is 1 to 0x8000 (5.1.4.1)");
	tap_note("%s: max_virtqueue_pairs %u", t->name, pairs);
}

void test_config(struct net_test *t)
{
	uint32_t generation;

	test_open(t, 0, &net_plain_buffers);
	generation = virtio_config_generation(t->device);
	test_mac(t);
	test_status(t);
	test_mtu(t);
	CHECK_IS(t, virtio_config_generation(t->device), generation,
		 "ConfigGeneration stays while nothing changes (2.5.2)");
	test_pairs(t);
}

// SPDX-License-Identifier: MIT
/* The control virtqueue (5.1.9.5), several queue pairs, and input that no device should trip over. */
#include "net/test.h"

#define UNKNOWN_CLASS	0xee
#define UNKNOWN_COMMAND	0xee
#define VLAN_ID		7

static uint8_t command(struct net_test *t, uint8_t class, uint8_t number, const void *data,
		       uint32_t size)
{
	return net_command(&t->net, class, number, data, size);
}

static uint8_t command8(struct net_test *t, uint8_t class, uint8_t number, uint8_t value)
{
	return command(t, class, number, &value, sizeof(value));
}

static uint8_t command16(struct net_test *t, uint8_t class, uint8_t number, uint16_t value)
{
	return command(t, class, number, &value, sizeof(value));
}

/* ----- 5.1.9.5.1: packet receive filtering ----- */

static bool switches(struct net_test *t, uint8_t first, uint8_t last)
{
	for (uint8_t number = first; number <= last; number++)
		for (uint8_t i = 0; i < 2; i++)
			if (command8(t, VIRTIO_NET_CTRL_RX, number, !i) != VIRTIO_NET_OK) {
				tap_note("command %u of class RX is refused", number);
				return false;
			}
	return true;
}

static void test_rx_modes(struct net_test *t)
{
	if (!test_offers(t, VIRTIO_NET_F_CTRL_RX)) {
		SKIP(t, "CTRL_RX is not offered", "PROMISC and ALLMULTI go on and off (5.1.9.5.1)");
		return;
	}
	CHECK(t, switches(t, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_CTRL_RX_ALLMULTI)
	      && echo_plain(t), "PROMISC and ALLMULTI go on and off (5.1.9.5.1)");
	CHECK_IS(t, command(t, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, NULL, 0),
		 VIRTIO_NET_ERR, "PROMISC without its byte is an error (5.1.9.5)");
	if (test_offers(t, VIRTIO_NET_F_CTRL_RX_EXTRA))
		CHECK(t, switches(t, VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST)
		      && echo_plain(t),
		      "ALLUNI, NOMULTI, NOUNI and NOBCAST go on and off (5.1.9.5.1)");
	else
		SKIP(t, "CTRL_RX_EXTRA is not offered",
		     "ALLUNI, NOMULTI, NOUNI and NOBCAST go on and off (5.1.9.5.1)");
}

/* ----- 5.1.9.5.2: setting MAC address filtering ----- */

static void test_mac_table(struct net_test *t)
{
	static const struct __attribute__((packed)) {
		uint32_t unicast_entries;
		uint8_t unicast[1][MAC_SIZE];
		uint32_t multicast_entries;
		uint8_t multicast[2][MAC_SIZE];
	} table = {
		1, { { 0x02, 0, 0, 0, 0, 0x77 } },
		2, { { 0x01, 0, 0x5e, 0, 0, 0x01 }, { 0x33, 0x33, 0, 0, 0, 0x01 } },
	};
	static const uint32_t empty[2];

	if (!test_offers(t, VIRTIO_NET_F_CTRL_RX)) {
		SKIP(t, "CTRL_RX is not offered", "the MAC table is set (5.1.9.5.2)");
		return;
	}
	CHECK(t, command(t, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, &table,
			 sizeof(table)) == VIRTIO_NET_OK && echo_plain(t),
	      "the MAC table is set (5.1.9.5.2)");
	CHECK_IS(t, command(t, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, &table,
			    sizeof(table) - 1), VIRTIO_NET_ERR,
		 "a MAC table shorter than it says is an error (5.1.9.5.2)");
	CHECK(t, command(t, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, empty,
			 sizeof(empty)) == VIRTIO_NET_OK && echo_plain(t),
	      "an empty MAC table is set (5.1.9.5.2)");
}

/* Set the address in the device and here; then ARP, for the peer to learn it. */
static bool move_to(struct net_test *t, const uint8_t mac[MAC_SIZE])
{
	uint8_t shown[MAC_SIZE];

	if (command(t, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, mac, MAC_SIZE)
	    != VIRTIO_NET_OK)
		return false;
	net_read_mac(t->device, shown);
	memcpy(t->link.mac, mac, MAC_SIZE);
	return memory_equal(shown, mac, MAC_SIZE) && find_peer(t) && echo_plain(t);
}

static void test_mac_address(struct net_test *t)
{
	static const uint8_t other[MAC_SIZE] = { 0x02, 0, 0, 0, 0, 0x99 };
	uint8_t own[MAC_SIZE];

	if (!test_offers(t, VIRTIO_NET_F_CTRL_MAC_ADDR)) {
		SKIP(t, "CTRL_MAC_ADDR is not offered",
		     "another MAC address is set, shown in mac, and works (5.1.9.5.2.1)");
		return;
	}
	memcpy(own, t->link.mac, MAC_SIZE);
	CHECK(t, move_to(t, other),
	      "another MAC address is set, shown in mac, and works (5.1.9.5.2.1)");
	CHECK(t, move_to(t, own), "the first MAC address is set again (5.1.9.5.2.1)");
	CHECK_IS(t, command(t, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other,
			    MAC_SIZE - 1), VIRTIO_NET_ERR,
		 "a MAC address of five bytes is an error (5.1.9.5)");
}

/* ----- 5.1.9.5.3, 5.1.9.5.4 ----- */

static void test_vlan(struct net_test *t)
{
	if (!test_offers(t, VIRTIO_NET_F_CTRL_VLAN)) {
		SKIP(t, "CTRL_VLAN is not offered", "a VLAN is added and deleted (5.1.9.5.3)");
		return;
	}
	CHECK(t, command16(t, VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, VLAN_ID)
		 == VIRTIO_NET_OK
	      && command16(t, VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_DEL, VLAN_ID)
		 == VIRTIO_NET_OK && echo_plain(t), "a VLAN is added and deleted (5.1.9.5.3)");
	CHECK_IS(t, command8(t, VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, VLAN_ID),
		 VIRTIO_NET_ERR, "a VLAN id of one byte is an error (5.1.9.5)");
}

static void test_announce(struct net_test *t)
{
	uint16_t status;
	uint8_t ack;

	if (!test_offers(t, VIRTIO_NET_F_GUEST_ANNOUNCE)) {
		SKIP(t, "GUEST_ANNOUNCE is not offered", "ANNOUNCE_ACK is answered (5.1.9.5.4)");
		return;
	}
	status = NET_CONFIG(16, t->device, status);
	ack = command(t, VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, NULL, 0);
	/* Nothing says what becomes of an ACK that the device did not ask for. */
	CHECK(t, ack == VIRTIO_NET_OK || (ack == VIRTIO_NET_ERR && !(status & VIRTIO_NET_S_ANNOUNCE)),
	      "ANNOUNCE_ACK is answered (5.1.9.5.4)");
	CHECK(t, !(NET_CONFIG(16, t->device, status) & VIRTIO_NET_S_ANNOUNCE),
	      "ANNOUNCE is clear in status after ANNOUNCE_ACK (5.1.9.5.4.2)");
}

/* ----- 5.1.9.5: what is not a command ----- */

static void test_unknown(struct net_test *t)
{
	static const uint16_t apart[] = { 1, 1, 1, 1, 0 };
	static const uint8_t data[4];
	uint8_t ack;

	CHECK_IS(t, command(t, UNKNOWN_CLASS, 0, data, sizeof(data)), VIRTIO_NET_ERR,
		 "an unknown class is an error (5.1.9.5)");
	CHECK_IS(t, command(t, VIRTIO_NET_CTRL_MQ, UNKNOWN_COMMAND, data, sizeof(data)),
		 VIRTIO_NET_ERR, "an unknown command is an error (5.1.9.5)");
	if (test_offers(t, VIRTIO_NET_F_CTRL_VLAN)) {
		ack = net_command_framed(&t->net, VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD,
					 &(uint16_t){ VLAN_ID }, sizeof(uint16_t), apart, true);
		CHECK_IS(t, ack, VIRTIO_NET_OK, "a command in one-byte pieces is taken (2.7.4.1)");
	}
	CHECK(t, echo_plain(t), "packets flow as before");
}

static void open_control(struct net_test *t)
{
	test_open(t, NET_FEATURES_CONTROL & t->device->offered, &net_plain_buffers);
	virtio_test_name(t->base, BIT(VIRTIO_NET_F_CTRL_VQ));
}

/* The device may ask for a reset, and works again after it. */
static void test_truncated(struct net_test *t)
{
	static const uint16_t half[] = { 1, 0 };

	net_command_framed(&t->net, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, half, 0,
			   net_whole, false);
	if (t->device->needs_reset)
		open_control(t);
	CHECK(t, command(t, UNKNOWN_CLASS, 0, half, 1) == VIRTIO_NET_ERR && echo_plain(t),
	      "a command with no room for the ack does no harm (5.1.9.5)");
}

void test_control(struct net_test *t)
{
	if (!test_offers(t, VIRTIO_NET_F_CTRL_VQ)) {
		virtio_test_name(t->base, 0);
		SKIP(t, "CTRL_VQ is not offered", "commands are answered (5.1.9.5)");
		return;
	}
	open_control(t);
	test_rx_modes(t);
	test_mac_table(t);
	test_mac_address(t);
	test_vlan(t);
	test_announce(t);
	test_unknown(t);
	test_truncated(t);
}

/* ----- 5.1.9.5.6: automatic receive steering in multiqueue mode ----- */

static uint8_t set_pairs(struct net_test *t, uint16_t pairs)
{
	return command16(t, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, pairs);
}

/* Where a reply comes in is the device's choice, so each pair only sends. */
static bool sends_on_every_pair(struct net_test *t)
{
	static struct net_packet packet;
	struct net_link self = t->link;
	uint32_t len;

	self.peer_ip = self.ip;
	len = make_arp(packet.frame, &self, ARP_REQUEST);
	for (unsigned int i = 0; i < t->net.pairs; i++)
		if (!net_transmit(&t->net, i, &packet, len, VIRTQ_DIRECT, net_whole))
			return false;
	return true;
}

void test_multiqueue(struct net_test *t)
{
	const uint64_t features = BIT(VIRTIO_NET_F_CTRL_VQ) | BIT(VIRTIO_NET_F_MQ);
	unsigned int max, pairs;

	virtio_test_name(t->base, features);
	if ((t->device->offered & features) != features) {
		SKIP(t, "not offered", "VQ_PAIRS_SET takes every pair (5.1.9.5.6)");
		return;
	}
	test_open(t, features, &net_plain_buffers);
	max = NET_CONFIG(16, t->device, max_virtqueue_pairs);
	pairs = MIN(max, NET_PAIRS_MAX);
	net_open(&t->net, t->device, (features | NET_FEATURES_BASE) & t->device->offered, pairs,
		 TEST_QUEUE_SIZE, &net_plain_buffers);
	CHECK(t, find_peer(t) && echo_plain(t), "one pair is in use at first (5.1.9.5.6.2)");
	CHECK_IS(t, set_pairs(t, 0), VIRTIO_NET_ERR, "VQ_PAIRS_SET of 0 is an error (5.1.9.5.6)");
	CHECK_IS(t, set_pairs(t, (uint16_t)(max + 1)), VIRTIO_NET_ERR,
		 "VQ_PAIRS_SET of more than max_virtqueue_pairs is an error (5.1.9.5.6)");
	tap_ok(set_pairs(t, (uint16_t)pairs) == VIRTIO_NET_OK && sends_on_every_pair(t),
	       "%s: VQ_PAIRS_SET of %u is taken, and every pair sends (5.1.9.5.6)", t->name, pairs);
	CHECK(t, set_pairs(t, 1) == VIRTIO_NET_OK && echo_plain(t),
	      "VQ_PAIRS_SET of 1 brings everything back to the first pair (5.1.9.5.6)");
}

/* ----- packets that are none ----- */

/* The device may ask for a reset, a little later even, and works again after it. */
static bool survives(struct net_test *t, uint64_t features)
{
	for (unsigned int i = 0; i < 2; i++) {
		if (t->device->needs_reset)
			test_open(t, features, &net_plain_buffers);
		if (echo_plain(t))
			return true;
		if (!t->device->needs_reset)
			return false;
	}
	return false;
}

void test_malformed(struct net_test *t)
{
	static const struct {
		const char *name;
		struct virtio_net_hdr header;
		uint32_t len;	/* with the header */
		bool fatal;	/* to QEMU 7.2: an assertion in iov_copy() */
		bool endless;	/* to Linux 6.1's vhost: -EFAULT, and the same again */
	} packets[] = {
		{ "less than a header", { 0 }, 5, true, true },
		{ "a header and no frame", { 0 }, sizeof(struct virtio_net_hdr), true, false },
		{ "a frame of one byte", { 0 }, sizeof(struct virtio_net_hdr) + 1, false, false },
		{ "a frame shorter than an Ethernet header", { 0 },
		  sizeof(struct virtio_net_hdr) + sizeof(struct ethernet) - 1, false, false },
		{ "a checksum behind the frame",
		  { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 60, .csum_offset = 65535 },
		  sizeof(struct virtio_net_hdr) + FRAME_MIN, false, false },
		{ "an unknown gso_type", { .gso_type = 0x7f, .gso_size = 1, .hdr_len = 65535 },
		  sizeof(struct virtio_net_hdr) + FRAME_MIN, false, false },
	};
	const uint64_t features = BIT(VIRTIO_NET_F_CSUM) & t->device->offered;
	static struct net_packet packet;
	struct virtq_element element = { &packet, 0 };
	uint32_t len;
	bool used;

	test_open(t, features, &net_plain_buffers);
	for (size_t i = 0; i < ARRAY_SIZE(packets); i++) {
		if (packets[i].fatal && t->qemu) {
			tap_skip("QEMU aborts", "%s: %s does no harm (5.1.9.2)", t->name,
				 packets[i].name);
			continue;
		}
		if (packets[i].endless && t->vhost) {
			tap_skip("vhost tries it again for ever", "%s: %s does no harm (5.1.9.2)",
				 t->name, packets[i].name);
			continue;
		}
		memset(packet.frame, UINT8_MAX, FRAME_MIN);
		packet.header = packets[i].header;
		element.len = packets[i].len;
		virtq_add(&t->net.tx[0], &element, 1, 0, VIRTQ_DIRECT, &packet);
		virtq_kick(&t->net.tx[0]);
		used = virtq_poll_until(&t->net.tx[0], virtio_deadline())
		       && virtq_get_used(&t->net.tx[0], &len);
		if (!used && !t->device->needs_reset)
			tap_bail_out("%s: the device keeps %s", t->name, packets[i].name);
		tap_ok(survives(t, features), "%s: %s does no harm (5.1.9.2)", t->name, packets[i].name);
	}
}

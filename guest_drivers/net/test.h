/* SPDX-License-Identifier: MIT */
/* What the parts of net.elf share. */
#ifndef NET_TEST_H
#define NET_TEST_H

#include "net/packet.h"
#include "virtio_net.h"
#include "virtio_test.h"

/* Small queues wrap soon. */
#define TEST_QUEUE_SIZE		64
#define TEST_BUFFERS		16

/* The features that every mode takes when they are offered. */
#define NET_FEATURES_BASE	(BIT(VIRTIO_NET_F_MAC) | BIT(VIRTIO_NET_F_STATUS) \
				 | BIT(VIRTIO_NET_F_MTU))
#define NET_FEATURES_CONTROL	(BIT(VIRTIO_NET_F_CTRL_VQ) | BIT(VIRTIO_NET_F_CTRL_RX) \
				 | BIT(VIRTIO_NET_F_CTRL_VLAN) | BIT(VIRTIO_NET_F_CTRL_RX_EXTRA) \
				 | BIT(VIRTIO_NET_F_CTRL_MAC_ADDR) \
				 | BIT(VIRTIO_NET_F_GUEST_ANNOUNCE))
#define NET_FEATURES_RING	(BIT(VIRTIO_F_INDIRECT_DESC) | BIT(VIRTIO_F_EVENT_IDX))
#define NET_FEATURES_PACKET	(BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_GUEST_CSUM) \
				 | BIT(VIRTIO_NET_F_MRG_RXBUF))

struct net_test {
	struct virtio_test *base;
	struct virtio_device *device;
	const char *name;	/* of base: the label, and the features under test */
	bool qemu;
	bool vhost;		/* the queues are worked by Linux's vhost-net, it is said */
	struct virtio_net net;
	struct net_link link;
	struct net_received received;	/* the last packet */
	uint16_t sequence;		/* of the last echo request */
	const char *fault;		/* the first thing that the device did wrong */
	bool num_buffers_wrong;		/* without MRG_RXBUF */
};

/* ----- common.c ----- */

extern const uint16_t net_whole[];		/* pieces: one descriptor */
extern const struct net_buffers net_plain_buffers;

bool test_offers(const struct net_test *t, unsigned int feature);
/* Bring up one queue pair with those of the features that are offered. */
void test_open(struct net_test *t, uint64_t features, const struct net_buffers *buffers);

/* ARP, with patience; false when the peer does not answer. */
bool find_peer(struct net_test *t);
/* The next packet of this kind into t->received; answers ARP requests that come before it. */
bool await(struct net_test *t, unsigned int pair, enum packet_kind kind);

struct echo {
	uint32_t payload;
	enum virtq_placement placement;
	const uint16_t *pieces;
	bool needs_csum;	/* leave the checksum to the device */
	unsigned int pair;
};

/* An echo request on its way, and the reply back, whole.  False, with a note, otherwise. */
bool echo(struct net_test *t, const struct echo *echo);
/* The same with a payload of 56 bytes, in one descriptor. */
bool echo_plain(struct net_test *t);

/* ----- the groups of tests ----- */

void test_config(struct net_test *t);
void test_feature_sets(struct net_test *t);
void test_control(struct net_test *t);
void test_multiqueue(struct net_test *t);
void test_malformed(struct net_test *t);

/* ----- the other modes ----- */

void serve(struct net_test *t);
void send(struct net_test *t);
void receive(struct net_test *t);
void measure(struct net_test *t);

/* Bring up one pair of large queues with what `net.features` asks for; see main.c. */
void stream_open(struct net_test *t, unsigned int buffers);

#endif

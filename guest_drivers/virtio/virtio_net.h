/* SPDX-License-Identifier: MIT */
/* The driver of a network device (5.1): one queue pair or a few, and the control queue. */
#ifndef VIRTIO_NET_H
#define VIRTIO_NET_H

#include "virtio.h"

/* ----- 5.1.3: feature bits ----- */

#define VIRTIO_NET_F_CSUM		0
#define VIRTIO_NET_F_GUEST_CSUM		1
#define VIRTIO_NET_F_MTU		3
#define VIRTIO_NET_F_MAC		5
#define VIRTIO_NET_F_MRG_RXBUF		15
#define VIRTIO_NET_F_STATUS		16
#define VIRTIO_NET_F_CTRL_VQ		17
#define VIRTIO_NET_F_CTRL_RX		18
#define VIRTIO_NET_F_CTRL_VLAN		19
#define VIRTIO_NET_F_CTRL_RX_EXTRA	20
#define VIRTIO_NET_F_GUEST_ANNOUNCE	21
#define VIRTIO_NET_F_MQ			22
#define VIRTIO_NET_F_CTRL_MAC_ADDR	23

/* ----- 5.1.4: device configuration layout, as far as it is read here ----- */

#define MAC_SIZE	6

struct __attribute__((packed)) virtio_net_config {
	uint8_t mac[MAC_SIZE];
	uint16_t status;
	uint16_t max_virtqueue_pairs;
	uint16_t mtu;
};

#define VIRTIO_NET_S_LINK_UP		1
#define VIRTIO_NET_S_ANNOUNCE		2

/* Read a field with an access of its width: NET_CONFIG(16, device, mtu). */
#define NET_CONFIG(bits, device, field)	\
	virtio_config_read##bits(device, offsetof(struct virtio_net_config, field))

void net_read_mac(const struct virtio_device *device, uint8_t mac[MAC_SIZE]);

/* ----- 5.1.9: device operation ----- */

#define VIRTIO_NET_HDR_F_NEEDS_CSUM	1
#define VIRTIO_NET_HDR_F_DATA_VALID	2
#define VIRTIO_NET_HDR_GSO_NONE		0

/* Without HASH_REPORT and tunnels, which are never negotiated here. */
struct virtio_net_hdr {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t hdr_len;
	uint16_t gso_size;
	uint16_t csum_start;
	uint16_t csum_offset;
	uint16_t num_buffers;
};

#define NET_FRAME_MAX	1514	/* without GUEST_TSO and its like (5.1.9.3) */

/* As it lies in memory: the frame right behind the header. */
struct net_packet {
	struct virtio_net_hdr header;
	uint8_t frame[NET_FRAME_MAX];
};

#define NET_PACKET_MAX	sizeof(struct net_packet)	/* 1526 */

#define NET_PAIRS_MAX	4
#define NET_PIECES_MAX	16

/* How receive buffers are made. */
struct net_buffers {
	uint32_t size;			/* of each; NET_PACKET_MAX at least, without MRG_RXBUF */
	unsigned int count;		/* at most */
	enum virtq_placement placement;
	const uint16_t *pieces;		/* see virtq_cut(); the descriptors of each */
};

struct virtio_net {
	struct virtio_device *device;
	struct virtq rx[NET_PAIRS_MAX];	/* receiveq1..N */
	struct virtq tx[NET_PAIRS_MAX];
	struct virtq control;
	unsigned int pairs;		/* that are set up */
	struct net_buffers buffers;
	uint64_t memory;		/* where the memory of these queues starts */
};

/*
 * Reset the device and bring it up with these features (VERSION_1 comes with them) and this many
 * queue pairs, the receive queues filled.  Bails out when the device refuses.  Memory allocated since
 * the last net_open() is given back first.
 */
void net_open(struct virtio_net *net, struct virtio_device *device, uint64_t features,
	      unsigned int pairs, uint32_t queue_size, const struct net_buffers *buffers);

/* ----- one packet at a time; the time is the deadline, see virtio_deadline() ----- */

struct net_received {
	struct net_packet packet;	/* a copy, in one piece */
	uint32_t len;			/* of the frame */
	unsigned int buffers;		/* that it was spread over */
	const char *fault;		/* what the device did wrong, or NULL */
};

/* Takes the next packet and returns its buffers to the device.  False when none came. */
bool net_receive(struct virtio_net *net, unsigned int pair, struct net_received *received,
		 uint64_t deadline);
/* Sends and waits until the device is done; `len` is the frame's. */
bool net_transmit(struct virtio_net *net, unsigned int pair, struct net_packet *packet, uint32_t len,
		  enum virtq_placement placement, const uint16_t *pieces);

/* ----- 5.1.9.5: control virtqueue ----- */

#define VIRTIO_NET_OK			0
#define VIRTIO_NET_ERR			1
/* Ours: in the ack byte until the device writes it. */
#define NET_ACK_NONE			0xff

#define VIRTIO_NET_CTRL_RX		0
#define VIRTIO_NET_CTRL_RX_PROMISC	0
#define VIRTIO_NET_CTRL_RX_ALLMULTI	1
#define VIRTIO_NET_CTRL_RX_ALLUNI	2
#define VIRTIO_NET_CTRL_RX_NOMULTI	3
#define VIRTIO_NET_CTRL_RX_NOUNI	4
#define VIRTIO_NET_CTRL_RX_NOBCAST	5
#define VIRTIO_NET_CTRL_MAC		1
#define VIRTIO_NET_CTRL_MAC_TABLE_SET	0
#define VIRTIO_NET_CTRL_MAC_ADDR_SET	1
#define VIRTIO_NET_CTRL_VLAN		2
#define VIRTIO_NET_CTRL_VLAN_ADD	0
#define VIRTIO_NET_CTRL_VLAN_DEL	1
#define VIRTIO_NET_CTRL_ANNOUNCE	3
#define VIRTIO_NET_CTRL_ANNOUNCE_ACK	0
#define VIRTIO_NET_CTRL_MQ		4
#define VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET	0

#define NET_COMMAND_DATA_MAX	64

/* The ack, or NET_ACK_NONE when the device wrote none. */
uint8_t net_command(struct virtio_net *net, uint8_t class, uint8_t command, const void *data,
		    uint32_t size);
/* The same cut into `pieces`, from the class on; `ack` false leaves the device no room for one. */
uint8_t net_command_framed(struct virtio_net *net, uint8_t class, uint8_t command, const void *data,
			   uint32_t size, const uint16_t *pieces, bool ack);

#endif

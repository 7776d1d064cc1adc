// SPDX-License-Identifier: MIT
/* The driver of a network device (5.1). */
#include "cpu.h"
#include "runtime.h"
#include "virtio_net.h"

#define HEADER_SIZE	sizeof(struct virtio_net_hdr)
#define BUFFER_ALIGN	16
#define CONTROL_SIZE	16

void net_read_mac(const struct virtio_device *device, uint8_t mac[MAC_SIZE])
{
	for (unsigned int i = 0; i < MAC_SIZE; i++)
		mac[i] = virtio_config_read8(device, offsetof(struct virtio_net_config, mac) + i);
}

/* ----- initialization (5.1.5) ----- */

static bool post(struct virtio_net *net, unsigned int pair, uint8_t *buffer)
{
	struct virtq_element elements[NET_PIECES_MAX + 1];
	const unsigned int count = virtq_cut(elements, buffer, net->buffers.size,
					     net->buffers.pieces);

	return virtq_add(&net->rx[pair], elements, 0, count, net->buffers.placement, buffer);
}

static void post_all(struct virtio_net *net, unsigned int pair)
{
	for (unsigned int i = 0; i < net->buffers.count; i++)
		if (!post(net, pair, memory_alloc(net->buffers.size, BUFFER_ALIGN)))
			break;
	virtq_kick(&net->rx[pair]);
}

/* 5.1.2: it comes behind all the pairs that there could be. */
static uint16_t control_index(const struct virtio_device *device)
{
	if (virtio_has_feature(device, VIRTIO_NET_F_MQ))
		return (uint16_t)(2 * NET_CONFIG(16, device, max_virtqueue_pairs));
	return 2;
}

void net_open(struct virtio_net *net, struct virtio_device *device, uint64_t features,
	      unsigned int pairs, uint32_t queue_size, const struct net_buffers *buffers)
{
	if (!net->memory)
		net->memory = memory_mark();
	net->device = device;
	net->pairs = pairs;
	net->buffers = *buffers;
	if (!virtio_negotiate(device, features | BIT(VIRTIO_F_VERSION_1)))
		tap_bail_out("slot %u refuses features 0x%llx, all of which it offers (2.2.2)",
			     device->slot, (unsigned long long)features);
	/* Only after the reset: until then the device may still write to the old buffers. */
	memory_release(net->memory);
	for (unsigned int i = 0; i < pairs; i++) {
		virtq_setup_at_most(&net->rx[i], device, (uint16_t)(2 * i), queue_size);
		virtq_setup_at_most(&net->tx[i], device, (uint16_t)(2 * i + 1), queue_size);
	}
	if (virtio_has_feature(device, VIRTIO_NET_F_CTRL_VQ))
		virtq_setup_at_most(&net->control, device, control_index(device), CONTROL_SIZE);
	virtio_driver_ok(device);
	for (unsigned int i = 0; i < pairs; i++)
		post_all(net, i);
}

/* ----- 5.1.9.4: processing of incoming packets ----- */

static void append(struct net_received *received, uint32_t *total, const void *data, uint32_t len)
{
	if (len > NET_PACKET_MAX - *total) {
		received->fault = "the packet is larger than 1514 bytes (5.1.9.3)";
		len = (uint32_t)NET_PACKET_MAX - *total;
	}
	memcpy((uint8_t *)&received->packet + *total, data, len);
	*total += len;
}

/* Only MRG_RXBUF lets a packet take more than one buffer; else num_buffers is for the tests. */
static unsigned int buffers_of(const struct virtio_net *net, const struct net_packet *packet)
{
	if (!virtio_has_feature(net->device, VIRTIO_NET_F_MRG_RXBUF))
		return 1;
	return packet->header.num_buffers;
}

static bool take_buffer(struct virtio_net *net, unsigned int pair, struct net_received *received,
			uint32_t *total, uint64_t deadline)
{
	struct virtq *vq = &net->rx[pair];
	uint32_t len;
	void *buffer;

	if (!virtq_poll_until(vq, deadline))
		return false;
	buffer = virtq_get_used(vq, &len);
	if (len > net->buffers.size) {
		received->fault = "used len is larger than the buffer (2.7.8)";
		len = net->buffers.size;
	}
	/* 5.1.9.4.1: every buffer but the last is used up. */
	if (received->buffers++ && *total % net->buffers.size)
		received->fault = "a buffer before the last is not full (5.1.9.4.1)";
	append(received, total, buffer, len);
	post(net, pair, buffer);
	return true;
}

bool net_receive(struct virtio_net *net, unsigned int pair, struct net_received *received,
		 uint64_t deadline)
{
	uint32_t total = 0;
	bool all = true;

	received->buffers = 0;
	received->fault = NULL;
	if (!take_buffer(net, pair, received, &total, deadline))
		return false;
	if (total < HEADER_SIZE)
		received->fault = "used len is less than the header (5.1.9)";
	else if (!buffers_of(net, &received->packet))
		received->fault = "num_buffers is 0 (5.1.9.4.1)";
	else
		while (all && received->buffers < buffers_of(net, &received->packet))
			all = take_buffer(net, pair, received, &total, deadline);
	if (!all)
		received->fault = "fewer buffers come than num_buffers says (5.1.9.4.1)";
	received->len = total < HEADER_SIZE ? 0 : total - (uint32_t)HEADER_SIZE;
	virtq_kick(&net->rx[pair]);
	return true;
}

/* ----- 5.1.9.2: packet transmission ----- */

bool net_transmit(struct virtio_net *net, unsigned int pair, struct net_packet *packet, uint32_t len,
		  enum virtq_placement placement, const uint16_t *pieces)
{
	struct virtq_element elements[NET_PIECES_MAX + 1];
	const unsigned int count = virtq_cut(elements, packet, (uint32_t)HEADER_SIZE + len, pieces);
	struct virtq *vq = &net->tx[pair];
	uint32_t used_len;

	if (!virtq_add(vq, elements, count, 0, placement, packet))
		tap_bail_out("no room for a packet in an idle queue of %u", vq->size);
	virtq_kick(vq);
	if (!virtq_poll_until(vq, virtio_deadline()))
		return false;
	return virtq_get_used(vq, &used_len) == packet && !used_len;
}

/* ----- 5.1.9.5: control virtqueue ----- */

struct command {
	uint8_t class;
	uint8_t number;
	uint8_t data[NET_COMMAND_DATA_MAX];
	uint8_t ack;
};

uint8_t net_command_framed(struct virtio_net *net, uint8_t class, uint8_t command, const void *data,
			   uint32_t size, const uint16_t *pieces, bool ack)
{
	static struct command request;
	struct virtq_element elements[NET_PIECES_MAX + 2];
	unsigned int count;
	uint32_t used_len;

	request.class = class;
	request.number = command;
	memcpy(request.data, data, size);
	request.ack = NET_ACK_NONE;
	count = virtq_cut(elements, &request, (uint32_t)offsetof(struct command, data) + size, pieces);
	elements[count] = (struct virtq_element){ &request.ack, sizeof(request.ack) };
	if (!virtq_add(&net->control, elements, count, ack, VIRTQ_DIRECT, &request))
		tap_bail_out("no room for a command in an idle queue of %u", net->control.size);
	virtq_kick(&net->control);
	if (!virtq_poll_until(&net->control, virtio_deadline()))
		return NET_ACK_NONE;
	virtq_get_used(&net->control, &used_len);
	return READ_ONCE(request.ack);
}

uint8_t net_command(struct virtio_net *net, uint8_t class, uint8_t command, const void *data,
		    uint32_t size)
{
	/* The class and the command in one descriptor, the data in the next. */
	static const uint16_t pieces[] = { 2, 0 };

	return net_command_framed(net, class, command, data, size, pieces, true);
}

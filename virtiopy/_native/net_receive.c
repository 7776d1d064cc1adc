/* SPDX-License-Identifier: MIT */
/* Frames that the driver receives (5.1.9.4), from a tap. */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include "net.h"

#define START (HEADER + ETHERNET_MOST)	/* what is looked at of a received frame */

static const uint8_t broadcast[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

static inline bool is_next_small(struct vp_port *port)
{
	return port->ready_count > 0 && ready_at(port, 0)->chain.writable_bytes < HEADER;
}

/* Gives back the buffers that come next and have no room for a header (5.1.9.3.1). */
static inline void skip_small(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;

	while (is_next_small(port)) {
		port->counts.rx_buffers_too_small++;
		take_ready(ring, 0);
	}
}

static bool make_room(struct vp_ring *ring, uint64_t size)
{
	struct vp_port *port = ring->device;

	while (port->room < size) {
		struct vp_slot *slot = vp_net_pop(ring);

		if (!slot)
			return false;
		port->ready[(port->ready_first + port->ready_count++) % VP_SLOTS] = slot;
		port->room += slot->chain.writable_bytes;
		skip_small(ring);
	}
	return true;
}

static bool wants_address(const struct vp_filter *filter, const uint8_t *address)
{
	/* Each NO... goes before the ALL... beside it (5.1.9.5.1.1). */
	if (!memcmp(address, broadcast, sizeof(broadcast)))
		return !(filter->modes & VP_FILTER_NOBCAST);
	if (address[0] & 1) {
		if (filter->modes & VP_FILTER_NOMULTI)
			return false;
		if (filter->modes & VP_FILTER_ALLMULTI)
			return true;
	} else {
		if (filter->modes & VP_FILTER_NOUNI)
			return false;
		if (filter->modes & VP_FILTER_ALLUNI || !memcmp(address, filter->mac, 6))
			return true;
	}
	for (uint32_t i = 0; i < filter->table_count; i++)
		if (!memcmp(address, filter->table + 6 * i, 6))
			return true;
	return false;
}

static bool wants(const struct vp_filter *filter, const uint8_t *frame)
{
	uint32_t vlan = (frame[14] << 8 | frame[15]) & 0xfff;

	if ((!filter->by_vlan && !filter->by_address) || filter->modes & VP_FILTER_PROMISC)
		return true;
	if (filter->by_vlan && is_tag(frame + 12) && !(filter->vlans[vlan / 8] & 1 << vlan % 8))
		return false;
	return !filter->by_address || wants_address(filter, frame);
}

/* Whether the driver takes what is left to do of a frame, and is told how (5.1.9.4.1). */
static bool may_offload(const struct vp_port *port, const struct virtio_net_hdr_v1 *header)
{
	bool partial = header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM;

	if (header->gso_type == VIRTIO_NET_HDR_GSO_NONE)
		return !partial || port->rx_checksum;
	return gso_bit(header->gso_type) & port->rx_gso && partial && header->gso_size != 0;
}

/* Whether the driver is to see a frame of `length` bytes, header and all, which begins with `start`. */
static bool admits(struct vp_port *port, const uint8_t *start, uint64_t length)
{
	const struct virtio_net_hdr_v1 *header = (const struct virtio_net_hdr_v1 *)start;
	const uint8_t *frame = start + HEADER;
	uint64_t count = (length < START ? length : START) - HEADER;

	if (!may_offload(port, header))
		port->counts.rx_dropped_offload++;
	else if (port->has_mtu && header->gso_type == VIRTIO_NET_HDR_GSO_NONE &&
		 length - HEADER > port->mtu + ETHERNET &&
		 length - HEADER > longest_frame(frame, count, port->mtu))
		port->counts.rx_dropped_too_long++;
	else if (!wants(port->filter, frame))
		port->counts.rx_filtered++;
	else
		return true;
	return false;
}

/* The header that the driver is shown: without GUEST_CSUM flags is 0 (5.1.9.4.1). */
static struct virtio_net_hdr_v1 shown_header(const struct vp_port *port, const uint8_t *start,
					     uint16_t buffers)
{
	struct virtio_net_hdr_v1 header;

	memcpy(&header, start, sizeof(header));
	header.flags &= port->rx_checksum ? VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID : 0;
	header.num_buffers = buffers;
	return header;
}

/* Writes the header over what the link had. */
static void write_header(struct vp_port *port, const uint8_t *start, uint16_t buffers)
{
	const struct iovec *iov = ready_at(port, 0)->chain.iov;
	struct virtio_net_hdr_v1 header = shown_header(port, start, buffers);
	uint64_t done = 0;

	for (iov += ready_at(port, 0)->chain.readable; done < HEADER; iov++) {
		uint64_t part = HEADER - done < iov->iov_len ? HEADER - done : iov->iov_len;

		memcpy(iov->iov_base, (const char *)&header + done, part);
		done += part;
	}
}

static void count_received(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;

	skip_small(ring);
	port->counts.rx_frames++;
	ring->counts.served++;
}

/* Uses the buffers that hold a frame. */
static void use_buffers(struct vp_ring *ring, const uint8_t *start, uint64_t length)
{
	struct vp_port *port = ring->device;
	uint64_t room = 0;
	uint32_t count = 0;

	while (room < length)
		room += ready_at(port, count++)->chain.writable_bytes;
	write_header(port, start, count);
	/* The buffers of a frame are seen together (5.1.9.4.1). */
	if (ring->queue->unpublished_count + count > VP_UNPUBLISHED)
		vp_virtq_publish(ring->queue);
	while (count-- > 0) {
		uint64_t bytes = ready_at(port, 0)->chain.writable_bytes;
		uint64_t written = bytes < length ? bytes : length;

		take_ready(ring, written);
		length -= written;
	}
	count_received(ring);
}

/* Makes port->iov of the next buffers: one, or with MRG_RXBUF enough; returns how much room that is. */
static uint64_t place_buffers(struct vp_port *port, uint32_t *pieces)
{
	uint64_t room = 0;

	*pieces = 0;
	for (uint32_t i = 0; i < port->ready_count; i++) {
		const struct vp_chain *chain = &ready_at(port, i)->chain;

		if (*pieces + chain->writable >= PIECES)
			break;
		memcpy(port->iov + *pieces, chain->iov + chain->readable,
		       chain->writable * sizeof(struct iovec));
		*pieces += chain->writable;
		room += chain->writable_bytes;
		if (room >= port->enough)
			break;
	}
	return room;
}

/* Copies a frame that was longer than its buffers into more; false where there are too few. */
static bool place_held(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;
	uint64_t length = port->held, done = 0;

	if (!make_room(ring, length)) {
		/* No more can come before some are used: it will never have room. */
		if (ring->broken || ring->free_count == 0 ||
		    ring->queue->in_flight == ring->queue->size) {
			port->counts.rx_dropped_no_buffer++;
			port->held = 0;
		}
		return false;
	}
	for (uint32_t i = 0; done < length; i++) {
		const struct vp_chain *chain = &ready_at(port, i)->chain;

		for (uint32_t j = 0; j < chain->writable && done < length; j++) {
			const struct iovec *piece = &chain->iov[chain->readable + j];
			uint64_t part = length - done < piece->iov_len ? length - done : piece->iov_len;

			memcpy(piece->iov_base, port->frame + done, part);
			done += part;
		}
	}
	port->held = 0;
	use_buffers(ring, port->frame, length);
	return true;
}

/* Has a frame, of which `room` bytes are in the buffers and the others in port->overflow, wait whole. */
static void hold(struct vp_port *port, uint32_t pieces, uint64_t length, uint64_t room)
{
	if (!port->mergeable || length > sizeof(port->frame)) {
		/* Without MRG_RXBUF it is to be in a single buffer (5.1.9.3.2). */
		port->counts.rx_dropped_too_long++;
		return;
	}
	memcpy(port->frame + room, port->overflow, length - room);
	copy_start(port->iov, pieces, port->frame, room);
	port->held = length;
}

/* Takes note of what a read came to; false where there is no frame, or the link is gone. */
static bool has_read(struct vp_ring *ring, ssize_t length)
{
	struct vp_port *port = ring->device;

	ring->counts.system_calls++;
	if (length >= 0) {
		port->last = length;
		return true;
	}
	port->readable = false;
	if (errno == EFAULT)
		vp_ring_fault(ring, VP_POP_BROKEN);
	return false;
}

/* Copies a frame in port->frame into the next buffer, if that has room for it in one piece. */
static bool use_one(struct vp_ring *ring, uint64_t length)
{
	struct vp_port *port = ring->device;
	const struct vp_chain *chain = &ready_at(port, 0)->chain;
	const struct iovec *piece = &chain->iov[chain->readable];
	struct virtio_net_hdr_v1 header;

	if (piece->iov_len < length)
		return false;
	header = shown_header(port, port->frame, 1);
	memcpy(port->frame, &header, HEADER);
	memcpy(piece->iov_base, port->frame, length);
	take_ready(ring, length);
	count_received(ring);
	return true;
}

/* Whether a frame that was read now may have come after the VMM has told of fewer pairs. */
static inline bool is_shut(const struct vp_port *port)
{
	struct pollfd said;

	if (!port->gate)
		return false;
	/* In this order: Python is busy before it takes a message. */
	said = (struct pollfd){ .fd = port->gate->fd, .events = POLLIN };
	return poll(&said, 1, 0) != 0 || __atomic_load_n(&port->gate->busy, __ATOMIC_ACQUIRE);
}

/* Copies a frame in port->frame into the next buffers, if the driver is to see it. */
static void place_copied(struct vp_ring *ring, uint64_t length)
{
	struct vp_port *port = ring->device;

	if (length < HEADER + ETHERNET) {
		port->counts.rx_dropped_too_short++;
	} else if (admits(port, port->frame, length)) {
		if (!port->mergeable && length > ready_at(port, 0)->chain.writable_bytes) {
			port->counts.rx_dropped_too_long++;
		} else if (!use_one(ring, length)) {
			port->held = length;
			place_held(ring);
		}
	}
}

/* Receives one frame, and copies it into the next buffers. */
static bool receive_copied(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;
	ssize_t length = read(port->fd, port->frame, sizeof(port->frame));

	if (!has_read(ring, length))
		return false;
	if (is_shut(port)) {
		port->parked = length;
		return false;
	}
	place_copied(ring, length);
	return true;
}

/* Has a frame wait, of which `room` bytes are in the buffers and the others in port->overflow. */
static void park(struct vp_port *port, uint32_t pieces, uint64_t length, uint64_t room)
{
	if (length > sizeof(port->frame)) {
		port->counts.rx_dropped_too_long++;
		return;
	}
	if (length > room)
		memcpy(port->frame + room, port->overflow, length - room);
	copy_start(port->iov, pieces, port->frame, length < room ? length : room);
	port->parked = length;
}

/* Goes on with a frame that waited for the gate; false where it does still. */
static bool place_parked(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;
	uint64_t length = port->parked;

	if (is_shut(port)) {
		/* Python has it opened within a message's time, and may want this CPU for that. */
		sched_yield();
		return false;
	}
	port->parked = 0;
	place_copied(ring, length);
	return true;
}

/* Receives one frame straight into the next buffers; false where the link has none, or is gone. */
static bool receive_frame(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;
	uint8_t start[START] __attribute__((aligned(8))) = { 0 };
	uint32_t pieces;
	uint64_t room = place_buffers(port, &pieces);
	ssize_t length;

	port->iov[pieces] = (struct iovec){ port->overflow, sizeof(port->overflow) };
	length = readv(port->fd, port->iov, pieces + 1);
	if (!has_read(ring, length))
		return false;
	if (is_shut(port)) {
		park(port, pieces, length, room);
		return false;
	}
	if (length < (ssize_t)(HEADER + ETHERNET)) {
		port->counts.rx_dropped_too_short++;
		return true;
	}
	copy_start(port->iov, pieces + 1, start, (uint64_t)length < START ? (uint64_t)length : START);
	if (!admits(port, start, length))
		return true;
	if ((uint64_t)length > room)
		hold(port, pieces, length, room);
	else
		use_buffers(ring, start, length);
	return true;
}

static uint32_t receive(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;
	uint32_t served = 0;

	while (served < TURN && !ring->broken) {
		if (port->held) {
			if (!place_held(ring))
				break;
			served++;
			continue;
		}
		make_room(ring, port->enough);
		if (port->ready_count == 0 || !(port->readable || port->parked))
			break;
		if (port->parked) {
			if (!place_parked(ring))
				break;
			served++;
			continue;
		}
		/* The next is mostly as long as the last. */
		if (!(port->last <= COPIED ? receive_copied(ring) : receive_frame(ring)))
			break;
		served++;
	}
	return served;
}

static bool receive_wants(const struct vp_ring *ring)
{
	const struct vp_port *port = ring->device;

	return port->room < (port->held > port->enough ? port->held : port->enough);
}

static bool receive_ready(const struct vp_ring *ring)
{
	const struct vp_port *port = ring->device;

	return (port->readable || port->parked) && port->ready_count > 0 && !port->held;
}

static void readable(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;

	port->readable = true;
}

static void leave_receive(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;

	/* Python's from here on. */
	if (port->held)
		port->parked = port->held;
	port->held = 0;
	vp_net_give_back(ring);
}

const struct vp_ring_kind vp_receive_kind = {
	.serve = receive, .ready = receive_ready, .wants = receive_wants, .readable = readable,
	.leave = leave_receive,
};

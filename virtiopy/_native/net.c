/* SPDX-License-Identifier: MIT */
/*
 * The frames of a network device (5.1.9) whose link is a tap: devices/net/path.py is the reference.
 * Control commands, recording and legacy drivers are Python's.
 */
#include "native.h"

#include <errno.h>
#include <limits.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "worker.h"

#define HEADER sizeof(struct virtio_net_hdr_v1)
#define ETHERNET 14
#define VLAN_TAG 4
#define ETHERNET_MOST (ETHERNET + 4 * VLAN_TAG)
#define TCP_HEADER 20
#define START (HEADER + ETHERNET_MOST)	/* what is looked at of a received frame */

/* Frames of one turn. */
#define TURN 64

/* Frames that are worth a burst (burst.h). */
#define LEAST_BURST 2

/* Pieces that one system call takes. */
#define PIECES 1024

/*
 * Frames up to this long, with their headers, are copied on their way: a system call that takes one
 * buffer costs less than one that takes several, by more than the copy.
 */
#define COPIED 2048

/* From one copied frame to the next: lines of the CPU's cache that do not get into each other's way. */
#define STRIDE (COPIED + 64)

_Static_assert(VP_BURST * STRIDE <= sizeof(((struct vp_port *)NULL)->frame), "a burst has its copies there");

/* Milliseconds that a link without room for a frame is waited for, in one turn. */
#define NO_ROOM_MS 1

static const uint8_t broadcast[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

static bool is_tag(const uint8_t *ethertype)
{
	return (ethertype[0] == 0x81 && ethertype[1] == 0x00) ||
	       (ethertype[0] == 0x88 && ethertype[1] == 0xa8);
}

/* How long a frame that begins with `count` bytes of `start` may be, unsegmented (5.1.4.1). */
static uint64_t longest_frame(const uint8_t *start, uint64_t count, uint32_t mtu)
{
	uint64_t length = ETHERNET;

	while (length < ETHERNET_MOST && length <= count && is_tag(start + length - 2))
		length += VLAN_TAG;
	return mtu + length;
}

/* Copies the first bytes of some pieces: as many as there are, up to `count`. */
static uint64_t copy_start(const struct iovec *iov, uint32_t pieces, void *to, uint64_t count)
{
	uint64_t copied = 0;

	if (pieces > 0 && iov[0].iov_len >= count) {
		memcpy(to, iov[0].iov_base, count);
		return count;
	}
	for (uint32_t i = 0; i < pieces && copied < count; i++) {
		uint64_t part = count - copied < iov[i].iov_len ? count - copied : iov[i].iov_len;

		memcpy((char *)to + copied, iov[i].iov_base, part);
		copied += part;
	}
	return copied;
}

/* Which bit of a mask of segmentation types this value of gso_type has; 0: it is none. */
static uint32_t gso_bit(uint8_t type)
{
	uint32_t ecn = type & VIRTIO_NET_HDR_GSO_ECN ? VP_GSO_ECN : 0;

	switch (type & ~VIRTIO_NET_HDR_GSO_ECN) {
	case VIRTIO_NET_HDR_GSO_TCPV4:
		return VP_GSO_TCPV4 << ecn;
	case VIRTIO_NET_HDR_GSO_TCPV6:
		return VP_GSO_TCPV6 << ecn;
	default:
		return 0;
	}
}

/* Takes the next buffer of the queue; NULL where there is none now, or many that are malformed. */
static struct vp_slot *pop(struct vp_ring *ring)
{
	for (uint32_t i = 0; i < TURN; i++) {
		struct vp_slot *slot = vp_ring_slot(ring);
		enum vp_pop result;

		if (!slot)
			return NULL;
		result = vp_virtq_pop(ring->queue, &slot->chain, slot->iov, VP_PIECES);
		if (result == VP_POP_CHAIN)
			return slot;
		if (result == VP_POP_NO_ROOM) {
			/* Cut into more pieces than a frame can have bytes in: as good as malformed. */
			vp_virtq_take(ring->queue, slot->chain.head);
			slot->chain.readable = slot->chain.writable = 0;
			vp_ring_complete(ring, slot, 0);
			continue;
		}
		vp_ring_free_slot(ring, slot);
		if (result == VP_POP_EMPTY)
			return NULL;
		vp_ring_fault(ring, result);
		if (result == VP_POP_BROKEN)
			break;
	}
	return NULL;
}

/* Transmitting (5.1.9.2) */

/*
 * Makes of the driver's header one that the host's own parser can be given: it never sees a field that
 * was not looked at.  False for one that lies (5.1.9.2.1).
 */
static bool check_header(const struct vp_port *port, const struct virtio_net_hdr_v1 *header,
			 const struct iovec *frame, uint32_t pieces, uint64_t length,
			 struct virtio_net_hdr_v1 *safe)
{
	memset(safe, 0, sizeof(*safe));
	/* Mostly there is nothing to be done. */
	if (!(header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) &&
	    header->gso_type == VIRTIO_NET_HDR_GSO_NONE)
		return true;
	if (header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
		if (!port->tx_checksum || header->csum_start < ETHERNET ||
		    header->csum_start + header->csum_offset + 2u > length)
			return false;
		safe->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
		safe->csum_start = header->csum_start;
		safe->csum_offset = header->csum_offset;
	}
	if (header->gso_type == VIRTIO_NET_HDR_GSO_NONE)
		return true;
	if (!(gso_bit(header->gso_type) & port->tx_gso) || !safe->flags || header->gso_size == 0)
		return false;
	if (port->has_mtu) {
		uint8_t start[ETHERNET_MOST] = { 0 };
		uint64_t count = copy_start(frame, pieces, start, sizeof(start));

		/* Each segment repeats the headers, up to TCP's (5.1.4.2). */
		if ((uint64_t)safe->csum_start + TCP_HEADER + header->gso_size >
		    longest_frame(start, count, port->mtu))
			return false;
	}
	safe->gso_type = header->gso_type;
	safe->gso_size = header->gso_size;
	safe->hdr_len = header->hdr_len < length ? header->hdr_len : length;
	return true;
}

static bool is_too_long(const struct vp_port *port, const struct virtio_net_hdr_v1 *header,
			const struct iovec *frame, uint32_t pieces, uint64_t length)
{
	uint8_t start[ETHERNET_MOST] = { 0 };

	if (length > VP_LONGEST_FRAME)
		return true;
	if (header->gso_type != VIRTIO_NET_HDR_GSO_NONE || !port->has_mtu ||
	    length <= port->mtu + ETHERNET)
		return false;
	return length > longest_frame(start, copy_start(frame, pieces, start, sizeof(start)), port->mtu);
}

/* Makes port->iov of a frame: a header of ours, and the driver's pieces behind its own. */
static uint32_t place_frame(struct vp_port *port, const struct vp_chain *chain)
{
	uint64_t skip = HEADER;
	uint32_t count = 1;

	for (uint32_t i = 0; i < chain->readable && count < PIECES; i++) {
		const struct iovec *piece = &chain->iov[i];

		if (piece->iov_len <= skip) {
			skip -= piece->iov_len;
			continue;
		}
		port->iov[count].iov_base = (char *)piece->iov_base + skip;
		port->iov[count++].iov_len = piece->iov_len - skip;
		skip = 0;
	}
	return count;
}

static void count_refusal(struct vp_port *port, int error)
{
	/* A tap's words for an interface that is down, and for one that is no more. */
	if (error == EIO || error == EBADFD)
		port->counts.tx_dropped_link_down++;
	else
		port->counts.tx_dropped_refused++;
}

/* Whether a frame may be sent with this header, which `safe` becomes; counts why not. */
static bool may_send(struct vp_port *port, const struct virtio_net_hdr_v1 *header,
		     const struct iovec *frame, uint32_t pieces, uint64_t length,
		     struct virtio_net_hdr_v1 *safe)
{
	if (length < ETHERNET)
		port->counts.tx_dropped_too_short++;
	else if (!check_header(port, header, frame, pieces, length, safe))
		port->counts.tx_dropped_header++;
	else if (is_too_long(port, safe, frame, pieces, length))
		port->counts.tx_dropped_too_long++;
	else
		return true;
	return false;
}

/* Copies a short frame; false where it may not be sent. */
static bool copy_frame(struct vp_port *port, const struct vp_chain *chain, uint8_t *copy)
{
	struct virtio_net_hdr_v1 header, *safe = (struct virtio_net_hdr_v1 *)copy;
	struct iovec frame = { copy + HEADER, chain->readable_bytes - HEADER };

	copy_start(chain->iov, chain->readable, copy, chain->readable_bytes);
	memcpy(&header, copy, HEADER);
	return may_send(port, &header, &frame, 1, frame.iov_len, safe);
}

/* Sends a frame from where it is, behind a copy of its header: what was checked is what is sent. */
static ssize_t send_in_place(struct vp_port *port, const struct vp_chain *chain)
{
	struct virtio_net_hdr_v1 header, safe;
	uint32_t count;

	copy_start(chain->iov, chain->readable, &header, HEADER);
	count = place_frame(port, chain);
	if (!may_send(port, &header, port->iov + 1, count - 1, chain->readable_bytes - HEADER, &safe))
		return 0;
	port->iov[0].iov_base = &safe;
	port->iov[0].iov_len = HEADER;
	return writev(port->fd, port->iov, count);
}

/* Takes note of what came of a frame: bytes or -errno; false where the link has no room for it. */
static bool has_sent(struct vp_port *port, ssize_t result)
{
	if (result == -EAGAIN)
		return false;
	if (result > 0)
		port->counts.tx_frames++;
	else if (result < 0)
		count_refusal(port, -result);
	return true;
}

/* Sends one frame, or counts why not; false where the link has no room for it. */
static bool send_frame(struct vp_ring *ring, const struct vp_chain *chain)
{
	struct vp_port *port = ring->device;
	ssize_t done = 0;

	if (chain->readable_bytes < HEADER) {
		port->counts.tx_dropped_header++;
		return true;
	}
	ring->counts.system_calls++;
	if (chain->readable_bytes > COPIED)
		done = send_in_place(port, chain);
	else if (copy_frame(port, chain, port->frame))
		done = write(port->fd, port->frame, chain->readable_bytes);
	return has_sent(port, done < 0 ? -errno : done);
}

static struct vp_slot *ready_at(struct vp_port *port, uint32_t place)
{
	return port->ready[(port->ready_first + place) % VP_SLOTS];
}

static void complete_sent(struct vp_ring *ring, struct vp_slot *slot)
{
	ring->counts.served++;
	vp_ring_complete(ring, slot, 0);
}

/* Has frames of the queue ready, in their order. */
static void pop_frames(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;

	while (port->ready_count < VP_BURST) {
		struct vp_slot *slot = pop(ring);

		if (!slot)
			break;
		port->ready[(port->ready_first + port->ready_count++) % VP_SLOTS] = slot;
	}
}

static bool is_short(const struct vp_slot *slot)
{
	return slot->chain.readable_bytes >= HEADER && slot->chain.readable_bytes <= COPIED;
}

/*
 * Whether a burst can be sent: by a tap whose queue has no limit, as is a tap's unless a program has set
 * one.  Where one frame of a burst finds no room and the next does, they change places.
 */
static bool can_burst(struct vp_port *port)
{
	int room;

	if (port->is_burst_useless)
		return false;
	if (port->burst.uring.fd >= 0)
		return true;
	port->is_burst_useless = ioctl(port->fd, TUNGETSNDBUF, &room) < 0 || room != INT_MAX ||
				 vp_burst_open(&port->burst, port->fd) < 0;
	return !port->is_burst_useless;
}

/* How many of the frames that are ready are to be sent by one system call. */
static uint32_t count_burst(struct vp_port *port)
{
	uint32_t count = 0;

	while (count < port->ready_count && is_short(ready_at(port, count)))
		count++;
	return count >= LEAST_BURST && can_burst(port) ? count : 0;
}

/* Writes that many of the frames that are ready; results: of each bytes, -errno, or 0 for an unsound one. */
static void write_burst(struct vp_ring *ring, uint32_t count, int32_t *results)
{
	struct vp_port *port = ring->device;
	int32_t written[VP_BURST];
	uint32_t places[VP_BURST], sound = 0;

	for (uint32_t i = 0; i < count; i++) {
		const struct vp_chain *chain = &ready_at(port, i)->chain;
		uint8_t *copy = port->frame + STRIDE * sound;

		results[i] = 0;
		if (copy_frame(port, chain, copy)) {
			places[sound++] = i;
			vp_burst_add(&port->burst, copy, chain->readable_bytes);
		}
	}
	if (sound == 0)
		return;
	ring->counts.system_calls++;
	vp_burst_write(&port->burst, written);
	for (uint32_t i = 0; i < sound; i++)
		results[places[i]] = written[i];
}

/* Sends that many of the frames that are ready; false where the link has no room for one. */
static bool send_burst(struct vp_ring *ring, uint32_t count)
{
	struct vp_port *port = ring->device;
	struct vp_slot *left[VP_BURST];
	int32_t results[VP_BURST];
	uint32_t left_count = 0;

	write_burst(ring, count, results);
	for (uint32_t i = 0; i < count; i++) {
		struct vp_slot *slot = ready_at(port, i);

		if (!has_sent(port, results[i])) {
			left[left_count++] = slot;
			continue;
		}
		complete_sent(ring, slot);
		/* Those before it that are left can only be used, and not be made available again. */
		if (left_count > 0)
			ring->queue->since_rejected = 0;
	}
	port->ready_first += count - left_count;
	port->ready_count -= count - left_count;
	for (uint32_t i = 0; i < left_count; i++)
		port->ready[(port->ready_first + i) % VP_SLOTS] = left[i];
	/* It had no room after all, or the kernel does not write at once: that is no gain. */
	if (left_count > 0 || port->burst.waited)
		port->is_burst_useless = true;
	return left_count == 0;
}

/* Sends the first of the frames that are ready; false where the link has no room for it. */
static bool send_first(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;
	struct vp_slot *slot = ready_at(port, 0);

	if (!send_frame(ring, &slot->chain))
		return false;
	port->ready_first++;
	port->ready_count--;
	complete_sent(ring, slot);
	return true;
}

static uint32_t transmit(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;
	uint64_t before = ring->counts.served;

	while (ring->counts.served - before < TURN) {
		uint32_t burst;

		pop_frames(ring);
		if (port->ready_count == 0)
			break;
		burst = count_burst(port);
		if (!(burst > 0 ? send_burst(ring, burst) : send_first(ring))) {
			struct pollfd link = { .fd = port->fd, .events = POLLOUT };

			port->counts.tx_waits++;
			poll(&link, 1, NO_ROOM_MS);
			break;
		}
	}
	return ring->counts.served - before;
}

static bool transmit_ready(const struct vp_ring *ring)
{
	const struct vp_port *port = ring->device;

	return port->ready_count > 0;
}

/* Receiving (5.1.9.4) */

static void take_ready(struct vp_ring *ring, uint32_t written)
{
	struct vp_port *port = ring->device;
	struct vp_slot *slot = ready_at(port, 0);

	port->ready_first++;
	port->ready_count--;
	port->room -= slot->chain.writable_bytes;
	vp_ring_complete(ring, slot, written);
}

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
		struct vp_slot *slot = pop(ring);

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

/*
 * Makes the buffers available again that were not used; those that were overtaken are used, empty.
 * Returns how many these were.
 */
static uint32_t give_back(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;
	uint32_t overtaken, count;
	uint16_t heads[VP_SLOTS];

	overtaken = port->ready_count > ring->queue->since_rejected ?
			    port->ready_count - ring->queue->since_rejected : 0;
	for (uint32_t i = 0; i < overtaken; i++)
		take_ready(ring, 0);
	count = port->ready_count;
	for (uint32_t i = 0; i < count; i++) {
		struct vp_slot *slot = ready_at(port, count - 1 - i);

		heads[i] = slot->chain.head;
		vp_ring_free_slot(ring, slot);
	}
	vp_virtq_publish(ring->queue);
	vp_virtq_untake(ring->queue, heads, count);
	port->ready_count = 0;
	port->room = 0;
	return overtaken;
}

static void leave_receive(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;

	/* Python's from here on. */
	if (port->held)
		port->parked = port->held;
	port->held = 0;
	give_back(ring);
}

static void leave_transmit(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;

	vp_burst_close(&port->burst);
	port->counts.tx_dropped_refused += give_back(ring);
}

static const struct vp_ring_kind receive_kind = {
	.serve = receive, .ready = receive_ready, .wants = receive_wants, .readable = readable,
	.leave = leave_receive,
};

static const struct vp_ring_kind transmit_kind = {
	.serve = transmit, .ready = transmit_ready, .leave = leave_transmit,
};

/* Makes a ring one of frames to be received from the port's link, or sent to it. */
void vp_ring_serve_net(struct vp_ring *ring, struct vp_port *port, int is_transmit)
{
	ring->kind = is_transmit ? &transmit_kind : &receive_kind;
	ring->device = port;
	port->burst.uring.fd = -1;
	if (!is_transmit) {
		ring->device_fd = port->fd;
		/* There may be frames already. */
		port->readable = true;
	}
}

/* SPDX-License-Identifier: MIT */
/* Frames that the driver sends (5.1.9.2): to a tap, short ones in bursts. */
#include <errno.h>
#include <limits.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "net.h"

#define TCP_HEADER 20

/* Frames that are worth a burst (burst.h). */
#define LEAST_BURST 2

/* From one copied frame to the next: lines of the CPU's cache that do not get into each other's way. */
#define STRIDE (COPIED + 64)

_Static_assert(VP_BURST * STRIDE <= sizeof(((struct vp_port *)NULL)->frame), "a burst has its copies there");

/* Milliseconds that a link without room for a frame is waited for, in one turn. */
#define NO_ROOM_MS 1

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

static void complete_sent(struct vp_ring *ring, struct vp_slot *slot)
{
	ring->counts.served++;
	vp_ring_complete(ring, slot, 0);
}

/* Has frames of the queue ready, in their order. */
static void pop_frames(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;

	/* That it is broken is told once. */
	while (port->ready_count < VP_BURST && !ring->broken) {
		struct vp_slot *slot = vp_net_pop(ring);

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

static void leave_transmit(struct vp_ring *ring)
{
	struct vp_port *port = ring->device;

	vp_burst_close(&port->burst);
	port->counts.tx_dropped_refused += vp_net_give_back(ring);
}

const struct vp_ring_kind vp_transmit_kind = {
	.serve = transmit, .ready = transmit_ready, .leave = leave_transmit,
};

/* SPDX-License-Identifier: MIT */
/* What the two directions of a network device have in common (5.1.9). */
#ifndef VIRTIOPY_NET_H
#define VIRTIOPY_NET_H

#include <string.h>

#include "native.h"
#include "worker.h"

#define HEADER sizeof(struct virtio_net_hdr_v1)
#define ETHERNET 14
#define VLAN_TAG 4
#define ETHERNET_MOST (ETHERNET + 4 * VLAN_TAG)

/* Frames of one turn. */
#define TURN 64

/* Pieces that one system call takes. */
#define PIECES 1024

/*
 * Frames up to this long, with their headers, are copied on their way: a system call that takes one
 * buffer costs less than one that takes several, by more than the copy.
 */
#define COPIED 2048

static inline bool is_tag(const uint8_t *ethertype)
{
	return (ethertype[0] == 0x81 && ethertype[1] == 0x00) ||
	       (ethertype[0] == 0x88 && ethertype[1] == 0xa8);
}

/* How long a frame that begins with `count` bytes of `start` may be, unsegmented (5.1.4.1). */
static inline uint64_t longest_frame(const uint8_t *start, uint64_t count, uint32_t mtu)
{
	uint64_t length = ETHERNET;

	while (length < ETHERNET_MOST && length <= count && is_tag(start + length - 2))
		length += VLAN_TAG;
	return mtu + length;
}

/* Copies the first bytes of some pieces: as many as there are, up to `count`. */
static inline uint64_t copy_start(const struct iovec *iov, uint32_t pieces, void *to, uint64_t count)
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
static inline uint32_t gso_bit(uint8_t type)
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

static inline struct vp_slot *ready_at(struct vp_port *port, uint32_t place)
{
	return port->ready[(port->ready_first + place) % VP_SLOTS];
}

/* Uses the first of the chains that are ready. */
static inline void take_ready(struct vp_ring *ring, uint32_t written)
{
	struct vp_port *port = ring->device;
	struct vp_slot *slot = ready_at(port, 0);

	port->ready_first++;
	port->ready_count--;
	port->room -= slot->chain.writable_bytes;
	vp_ring_complete(ring, slot, written);
}

struct vp_slot *vp_net_pop(struct vp_ring *ring);
uint32_t vp_net_give_back(struct vp_ring *ring);

extern const struct vp_ring_kind vp_receive_kind, vp_transmit_kind;

#endif

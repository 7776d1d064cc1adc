/* SPDX-License-Identifier: MIT */
/*
 * The rings of a network device (5.1.9) whose link is a tap: devices/net/path.py is the reference.
 * net_transmit.c and net_receive.c have a direction each.  Control commands, recording and legacy
 * drivers are Python's.
 */
#include "net.h"

/* Takes the next buffer of the queue; NULL where there is none now, or many that are malformed. */
struct vp_slot *vp_net_pop(struct vp_ring *ring)
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

/*
 * Makes the buffers available again that were not used; those that were overtaken are used, empty.
 * Returns how many these were.
 */
uint32_t vp_net_give_back(struct vp_ring *ring)
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

/* Makes a ring one of frames to be received from the port's link, or sent to it. */
void vp_ring_serve_net(struct vp_ring *ring, struct vp_port *port, int is_transmit)
{
	ring->kind = is_transmit ? &vp_transmit_kind : &vp_receive_kind;
	ring->device = port;
	port->burst.uring.fd = -1;
	if (!is_transmit) {
		ring->device_fd = port->fd;
		/* There may be frames already. */
		port->readable = true;
	}
}

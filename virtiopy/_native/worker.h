/* SPDX-License-Identifier: MIT */
/*
 * A thread that works rings without the interpreter: worker.c.  What a request means is the business
 * of a kind of ring: blk.c, net.c.  What these do not serve goes up to Python, unserved.
 */
#ifndef VIRTIOPY_WORKER_H
#define VIRTIOPY_WORKER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "burst.h"
#include "engine.h"
#include "virtq.h"

/* Pieces of a chain that a worker serves: what one system call takes, a header and a status. */
#define VP_PIECES (1024 + 2)

/* Chains of one ring that are in flight at a time. */
#define VP_SLOTS 256

/* Malformed chains that Python can yet be told of; more are only counted. */
#define VP_REJECTS 16

struct vp_worker;
struct vp_ring;

/* A chain in flight. */
struct vp_slot {
	struct vp_chain chain;
	struct vp_ring *ring;
	uint32_t index;
	/* Whether Python has it, or will; and whether as its head alone, for more than VP_PIECES. */
	bool is_up, is_head_only;
	/* For a kind: a piece that it made shorter for the time of a job, and as it was before. */
	struct iovec *cut, uncut;
	int32_t expected;	/* what the job is to return */
	struct iovec iov[VP_PIECES];
};

/* A ring buffer of slots, from one thread to another. */
struct vp_mailbox {
	uint32_t head __attribute__((aligned(64)));
	uint32_t tail __attribute__((aligned(64)));
	struct {
		uint32_t slot, written;
	} items[VP_SLOTS];
};

struct vp_ring_kind {
	/* Serves a turn's worth of chains; returns how many. */
	uint32_t (*serve)(struct vp_ring *ring);
	/* Takes what came of the job of a slot. */
	void (*done)(struct vp_ring *ring, struct vp_slot *slot, int32_t result);
	/* Whether a turn would find something to do, besides chains: no system call.  Or NULL. */
	bool (*ready)(const struct vp_ring *ring);
	/* The device's own file is readable: see vp_ring.device_fd. */
	void (*readable)(struct vp_ring *ring);
	/* Whether the ring wants chains now.  Or NULL: always. */
	bool (*wants)(const struct vp_ring *ring);
	/* The worker is about to leave the ring: what it holds of chains goes back.  Or NULL. */
	void (*leave)(struct vp_ring *ring);
};

/* What a ring has cost and done, since it was started. */
struct vp_ring_counts {
	uint64_t served;	/* chains, without those that went up */
	uint64_t handed_up;
	uint64_t rejected;	/* malformed chains */
	uint64_t at_once;	/* requests whose one system call had all of it */
	uint64_t jobs;
	uint64_t kicks;
	uint64_t interrupts;
	uint64_t system_calls;	/* of the kind: for data, and interrupts */
};

struct vp_ring {
	const struct vp_ring_kind *kind;
	struct vp_virtq *queue;
	void *device;		/* the kind's own: struct vp_disk, struct vp_port */
	int kick, call;
	int error;		/* an eventfd, written when the ring is found broken, or -1 */
	int device_fd;		/* a file to be told of when it is readable, or -1 */
	struct vp_worker *worker;
	/* Written by the owner of the ring, under the worker's lock: see vp_worker_start_ring(). */
	uint32_t starting, stopping, running;
	uint32_t broken;	/* queue->fault says why: it is not touched any more */
	uint32_t jobs;		/* slots that an engine has */
	uint32_t cached_reads;	/* blk.c: that were in the page cache, in a row */
	/* Slots that are free: a stack, so that few are touched. */
	struct vp_slot *slots;
	uint32_t slot_count, free_count;
	uint16_t free[VP_SLOTS];
	/* To Python and back. */
	struct vp_mailbox up, down;
	struct vp_fault rejects[VP_REJECTS];
	uint32_t rejects_head, rejects_tail;
	struct vp_ring_counts counts;
};

/* Owned by the thread that works the ring. */
static inline struct vp_slot *vp_ring_slot(struct vp_ring *ring)
{
	struct vp_slot *slot;

	if (ring->free_count == 0)
		return NULL;
	ring->free_count--;
	slot = &ring->slots[ring->free[ring->free_count]];
	slot->ring = ring;
	slot->index = ring->free[ring->free_count];
	slot->is_up = slot->is_head_only = false;
	return slot;
}

static inline void vp_ring_free_slot(struct vp_ring *ring, struct vp_slot *slot)
{
	ring->free[ring->free_count++] = slot->index;
}

static inline void vp_ring_complete(struct vp_ring *ring, struct vp_slot *slot, uint32_t written)
{
	vp_virtq_put(ring->queue, &slot->chain, written);
	vp_ring_free_slot(ring, slot);
}

void vp_ring_hand_up(struct vp_ring *ring, struct vp_slot *slot);
int vp_ring_submit(struct vp_ring *ring, struct vp_slot *slot, struct vp_job *job);
void vp_ring_interrupt(struct vp_ring *ring);
enum vp_pop vp_ring_pop(struct vp_ring *ring, struct vp_slot **slot);
void vp_ring_fault(struct vp_ring *ring, enum vp_pop result);

/* For Python. */
struct vp_worker *vp_worker_new(int attention, uint32_t poll_us, int use_uring, int signal_number,
				int *error);
void vp_worker_free(struct vp_worker *worker);
void vp_worker_start_ring(struct vp_worker *worker, struct vp_ring *ring);
void vp_worker_stop_ring(struct vp_worker *worker, struct vp_ring *ring);
void vp_worker_look(struct vp_worker *worker);
uint64_t vp_worker_system_calls(const struct vp_worker *worker);
uint64_t vp_worker_sleeps(const struct vp_worker *worker);
int vp_worker_tid(const struct vp_worker *worker);

struct vp_ring *vp_ring_new(struct vp_virtq *queue, int kick, int call);
void vp_ring_free(struct vp_ring *ring);
int vp_ring_take(struct vp_ring *ring);
struct vp_slot *vp_ring_slot_at(struct vp_ring *ring, uint32_t index);
void vp_ring_give(struct vp_ring *ring, uint32_t index, uint32_t written);
void vp_ring_finish(struct vp_ring *ring, uint32_t index, uint32_t written);
int vp_ring_next_reject(struct vp_ring *ring, struct vp_fault *fault);

/* blk.c: a disk that is one file, and what its driver may ask of it. */
struct vp_disk {
	int fd;
	uint32_t alignment;	/* of offsets, lengths and memory: 1, or direct I/O's */
	uint32_t in_memory;	/* the file is: it is read at once, and never waits */
	uint32_t readonly;
	uint32_t writeback;	/* changes meanwhile: completed writes may be volatile until a flush */
	uint64_t sectors;	/* changes meanwhile: the capacity */
};

void vp_ring_serve_blk(struct vp_ring *ring, struct vp_disk *disk);

/* net.c: a tap, and what was negotiated for the frames of one ring of it. */
#define VP_LONGEST_FRAME 65589	/* that asks for segmentation: devices/net/header.py */

/* Segmentation types of a mask; the same with ECN are VP_GSO_ECN bits further. */
#define VP_GSO_TCPV4 1
#define VP_GSO_TCPV6 2
#define VP_GSO_ECN 2

#define VP_FILTER_PROMISC 1
#define VP_FILTER_ALLMULTI 2
#define VP_FILTER_ALLUNI 4
#define VP_FILTER_NOMULTI 8
#define VP_FILTER_NOUNI 16
#define VP_FILTER_NOBCAST 32

/* Which frames the driver wants (5.1.9.5.1 to 5.1.9.5.3); it does not change while a ring is worked. */
struct vp_filter {
	bool by_address, by_vlan;
	uint32_t modes;
	uint8_t mac[6];
	uint8_t vlans[512];
	const uint8_t *table;
	uint32_t table_count;
};

/* Frames by what became of them: devices/net/path.py says more of each. */
struct vp_port_counts {
	uint64_t rx_frames, rx_filtered, rx_dropped_too_short, rx_dropped_too_long;
	uint64_t rx_dropped_no_buffer, rx_dropped_offload, rx_buffers_too_small;
	uint64_t tx_frames, tx_dropped_header, tx_dropped_too_short, tx_dropped_too_long;
	uint64_t tx_dropped_link_down, tx_dropped_refused, tx_waits;
};

/*
 * Shut while a message of the VMM's is not done, which may be to leave a ring: it waits in `fd`, or
 * Python is at it, and `busy`.  devices/gate.py says more.
 */
struct vp_gate {
	int fd;
	uint32_t busy;
};

struct vp_port {
	int fd;
	bool mergeable, rx_checksum, tx_checksum, has_mtu;
	uint32_t mtu, rx_gso, tx_gso;
	uint64_t enough;	/* bytes of buffers that are had ready to receive */
	const struct vp_filter *filter;
	const struct vp_gate *gate;	/* or NULL: a received frame that finds it shut goes no further */
	struct vp_port_counts counts;
	/* The thread's own. */
	bool readable;		/* the link may have a frame */
	/* Chains in their order: buffers to receive into, or frames to be sent. */
	struct vp_slot *ready[VP_SLOTS];
	uint32_t ready_first, ready_count;
	uint64_t room;
	struct vp_burst burst;
	bool is_burst_useless;	/* there is none, or the link had no room for one */
	uint64_t held;		/* bytes in `frame`, of one that waits for buffers */
	uint64_t parked;	/* the same, of one that waits for the gate: Python's, once the ring is left */
	uint64_t last;		/* bytes of the frame that was received last */
	struct iovec iov[1024 + 1];
	uint8_t frame[12 + VP_LONGEST_FRAME + 65536] __attribute__((aligned(8)));
	uint8_t overflow[12 + VP_LONGEST_FRAME];
};

void vp_ring_serve_net(struct vp_ring *ring, struct vp_port *port, int is_transmit);

#endif

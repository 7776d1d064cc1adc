/* SPDX-License-Identifier: MIT */
/* What Python sees of the rings that C works. */

/* memory.c, virtq.c: the device side of a split virtqueue */
struct iovec { void *iov_base; size_t iov_len; };
struct vp_region { uint64_t guest, size; char *host; };
struct vp_memory { uint32_t count; struct vp_region regions[]; };

enum vp_fault_code {
	VP_FAULT_NONE, VP_FAULT_INDEX, VP_FAULT_HEAD, VP_FAULT_NESTED, VP_FAULT_NOT_NEGOTIATED,
	VP_FAULT_INDIRECT_NEXT, VP_FAULT_TABLE_SIZE, VP_FAULT_TOO_LONG, VP_FAULT_TOO_LARGE, VP_FAULT_ORDER,
	VP_FAULT_NEXT, VP_FAULT_ADDRESS, ...
};
struct vp_fault { uint32_t code, head; uint64_t address, length; };
struct vp_chain {
	struct iovec *iov;
	uint32_t readable, writable;
	uint64_t readable_bytes, writable_bytes;
	uint32_t head, descriptors;
};
enum vp_pop { VP_POP_EMPTY, VP_POP_CHAIN, VP_POP_REJECTED, VP_POP_NO_ROOM, VP_POP_BROKEN, ... };
struct vp_dirty { uint8_t *log; uint64_t pages, used; bool logs_used; int eventfd; uint32_t *too_small; };
struct vp_virtq {
	const struct vp_memory *memory;
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	uint32_t size, longest;
	bool event_idx, indirect;
	uint16_t next, seen, used_idx, signalled;
	uint32_t in_flight, since_rejected;
	struct vp_fault fault;
	uint16_t *unfinished;
	uint32_t unfinished_count, unfinished_next;
	struct vhost_user_queue_region *inflight;
	uint64_t inflight_counter;
	struct vp_dirty dirty;
	...;
};
struct vp_batch {
	struct vp_chain *chains;
	struct iovec *iov;
	struct vp_fault *rejects;
	uint32_t chains_room, iov_room, rejects_room, limit;
	int64_t budget;
	uint32_t count, iov_count, rejects_count;
};
enum vp_pop vp_virtq_pop_many(struct vp_virtq *queue, struct vp_batch *batch);
enum vp_pop vp_virtq_walk(struct vp_virtq *queue, uint16_t head, struct vp_chain *chain, struct iovec *iov, uint32_t room);
enum vp_pop vp_virtq_peek(struct vp_virtq *queue, struct vp_chain *chain, struct iovec *iov, uint32_t room);
void vp_virtq_reject(struct vp_virtq *queue, uint16_t head);
void vp_virtq_put(struct vp_virtq *queue, const struct vp_chain *chain, uint32_t written);
void vp_virtq_publish(struct vp_virtq *queue);
bool vp_virtq_should_interrupt(struct vp_virtq *queue);
void vp_virtq_disable_kicks(struct vp_virtq *queue);
bool vp_virtq_enable_kicks(struct vp_virtq *queue);
void vp_virtq_resume(struct vp_virtq *queue, uint16_t next);
void vp_virtq_untake(struct vp_virtq *queue, const uint16_t *heads, uint32_t count);

/* uring.c, worker.c, blk.c: rings worked by a thread of its own */
#define VP_PIECES ...
#define VP_SLOTS ...
struct vp_worker;
struct vp_slot { struct vp_chain chain; bool is_head_only; ...; };
struct vp_ring_counts {
	uint64_t served, handed_up, rejected, at_once, jobs, kicks, interrupts, system_calls;
};
struct vp_ring { int error; uint32_t broken; struct vp_ring_counts counts; ...; };
struct vp_disk { int fd; uint32_t alignment, in_memory, readonly, writeback; uint64_t sectors; };
int vp_has_uring(void);
struct vp_worker *vp_worker_new(int attention, uint32_t poll_us, int use_uring, int signal_number, int *error);
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
void vp_ring_serve_blk(struct vp_ring *ring, struct vp_disk *disk);

/* net.c: frames between rings and a tap */
#define VP_GSO_TCPV4 ...
#define VP_GSO_TCPV6 ...
#define VP_GSO_ECN ...
#define VP_FILTER_PROMISC ...
#define VP_FILTER_ALLMULTI ...
#define VP_FILTER_ALLUNI ...
#define VP_FILTER_NOMULTI ...
#define VP_FILTER_NOUNI ...
#define VP_FILTER_NOBCAST ...
struct vp_filter {
	bool by_address, by_vlan;
	uint32_t modes;
	uint8_t mac[6];
	uint8_t vlans[512];
	const uint8_t *table;
	uint32_t table_count;
};
struct vp_port_counts {
	uint64_t rx_frames, rx_filtered, rx_dropped_too_short, rx_dropped_too_long;
	uint64_t rx_dropped_no_buffer, rx_dropped_offload, rx_buffers_too_small;
	uint64_t tx_frames, tx_dropped_header, tx_dropped_too_short, tx_dropped_too_long;
	uint64_t tx_dropped_link_down, tx_dropped_refused, tx_waits;
};
struct vp_gate {
	int fd;
	uint32_t busy;
};
struct vp_port {
	int fd;
	bool mergeable, rx_checksum, tx_checksum, has_mtu;
	uint32_t mtu, rx_gso, tx_gso;
	uint64_t enough;
	const struct vp_filter *filter;
	const struct vp_gate *gate;
	struct vp_port_counts counts;
	uint64_t parked;
	uint8_t frame[...];
	...;
};
void vp_ring_serve_net(struct vp_ring *ring, struct vp_port *port, int is_transmit);

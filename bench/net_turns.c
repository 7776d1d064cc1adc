/* SPDX-License-Identifier: MIT */
/*
 * What a network device does for a batch of frames, without a driver that runs beside it: the worker's
 * turn (virtiopy/_native/net_transmit.c, net_receive.c) and that of the least that a device can be, on
 * the same tap, in one thread, by turns.  A turn's time is CPU time, so that other programs count for
 * little.
 *
 * Arguments: the tap's file; a packet socket that is bound to it, to receive from, or -1 to transmit; how
 * many rounds of 64 frames.  Prints the median nanoseconds of a frame, of the loop's and of the worker's.
 */
#include "alone.h"

#include <stdio.h>
#include <sys/socket.h>

#define SIZE 128	/* entries of the queue */
#define BATCH 64
#define MEMORY (2 << 20)
#define DATA (1 << 20)
#define ROOM 2048	/* bytes of a buffer to receive into */
#define HEADER 12
#define FRAME 106

static char *memory;
static struct vring ring;
static uint16_t next, used;
static int tap;

static void make_frame(unsigned char *frame)
{
	/* To an address that is not the host's: it goes no further than the tap. */
	static const unsigned char start[] = { 2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 2, 0x88, 0xb5 };

	memset(frame, 0x5a, FRAME);
	memcpy(frame, start, sizeof(start));
}

static void make_available(bool receive)
{
	for (uint32_t i = 0; i < BATCH; i++) {
		char *buffer = memory + DATA + ROOM * i;

		if (!receive) {
			memset(buffer, 0, HEADER);
			make_frame((unsigned char *)buffer + HEADER);
		}
		ring.desc[i] = (struct vring_desc){
			DATA + ROOM * i, receive ? ROOM : HEADER + FRAME, receive ? VRING_DESC_F_WRITE : 0, 0,
		};
		ring.avail->ring[(ring.avail->idx + i) % SIZE] = i;
	}
	ring.avail->idx += BATCH;
	/* No interrupt is wanted. */
	vring_used_event(&ring) = ring.avail->idx + 0x4000;
}

static void inject(int sender)
{
	unsigned char frame[FRAME];

	make_frame(frame);
	for (uint32_t i = 0; i < BATCH; i++)
		if (send(sender, frame, sizeof(frame), 0) != sizeof(frame)) {
			perror("net_turns: a frame cannot be sent to the tap");
			exit(1);
		}
}

static void serve_by_loop(bool receive)
{
	uint16_t end = __atomic_load_n(&ring.avail->idx, __ATOMIC_ACQUIRE);

	while (next != end) {
		uint16_t head = ring.avail->ring[next++ % SIZE];
		struct vring_desc *desc = &ring.desc[head];
		ssize_t done;

		if (receive)
			done = read(tap, memory + desc->addr, desc->len);
		else
			done = write(tap, memory + desc->addr, desc->len);
		if (done != HEADER + FRAME)
			exit(1);
		if (receive)
			*(uint16_t *)(memory + desc->addr + HEADER - 2) = 1;
		ring.used->ring[used++ % SIZE] = (struct vring_used_elem){ head, receive ? done : 0 };
	}
	__atomic_store_n(&ring.used->idx, used, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void serve_by_worker(struct vp_ring *own, uint16_t end)
{
	struct vp_port *port = own->device;

	port->readable = true;
	while (ring.used->idx != end)
		worker_serve(own);
}

static int by_size(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
	uint64_t rounds = argc == 4 ? strtoull(argv[3], NULL, 0) : 0;
	int sender = argc == 4 ? atoi(argv[2]) : -1;
	bool receive = sender >= 0;
	uint64_t *loop_times = calloc(rounds, 8), *worker_times = calloc(rounds, 8);
	struct vp_memory *regions = calloc(1, sizeof(*regions) + sizeof(struct vp_region));
	static struct vp_worker worker;
	static struct vp_filter filter;
	static struct vp_port port;
	struct vp_virtq queue;
	struct vp_ring *own;

	if (rounds == 0)
		return 2;
	tap = atoi(argv[1]);
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	vring_init(&ring, SIZE, memory, 4096);
	regions->count = 1;
	regions->regions[0] = (struct vp_region){ 0, MEMORY, memory };
	queue = (struct vp_virtq){
		.memory = regions, .desc = ring.desc, .avail = ring.avail, .used = ring.used,
		.size = SIZE, .longest = SIZE, .event_idx = true, .indirect = true,
	};
	port = (struct vp_port){
		.fd = tap, .mergeable = true, .has_mtu = true, .mtu = 1500, .enough = HEADER + 1518,
		.filter = &filter,
	};
	own = vp_ring_new(&queue, -1, -1);
	vp_ring_serve_net(own, &port, !receive);
	own->worker = &worker;
	for (uint64_t round = 0; round < rounds; round++) {
		uint64_t begin;

		make_available(receive);
		if (receive)
			inject(sender);
		begin = cpu_time();
		serve_by_loop(receive);
		loop_times[round] = cpu_time() - begin;
		queue.next = queue.seen = next;
		queue.used_idx = queue.signalled = used;
		make_available(receive);
		if (receive)
			inject(sender);
		begin = cpu_time();
		serve_by_worker(own, used + BATCH);
		worker_times[round] = cpu_time() - begin;
		next = queue.next;
		used = queue.used_idx;
	}
	qsort(loop_times, rounds, 8, by_size);
	qsort(worker_times, rounds, 8, by_size);
	printf("%.1f %.1f\n", (double)loop_times[rounds / 2] / BATCH,
	       (double)worker_times[rounds / 2] / BATCH);
	return 0;
}

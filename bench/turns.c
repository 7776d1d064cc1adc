/* SPDX-License-Identifier: MIT */
/*
 * What a device does for a batch of requests, without a driver that runs beside it: the worker's turn
 * (virtiopy/_native) and that of floor.c, in one thread, by turns.  A turn's time is CPU time, so that
 * other programs of the host's count for little.
 *
 * Arguments: the image, how many requests are in a batch, whether they are writes, how many rounds.
 * Prints the median nanoseconds of a request of the floor's and of the worker's, and how many system
 * calls the worker did for one.
 */
#include "alone.h"

#define main floor_main
#include "floor.c"
#undef main

#define SIZE 128	/* entries of the queue */
#define BLOCK 4096
#define MEMORY (2 << 20)
#define DATA (1 << 20)

/* An engine that has nothing to do: all is in the page cache. */

static int submit_nothing(struct vp_engine *engine, const struct vp_job *job)
{
	(void)engine, (void)job;
	fprintf(stderr, "turns: the image is not in the page cache\n");
	exit(1);
}

static const struct vp_engine_kind no_engine = { .name = "none", .submit = submit_nothing };
static struct vp_engine engine = { .kind = &no_engine };

static uint64_t seed = 0x9e3779b97f4a7c15;

static void make_available(uint32_t count, bool writes, uint64_t blocks)
{
	for (uint32_t i = 0; i < count; i++) {
		struct vring_desc *chain = &ring.desc[3 * i];
		struct virtio_blk_outhdr *header = (void *)(memory + 0x10000 + 32 * i);

		seed ^= seed >> 12;
		seed ^= seed << 25;
		seed ^= seed >> 27;
		header->type = writes ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
		header->sector = seed % blocks * (BLOCK / 512);
		chain[0] = (struct vring_desc){ 0x10000 + 32 * i, 16, VRING_DESC_F_NEXT, 3 * i + 1 };
		chain[1] = (struct vring_desc){
			DATA + BLOCK * i, BLOCK,
			VRING_DESC_F_NEXT | (writes ? 0 : VRING_DESC_F_WRITE), 3 * i + 2,
		};
		chain[2] = (struct vring_desc){ 0x10000 + 32 * i + 16, 1, VRING_DESC_F_WRITE, 0 };
		ring.avail->ring[(ring.avail->idx + i) % SIZE] = 3 * i;
	}
	ring.avail->idx += count;
	/* No interrupt is wanted. */
	vring_used_event(&ring) = ring.avail->idx + 0x4000;
}

static void serve_by_floor(void)
{
	uint16_t end = __atomic_load_n(&ring.avail->idx, __ATOMIC_ACQUIRE);

	while (next != end)
		serve(ring.avail->ring[next++ % SIZE]);
	__atomic_store_n(&ring.used->idx, used, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static int by_size(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
	uint32_t count = argc == 5 ? strtoul(argv[2], NULL, 0) : 0;
	uint64_t rounds = argc == 5 ? strtoull(argv[4], NULL, 0) : 0, blocks, calls = 0;
	bool writes = argc == 5 && atoi(argv[3]);
	uint64_t *floor_times = calloc(rounds, 8), *worker_times = calloc(rounds, 8);
	struct vp_memory *regions = calloc(1, sizeof(*regions) + sizeof(struct vp_region));
	struct vp_virtq queue;
	struct vp_disk disk;
	struct vp_ring *own;
	static struct vp_worker worker = { .engine = &engine };

	if (count == 0 || 3 * count > SIZE || rounds == 0)
		return 2;
	image = open(argv[1], O_RDWR);
	blocks = lseek(image, 0, SEEK_END) / BLOCK;
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (image < 0 || memory == MAP_FAILED)
		return 1;
	vring_init(&ring, SIZE, memory, 4096);
	regions->count = 1;
	regions->regions[0] = (struct vp_region){ 0, MEMORY, memory };
	queue = (struct vp_virtq){
		.memory = regions, .desc = ring.desc, .avail = ring.avail,
		.used = ring.used, .size = SIZE, .longest = SIZE, .event_idx = true, .indirect = true,
	};
	disk = (struct vp_disk){ .fd = open(argv[1], O_RDWR | O_NOATIME), .alignment = 1, .writeback = 1, .sectors = blocks * 8 };
	own = vp_ring_new(&queue, -1, -1);
	vp_ring_serve_blk(own, &disk);
	own->worker = &worker;
	for (uint64_t round = 0; round < rounds; round++) {
		uint64_t begin;

		make_available(count, writes, blocks);
		begin = cpu_time();
		serve_by_floor();
		floor_times[round] = cpu_time() - begin;
		queue.next = queue.seen = next;
		queue.used_idx = queue.signalled = used;
		make_available(count, writes, blocks);
		begin = cpu_time();
		while (worker_serve(own))
			continue;
		worker_times[round] = cpu_time() - begin;
		next = queue.next;
		used = queue.used_idx;
	}
	calls = own->counts.system_calls;
	qsort(floor_times, rounds, 8, by_size);
	qsort(worker_times, rounds, 8, by_size);
	printf("%.1f %.1f %.3f\n", (double)floor_times[rounds / 2] / count,
	       (double)worker_times[rounds / 2] / count, (double)calls / (rounds * count));
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * The floor of bench/vhost_user.py: the least that the device side of a virtio-blk ring can be.  One
 * thread, one ring, one read or write of the page cache a request; it polls for 50 us before it sleeps.
 * It believes all that the driver says, and serves no other.  A tenth argument is the file of a seccomp
 * filter to be put on.
 */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define POLL 50000	/* ns */

static char *memory;
static struct vring ring;
static int image, kick, call;
static uint16_t next, used;

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static int has_more(void)
{
	return __atomic_load_n(&ring.avail->idx, __ATOMIC_ACQUIRE) != next;
}

static void wait_for_more(void)
{
	uint64_t end = now() + POLL, count;

	do {
		for (int i = 0; i < 16; i++) {
			if (has_more())
				return;
			__builtin_ia32_pause();
		}
	} while (now() < end);
	for (;;) {
		__atomic_store_n(&vring_avail_event(&ring), next, __ATOMIC_RELAXED);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (has_more())
			return;
		if (read(kick, &count, sizeof(count)) != sizeof(count))
			exit(1);
	}
}

static void serve(uint16_t head)
{
	struct vring_desc *chain[3];
	struct virtio_blk_outhdr *header;
	ssize_t done;

	chain[0] = &ring.desc[head];
	chain[1] = &ring.desc[chain[0]->next];
	chain[2] = &ring.desc[chain[1]->next];
	header = (void *)(memory + chain[0]->addr);
	if (header->type == VIRTIO_BLK_T_IN)
		done = pread(image, memory + chain[1]->addr, chain[1]->len, header->sector * 512);
	else
		done = pwrite(image, memory + chain[1]->addr, chain[1]->len, header->sector * 512);
	memory[chain[2]->addr] = done == chain[1]->len ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
	ring.used->ring[used++ % ring.num] = (struct vring_used_elem){
		.id = head, .len = header->type == VIRTIO_BLK_T_IN ? chain[1]->len + 1 : 1,
	};
}

static void put_filter_on(const char *path)
{
	static struct sock_filter filter[4096];
	FILE *file = fopen(path, "r");
	struct sock_fprog program = { .filter = filter };

	if (!file)
		exit(1);
	program.len = fread(filter, sizeof(filter[0]), sizeof(filter) / sizeof(filter[0]), file);
	fclose(file);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		exit(1);
}

int main(int argc, char **argv)
{
	const uint64_t one = 1;
	uint64_t numbers[8];
	uint16_t signalled = 0;

	if (argc != 10 && argc != 11)
		return 2;
	for (int i = 0; i < 8; i++)
		numbers[i] = strtoull(argv[i + 2], NULL, 0);
	image = open(argv[1], O_RDWR);
	memory = mmap(NULL, numbers[1], PROT_READ | PROT_WRITE, MAP_SHARED, numbers[0], 0);
	if (image < 0 || memory == MAP_FAILED)
		return 1;
	kick = numbers[2];
	call = numbers[3];
	ring.num = numbers[4];
	ring.desc = (void *)(memory + numbers[5]);
	ring.avail = (void *)(memory + numbers[6]);
	ring.used = (void *)(memory + numbers[7]);
	if (argc == 11)
		put_filter_on(argv[10]);
	for (;;) {
		uint16_t end;

		wait_for_more();
		end = __atomic_load_n(&ring.avail->idx, __ATOMIC_ACQUIRE);
		while (next != end)
			serve(ring.avail->ring[next++ % ring.num]);
		__atomic_store_n(&ring.used->idx, used, __ATOMIC_RELEASE);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (vring_need_event(__atomic_load_n(&vring_used_event(&ring), __ATOMIC_RELAXED),
				     used, signalled) &&
		    write(call, &one, sizeof(one)) != sizeof(one))
			return 1;
		signalled = used;
	}
}

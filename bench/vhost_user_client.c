/* SPDX-License-Identifier: MIT */
/*
 * The driver's side of one virtqueue of a vhost-user-blk device, as fast as it can be: 4 KiB
 * requests at random places, so many in flight at a time.  bench/vhost_user.py has set the session
 * up, and passes the guest's memory and the eventfds on.
 *
 * Each block of the image begins with its own number: what is read is checked, and what is written
 * is that.  Prints the requests a second.
 */
#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define WARM_UP 0.01	/* seconds that are not measured */

struct slot {
	struct virtio_blk_outhdr header;
	uint8_t status;
};

struct client {
	char *memory;
	struct vring ring;
	int kick, call;
	bool wait, write;
	uint64_t blocks, random;
	uint32_t slots, data;	/* where they are in memory */
	uint64_t *expected;	/* the block of each slot's request */
	uint16_t available, kicked, used;
};

static void die(const char *what)
{
	fprintf(stderr, "client: %s\n", what);
	exit(1);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* xorshift64*, by Marsaglia and Vigna: which block is next need not be hard to guess. */
static uint64_t next_random(struct client *client)
{
	client->random ^= client->random >> 12;
	client->random ^= client->random << 25;
	client->random ^= client->random >> 27;
	return client->random * 2685821657736338717ull;
}

static struct slot *slot_of(struct client *client, uint32_t index)
{
	return (struct slot *)(client->memory + client->slots) + index;
}

static uint64_t *data_of(struct client *client, uint32_t index)
{
	return (uint64_t *)(client->memory + client->data + (size_t)index * BLOCK);
}

/* Three descriptors a slot, which stay as they are: header, data, status. */
static void place(struct client *client, uint32_t index)
{
	struct vring_desc *chain = &client->ring.desc[3 * index];
	uint64_t slot = client->slots + index * sizeof(struct slot);

	chain[0] = (struct vring_desc){
		.addr = slot, .len = sizeof(struct virtio_blk_outhdr),
		.flags = VRING_DESC_F_NEXT, .next = 3 * index + 1,
	};
	chain[1] = (struct vring_desc){
		.addr = client->data + (uint64_t)index * BLOCK, .len = BLOCK,
		.flags = VRING_DESC_F_NEXT | (client->write ? 0 : VRING_DESC_F_WRITE),
		.next = 3 * index + 2,
	};
	chain[2] = (struct vring_desc){
		.addr = slot + offsetof(struct slot, status), .len = 1,
		.flags = VRING_DESC_F_WRITE,
	};
}

/* Makes a request available; publish() shows it. */
static void submit(struct client *client, uint32_t index)
{
	struct slot *slot = slot_of(client, index);
	uint64_t block = next_random(client) % client->blocks;

	slot->header.type = client->write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
	slot->header.ioprio = 0;
	slot->header.sector = block * (BLOCK / 512);
	slot->status = 0xff;
	*data_of(client, index) = client->write ? block : ~block;
	client->expected[index] = block;
	client->ring.avail->ring[client->available++ % client->ring.num] = 3 * index;
}

static void publish(struct client *client)
{
	const uint64_t one = 1;

	__atomic_store_n(&client->ring.avail->idx, client->available, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (vring_need_event(__atomic_load_n(&vring_avail_event(&client->ring), __ATOMIC_RELAXED),
			     client->available, client->kicked) &&
	    write(client->kick, &one, sizeof(one)) != sizeof(one))
		die("the kick cannot be written");
	client->kicked = client->available;
}

static uint16_t used_idx(struct client *client)
{
	return __atomic_load_n(&client->ring.used->idx, __ATOMIC_ACQUIRE);
}

/* Returns when there is something in the used ring. */
static void await(struct client *client)
{
	struct pollfd interrupt = { .fd = client->call, .events = POLLIN };
	uint64_t count;

	if (!client->wait) {
		while (used_idx(client) == client->used)
			__builtin_ia32_pause();
		return;
	}
	while (used_idx(client) == client->used) {
		__atomic_store_n(&vring_used_event(&client->ring), client->used, __ATOMIC_RELAXED);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (used_idx(client) != client->used)
			return;
		/* A backend may have made the file one that does not wait. */
		if (read(client->call, &count, sizeof(count)) < 0 &&
		    (errno != EAGAIN || poll(&interrupt, 1, -1) < 0))
			die("the interrupt cannot be read");
	}
}

/* Takes what was used, checks it, and returns how many; makes as many available again. */
static uint32_t complete(struct client *client, bool again)
{
	uint16_t end = used_idx(client);
	uint32_t count = 0;

	for (; client->used != end; client->used++, count++) {
		uint32_t head = client->ring.used->ring[client->used % client->ring.num].id;
		uint32_t index = head / 3;

		if (slot_of(client, index)->status != VIRTIO_BLK_S_OK)
			die("a request failed");
		if (*data_of(client, index) != client->expected[index])
			die("a block was read that is another");
		if (again)
			submit(client, index);
	}
	/* Who polls wants no interrupt: the event stays behind. */
	if (!client->wait)
		vring_used_event(&client->ring) = client->used - 1;
	return count;
}

static double measure(struct client *client, uint32_t depth, double seconds)
{
	double start, end, begin = now();
	uint64_t done = 0;

	/* Another client may have had the ring before; it has left nothing in flight. */
	client->available = client->kicked = client->used = client->ring.avail->idx;
	vring_used_event(&client->ring) = client->wait ? client->used : client->used - 1;
	for (uint32_t index = 0; index < depth; index++) {
		place(client, index);
		submit(client, index);
	}
	publish(client);
	start = end = 0;
	while (end == 0 || end - start < seconds) {
		await(client);
		done += complete(client, true);
		publish(client);
		end = now();
		if (start == 0 && end - begin > WARM_UP) {
			start = end;
			done = 0;
		} else if (start == 0) {
			end = 0;
		}
	}
	for (uint32_t left = depth; left > 0; left -= complete(client, false))
		await(client);
	return done / (end - start);
}

int main(int argc, char **argv)
{
	struct client client = { .random = 0x9e3779b97f4a7c15 };
	uint64_t numbers[15];
	size_t size;

	if (argc != 16)
		die("fifteen numbers are expected");
	for (int i = 0; i < 15; i++)
		numbers[i] = strtoull(argv[i + 1], NULL, 0);
	size = numbers[1];
	client.memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, numbers[0], 0);
	if (client.memory == MAP_FAILED)
		die(strerror(errno));
	client.kick = numbers[2];
	client.call = numbers[3];
	client.ring.num = numbers[4];
	client.ring.desc = (void *)(client.memory + numbers[5]);
	client.ring.avail = (void *)(client.memory + numbers[6]);
	client.ring.used = (void *)(client.memory + numbers[7]);
	client.slots = numbers[8];
	client.data = numbers[9];
	client.blocks = numbers[10];
	client.wait = numbers[12];
	client.write = numbers[13];
	client.expected = calloc(client.ring.num, sizeof(*client.expected));
	if (!client.expected)
		die("no memory");
	printf("%.0f\n", measure(&client, numbers[11], numbers[14] / 1e3));
	return 0;
}

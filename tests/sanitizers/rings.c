/* SPDX-License-Identifier: MIT */
/*
 * A libFuzzer target: what drivers write to rings, against the C that works them.
 *
 * An input is a program of the driver's: it writes descriptors, indices and requests, and says when the
 * device has its turn.  Guest memory is three blocks of the heap, so that AddressSanitizer sees each
 * access beside them.  After each turn the books are checked: a chain is given back once, and no slot
 * is lost.
 *
 * Nothing here is threaded: the worker is called in place, over an engine that does its jobs when the
 * input says so.
 */
#include "../../virtiopy/_native/worker.c"

#include <sys/socket.h>

#define LARGEST 64	/* entries of the queue */
#define REGIONS 3
#define DISK_SECTORS 128

#define DESC_AT 0
#define AVAIL_AT 4096
#define USED_AT (4096 + 2048)

static const struct {
	uint64_t guest, size;
} layout[REGIONS] = { { 0, 8192 }, { 8192, 8192 }, { 32768, 12288 } };

#define CHECK(what) do { if (!(what)) __builtin_trap(); } while (0)

/* What is left of the input. */
struct input {
	const uint8_t *data;
	size_t left;
};

static uint64_t take_number(struct input *input, size_t bytes)
{
	uint64_t number = 0;

	if (bytes > input->left)
		bytes = input->left;
	memcpy(&number, input->data, bytes);
	input->data += bytes;
	input->left -= bytes;
	return number;
}

/* An engine whose jobs are done when the input says so. */

static struct vp_job jobs[DEPTH];
static uint32_t job_count;

static int submit_job(struct vp_engine *engine, const struct vp_job *job)
{
	(void)engine;
	/* Few, so that it is full now and then. */
	if (job_count == 8)
		return -EAGAIN;
	jobs[job_count++] = *job;
	return 0;
}

static int watch_nothing(struct vp_engine *engine, int fd, uint64_t tag)
{
	(void)engine, (void)fd, (void)tag;
	return 0;
}

static void unwatch_nothing(struct vp_engine *engine, int fd, uint64_t tag)
{
	(void)engine, (void)fd, (void)tag;
}

static const struct vp_engine_kind engine_kind = {
	.name = "fuzzer", .watch = watch_nothing, .unwatch = unwatch_nothing, .submit = submit_job,
};

static struct vp_engine engine = { .kind = &engine_kind, .depth = DEPTH };

struct vp_engine *vp_uring_new(uint32_t depth)
{
	(void)depth;
	return &engine;
}

struct vp_engine *vp_pool_new(uint32_t depth)
{
	return vp_uring_new(depth);
}

void vp_engine_free(struct vp_engine *which)
{
	(void)which;
}

/* The device */

struct device {
	struct vp_memory *memory;
	struct vp_virtq queue;
	struct vp_ring *ring;
	struct vp_disk disk;
	struct vp_port *port;	/* of a network device: else NULL */
	struct vhost_user_queue_region *inflight;
	uint8_t *log;
	uint32_t log_too_small;
	bool given[LARGEST];	/* heads that the device has */
};

static struct vp_worker worker = { .engine = &engine, .wake = -1, .attention = -1 };
static int sink = -1, image = -1;

/* A link of frames: the device's end, and the fuzzer's. */
static int link_ends[2];
static struct vp_port port;
static struct vp_filter filter = { .mac = { 2 }, .vlans = { 0x80 } };

/* Kept from input to input, as the kernel takes its time to make one; fd -1 while the port has it. */
static struct vp_burst burst = { .uring = { .fd = -1 } };

static void swap_burst(void)
{
	struct vp_burst other = port.burst;

	port.burst = burst;
	burst = other;
}

static void open_files(void)
{
	uint64_t count;

	if (sink < 0) {
		sink = eventfd(0, EFD_NONBLOCK);
		image = syscall(SYS_memfd_create, "image", 0);
		CHECK(ftruncate(image, DISK_SECTORS * 512) == 0);
		CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, link_ends) == 0);
		worker.wake = worker.attention = sink;
	}
	if (read(sink, &count, sizeof(count)) < 0)
		CHECK(errno == EAGAIN);
}

static void setup_accounts(struct device *device, uint32_t settings)
{
	if (settings & 8) {
		device->inflight = calloc(1, sizeof(*device->inflight) +
					  device->queue.size * sizeof(device->inflight->desc[0]));
		device->queue.inflight = device->inflight;
	}
	if (settings & 16) {
		/* Too small for the last region. */
		device->log = calloc(1, 1);
		device->queue.dirty = (struct vp_dirty){
			.log = device->log, .pages = 8, .used = settings & 32 ? UINT64_MAX - 3 : USED_AT,
			.logs_used = true, .eventfd = sink, .too_small = &device->log_too_small,
		};
	}
}

/* Reads and writes of a sector, in three buffers each: what an input begins with, and changes. */
static void place_requests(struct device *device)
{
	char *headers = device->memory->regions[1].host;

	for (uint32_t i = 0; 3 * i + 2 < device->queue.size; i++) {
		struct virtio_blk_outhdr header = { .type = i % 2, .sector = i };
		uint16_t data_flags = VRING_DESC_F_NEXT | (i % 2 ? 0 : VRING_DESC_F_WRITE);

		memcpy(headers + 16 * i, &header, sizeof(header));
		device->queue.desc[3 * i] = (struct vring_desc){
			layout[1].guest + 16 * i, 16, VRING_DESC_F_NEXT, 3 * i + 1,
		};
		device->queue.desc[3 * i + 1] = (struct vring_desc){
			layout[2].guest + 512 * i, 512, data_flags, 3 * i + 2,
		};
		device->queue.desc[3 * i + 2] = (struct vring_desc){
			layout[1].guest + 4096 + i, 1, VRING_DESC_F_WRITE, 0,
		};
	}
}

/* Takes what was sent, and what was not received. */
static void drain_link(void)
{
	static char frame[1 << 17];

	for (int end = 0; end < 2; end++)
		while (read(link_ends[end], frame, sizeof(frame)) >= 0)
			continue;
}

/* Makes the ring one of frames, which are subject to whatever the input says. */
static void setup_net(struct device *device, struct input *input, bool is_transmit)
{
	uint32_t rules = take_number(input, 2);

	drain_link();
	filter.by_address = rules & 1;
	filter.by_vlan = rules & 2;
	filter.modes = rules >> 2 & 63;
	memset(&port, 0, offsetof(struct vp_port, iov));
	port.fd = link_ends[0];
	port.filter = &filter;
	port.mergeable = rules & 0x100;
	port.rx_checksum = port.tx_checksum = rules & 0x200;
	port.has_mtu = rules & 0x400;
	port.mtu = 68;
	port.rx_gso = port.tx_gso = rules & 0x800 ? 15 : 0;
	port.enough = !port.mergeable ? 12 : port.rx_gso ? 12 + VP_LONGEST_FRAME : 12 + 68 + 18;
	port.last = rules & 0x1000 ? 4096 : 0;
	device->port = &port;
	vp_ring_serve_net(device->ring, &port, is_transmit);
	if (is_transmit && rules & 0x2000) {
		if (burst.uring.fd < 0)
			vp_burst_open(&burst, port.fd);
		swap_burst();
	}
}

static void setup(struct device *device, struct input *input)
{
	uint32_t settings = take_number(input, 1), sized = take_number(input, 1);
	uint32_t size = 1 << (sized & 15) % 7;

	memset(device, 0, sizeof(*device));
	device->memory = malloc(sizeof(*device->memory) + REGIONS * sizeof(struct vp_region));
	device->memory->count = REGIONS;
	for (int i = 0; i < REGIONS; i++)
		device->memory->regions[i] = (struct vp_region){
			layout[i].guest, layout[i].size, calloc(1, layout[i].size),
		};
	device->queue = (struct vp_virtq){
		.memory = device->memory,
		.desc = (void *)(device->memory->regions[0].host + DESC_AT),
		.avail = (void *)(device->memory->regions[0].host + AVAIL_AT),
		.used = (void *)(device->memory->regions[0].host + USED_AT),
		.size = size,
		.longest = size,
		.event_idx = settings & 1,
		.indirect = settings & 2,
	};
	setup_accounts(device, settings);
	place_requests(device);
	device->disk = (struct vp_disk){
		.fd = image, .alignment = settings & 64 ? 512 : 1, .in_memory = 1,
		.readonly = !!(settings & 4), .writeback = !!(settings & 128), .sectors = DISK_SECTORS,
	};
	device->ring = vp_ring_new(&device->queue, sink, sink);
	CHECK(device->ring);
	if (sized & 0x40)
		setup_net(device, input, sized & 0x80);
	else
		vp_ring_serve_blk(device->ring, &device->disk);
	device->ring->worker = &worker;
	begin_ring(&worker, device->ring);
	job_count = 0;
}

static void discard(struct device *device)
{
	vp_ring_free(device->ring);
	free(device->inflight);
	free(device->log);
	for (int i = 0; i < REGIONS; i++)
		free(device->memory->regions[i].host);
	free(device->memory);
}

static void check_books(const struct device *device)
{
	const struct vp_ring *ring = device->ring;
	uint32_t up = ring->up.tail - ring->up.head, down = ring->down.tail - ring->down.head;
	uint32_t with_python = 0;

	for (int i = 0; i < LARGEST; i++)
		with_python += device->given[i];
	if (device->port)
		with_python += device->port->ready_count;
	CHECK(ring->jobs == job_count);
	CHECK(device->queue.in_flight == ring->jobs + up + down + with_python);
	CHECK(ring->free_count == ring->slot_count - device->queue.in_flight);
	CHECK(device->queue.in_flight <= device->queue.size);
	CHECK(device->queue.unpublished_count == 0);
}

/* The driver */

static char *host(struct device *device, uint64_t guest, uint64_t *length)
{
	uint32_t hint = 0;
	const struct vp_region *region = vp_region_of(device->memory, &hint, guest);

	if (!region)
		return NULL;
	if (*length > region->size - (guest - region->guest))
		*length = region->size - (guest - region->guest);
	return region->host + (guest - region->guest);
}

/* Any address, or more often one of the 2^16 that there may be memory at. */
static uint64_t take_address(struct input *input)
{
	uint8_t kind = take_number(input, 1);

	if (kind & 1)
		return take_number(input, 8);
	return take_number(input, 2);
}

static void write_descriptor(struct device *device, struct input *input)
{
	uint64_t room = sizeof(struct vring_desc);
	bool indirect = take_number(input, 1) & 1;
	uint64_t at = indirect ? take_number(input, 2)
			       : DESC_AT + take_number(input, 1) % device->queue.size * room;
	struct vring_desc descriptor = { .addr = take_address(input) };
	char *to = host(device, at, &room);

	descriptor.len = take_number(input, 1) & 1 ? take_number(input, 4) : take_number(input, 1);
	descriptor.flags = take_number(input, 1);
	descriptor.next = take_number(input, 1);
	if (to)
		memcpy(to, &descriptor, room);
}

static void write_request(struct device *device, struct input *input)
{
	struct virtio_blk_outhdr header = { .type = take_number(input, 1) };
	uint64_t room = sizeof(header);
	char *to = host(device, take_number(input, 2), &room);

	header.sector = take_number(input, take_number(input, 1) & 1 ? 8 : 1);
	if (to)
		memcpy(to, &header, room);
}

static void write_bytes(struct device *device, struct input *input)
{
	uint64_t at = take_number(input, 2), length = take_number(input, 1) % 64;
	char *to;

	if (length > input->left)
		length = input->left;
	to = host(device, at, &length);
	if (!to)
		return;
	memcpy(to, input->data, length);
	input->data += length;
	input->left -= length;
}

static void offer(struct device *device, struct input *input)
{
	struct vring_avail *avail = device->queue.avail;

	avail->ring[avail->idx % device->queue.size] = take_number(input, 1);
	avail->idx++;
}

/* A frame comes, behind a header of the input's. */
static void inject_frame(struct device *device, struct input *input)
{
	static uint8_t frame[12 + VP_LONGEST_FRAME];
	uint64_t length = take_number(input, take_number(input, 1) & 1 ? 2 : 1) % sizeof(frame), count;

	if (!device->port)
		return;
	memset(frame, 0, length);
	count = take_number(input, 1) % 40;
	if (count > input->left)
		count = input->left;
	memcpy(frame, input->data, count < length ? count : length);
	input->data += count;
	input->left -= count;
	if (length > 0 && write(link_ends[1], frame, length) < 0)
		CHECK(errno == EAGAIN);
	device->port->readable = true;
}

/* The device's turns, and Python's */

static void serve_ring(struct device *device)
{
	is_ready(device->ring);
	serve(device->ring);
	if (device->port && device->ring->kind->ready && device->port->ready_count > 0)
		drain_link();
}

static void finish_job(struct input *input)
{
	struct vp_job job;
	struct vp_event event = { 0 };
	uint64_t index = take_number(input, 1), length = 0;

	if (job_count == 0)
		return;
	index %= job_count;
	job = jobs[index];
	jobs[index] = jobs[--job_count];
	for (uint32_t i = 0; i < job.count; i++)
		length += job.iov[i].iov_len;
	/* All of it, some, or a failure; what is read is written to memory as the kernel would. */
	event.tag = job.tag;
	event.result = take_number(input, 1) & 1 ? (int32_t)length : (int32_t)take_number(input, 1) - 9;
	if (job.operation == VP_READ)
		for (uint32_t i = 0; i < job.count; i++)
			memset(job.iov[i].iov_base, 0x5a, job.iov[i].iov_len);
	take_event(&worker, &event);
	vp_ring_interrupt(((struct vp_slot *)(uintptr_t)(job.tag & ~TAG_MASK))->ring);
}

/* Python looks at what was handed up, writes to it, and gives it back. */
static void python(struct device *device, bool finish)
{
	struct vp_fault fault;
	int index;

	while (vp_ring_next_reject(device->ring, &fault))
		CHECK(fault.code > VP_FAULT_HEAD);
	while ((index = vp_ring_take(device->ring)) >= 0) {
		struct vp_slot *slot = vp_ring_slot_at(device->ring, index);

		CHECK(!device->given[slot->chain.head]);
		if (!slot->is_head_only)
			for (uint32_t i = 0; i < slot->chain.writable; i++)
				memset(slot->chain.iov[slot->chain.readable + i].iov_base, 0,
				       slot->chain.iov[slot->chain.readable + i].iov_len);
		if (finish)
			vp_ring_finish(device->ring, index, 1);
		else
			vp_ring_give(device->ring, index, 1);
	}
}

/* The worker leaves the ring; Python has the queue, and takes what there is in batches. */
static void leave(struct device *device, struct input *input)
{
	static struct vp_chain chains[8];
	static struct iovec iov[64];
	static struct vp_fault rejects[4];
	static uint16_t heads[8];
	struct vp_batch batch = {
		.chains = chains, .iov = iov, .rejects = rejects, .chains_room = 8, .iov_room = 64,
		.rejects_room = 4, .limit = 8, .budget = 100,
	};
	struct vp_chain chain;
	enum vp_pop result;

	while (job_count > 0)
		finish_job(input);
	if (device->port && device->port->burst.uring.fd >= 0)
		swap_burst();
	end_ring(&worker, 0);
	python(device, true);
	vp_virtq_publish(&device->queue);
	check_books(device);
	CHECK(device->queue.in_flight == 0);
	if (device->ring->broken)
		return;
	result = vp_virtq_peek(&device->queue, &chain, iov, 64);
	CHECK(result == vp_virtq_peek(&device->queue, &chain, iov, 64));
	vp_virtq_pop_many(&device->queue, &batch);
	CHECK(device->queue.in_flight == batch.count);
	for (uint32_t i = 0; i < batch.count; i++)
		heads[i] = chains[batch.count - 1 - i].head;
	if (device->queue.since_rejected >= batch.count)
		vp_virtq_untake(&device->queue, heads, batch.count);
	else
		for (uint32_t i = 0; i < batch.count; i++)
			vp_virtq_put(&device->queue, &chains[i], 0);
	vp_virtq_publish(&device->queue);
	CHECK(device->queue.in_flight == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, size };
	struct device device;

	open_files();
	setup(&device, &input);
	while (input.left > 0) {
		switch (take_number(&input, 1) % 10) {
		case 0:
		case 1:
			write_descriptor(&device, &input);
			break;
		case 2:
			write_request(&device, &input);
			break;
		case 3:
			write_bytes(&device, &input);
			break;
		case 4:
			offer(&device, &input);
			break;
		case 5:
			serve_ring(&device);
			break;
		case 6:
			finish_job(&input);
			break;
		case 7:
			python(&device, false);
			break;
		case 8:
			if (!device.ring->broken && vp_virtq_enable_kicks(&device.queue))
				vp_virtq_disable_kicks(&device.queue);
			break;
		case 9:
			inject_frame(&device, &input);
			break;
		}
		check_books(&device);
	}
	leave(&device, &input);
	discard(&device);
	return 0;
}

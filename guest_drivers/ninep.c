// SPDX-License-Identifier: MIT
/*
 * Exercises every 9P transport device found: messages to its server, and messages that are none.
 *
 * Options:
 *	ninep.requests=N	nothing but N requests for the attributes of the root, timed
 *	ninep.depth=N		so many at a time
 */
#include "cpu.h"
#include "virtio_test.h"
#include "workload.h"

#define VIRTIO_ID_9P		9
#define VIRTIO_9P_F_MOUNT_TAG	0

#define REQUESTQ		0
#define QUEUE_SIZE		(2 * DEPTH_MAX)
#define ROOM			64
#define HEADER			7	/* size[4] type[1] tag[2] */
#define ERROR_SIZE		11	/* and ecode[4] */
#define TVERSION		100
#define RVERSION		101
#define RLERROR			7
#define NOTAG			0xffff
#define NOFID			0xffffffff
#define TATTACH			104
#define ATTACH_SIZE		(HEADER + 4 + 4 + 2 + 2 + 4)
#define ATTACHED_SIZE		(HEADER + 13)	/* qid[13] */
#define TGETATTR		24
#define GETATTR_SIZE		(HEADER + 4 + 8)	/* fid[4] request_mask[8] */
#define GETATTR_BASIC		0x7ff
#define ATTRIBUTES_SIZE		160
#define ROOT_FID		1
#define DEPTH_MAX		64u

const char *const guest_options[] = { "ninep.requests", "ninep.depth", NULL };

static struct virtq queue;
static uint8_t request[ROOM], answer[ROOM];

static void put32(uint8_t *to, uint32_t value)
{
	for (unsigned int i = 0; i < 4; i++)
		to[i] = value >> (8 * i);
}

static uint32_t get32(const uint8_t *from)
{
	return from[0] | from[1] << 8 | from[2] << 16 | (uint32_t)from[3] << 24;
}

static void put_header(uint8_t *to, uint32_t size, uint8_t type, uint16_t tag)
{
	put32(to, size);
	to[4] = type;
	to[5] = tag & 0xff;
	to[6] = tag >> 8;
}

static uint32_t make_version(void)
{
	static const char version[] = "9P2000.L";
	const uint32_t length = sizeof(version) - 1, size = HEADER + 4 + 2 + length;

	put_header(request, size, TVERSION, NOTAG);
	put32(request + HEADER, 8192);
	request[HEADER + 4] = length;
	request[HEADER + 5] = 0;
	for (uint32_t i = 0; i < length; i++)
		request[HEADER + 6 + i] = version[i];
	return size;
}

/* Send `size` bytes, with `room` for the answer; returns how many the device says it wrote. */
static uint32_t ask(struct virtio_test *t, uint32_t size, uint32_t room)
{
	const struct virtq_element elements[] = { { request, size }, { answer, room } };
	uint32_t len;

	memset(answer, 0xa5, sizeof(answer));
	if (!virtq_add(&queue, elements, 1, room ? 1 : 0, VIRTQ_DIRECT, request))
		tap_bail_out("%s: no room for a buffer in an idle queue", t->name);
	virtq_kick(&queue);
	if (!virtq_sleep(&queue) || virtq_get_used(&queue, &len) != request)
		tap_bail_out("%s: the device broke", t->name);
	return len;
}

static bool agrees(struct virtio_test *t)
{
	const uint32_t size = make_version(), len = ask(t, size, ROOM);

	return len == size && get32(answer) == size && answer[4] == RVERSION
	       && memory_equal(answer + HEADER + 4, request + HEADER + 4, 10);
}

static bool refuses(struct virtio_test *t, uint32_t size)
{
	return ask(t, size, ROOM) == ERROR_SIZE && get32(answer) == ERROR_SIZE
	       && answer[4] == RLERROR && memory_is(answer + ERROR_SIZE, 0xa5, ROOM - ERROR_SIZE);
}

static void test_messages(struct virtio_test *t)
{
	uint32_t size;

	CHECK(t, agrees(t), "the server agrees to 9P2000.L");
	CHECK(t, refuses(t, HEADER - 1), "a message without a whole header is refused");
	size = make_version();
	put32(request, size + 1);
	CHECK(t, refuses(t, size), "a message shorter than it says is refused");
	size = make_version();
	put32(request, HEADER - 1);
	CHECK(t, refuses(t, size), "a message that says it has no header is refused");
	size = make_version();
	request[4] = RVERSION;
	CHECK(t, refuses(t, size), "an answer in place of a request is refused");
	CHECK_IS(t, ask(t, make_version(), 0), 0u, "a request without room comes back unanswered");
	CHECK_IS(t, ask(t, make_version(), ERROR_SIZE), (uint32_t)ERROR_SIZE,
		 "an answer larger than its room is an error");
	CHECK(t, agrees(t), "the server is there after all that");
}

static void test_config(struct virtio_test *t)
{
	const uint16_t length = virtio_config_read16(t->device, 0);
	bool printable = length > 0;

	for (uint16_t i = 0; i < length; i++)
		printable &= virtio_config_read8(t->device, 2 + i) != 0;
	CHECK(t, printable, "the mount tag is as long as it says");
}

/* ----- requests to be counted: attributes of the root ----- */

static struct message {
	uint8_t request[GETATTR_SIZE], answer[ATTRIBUTES_SIZE];
} messages[DEPTH_MAX];

static bool attaches(struct virtio_test *t)
{
	/* fid[4] afid[4] uname[s] aname[s] n_uname[4] */
	memset(request, 0, ROOM);
	put_header(request, ATTACH_SIZE, TATTACH, 0);
	put32(request + HEADER, ROOT_FID);
	put32(request + HEADER + 4, NOFID);
	return ask(t, ATTACH_SIZE, ROOM) == ATTACHED_SIZE && answer[4] == TATTACH + 1;
}

static bool submit(void *context, unsigned int slot)
{
	struct message *message = &messages[slot];
	const struct virtq_element elements[] = {
		{ message->request, GETATTR_SIZE }, { message->answer, ATTRIBUTES_SIZE },
	};

	(void)context;
	put_header(message->request, GETATTR_SIZE, TGETATTR, (uint16_t)slot);
	put32(message->request + HEADER, ROOT_FID);
	put32(message->request + HEADER + 4, GETATTR_BASIC);
	return virtq_add(&queue, elements, 1, 1, VIRTQ_DIRECT, message);
}

static bool check(void *context, void *token, uint32_t len)
{
	const struct message *message = token;

	(void)context;
	return len == ATTRIBUTES_SIZE && message->answer[4] == TGETATTR + 1;
}

static void measure(struct virtio_test *t, uint64_t count)
{
	const struct workload workload = {
		.vq = &queue, .requests = count, .depth = workload_depth("ninep.depth", DEPTH_MAX),
		.submit = submit, .check = check,
	};

	if (!agrees(t) || !attaches(t))
		tap_bail_out("%s: the server does not let the folder be used", t->name);
	CHECK_IS(t, workload_run(&workload), count, "the attributes of the root were told");
}

/* ----- a device ----- */

static void open(struct virtio_test *t, uint64_t features)
{
	virtio_test_negotiate(t, features);
	virtq_setup_at_most(&queue, t->device, REQUESTQ, QUEUE_SIZE);
	virtio_driver_ok(t->device);
}

static void test_features(struct virtio_test *t, uint64_t features)
{
	open(t, features);
	test_config(t);
	test_messages(t);
}

static void test_device(struct virtio_test *t)
{
	static const uint64_t feature_sets[] = {
		BIT(VIRTIO_9P_F_MOUNT_TAG),
		BIT(VIRTIO_9P_F_MOUNT_TAG) | BIT(VIRTIO_F_EVENT_IDX),
	};
	const uint64_t count = cmdline_number("ninep.requests", 0);

	if (count) {
		open(t, t->device->offered
			& (BIT(VIRTIO_9P_F_MOUNT_TAG) | BIT(VIRTIO_F_EVENT_IDX)));
		measure(t, count);
		virtio_reset(t->device);
		return;
	}
	virtio_test_basics(t);
	virtio_test_feature_sets(t, feature_sets, ARRAY_SIZE(feature_sets), test_features);
}

int main(void)
{
	virtio_test_each(VIRTIO_ID_9P, "ninep", test_device);
	tap_done();
}

// SPDX-License-Identifier: MIT
/*
 * Exercises every file system device found: FUSE requests, and requests that are none.
 *
 * Options:
 *	fs.requests=N	nothing but N requests for the attributes of the root, timed
 *	fs.depth=N	so many at a time
 */
#include "cpu.h"
#include "virtio_test.h"
#include "workload.h"

#define VIRTIO_ID_FS		26

#define HIPRIO			0
#define REQUESTQ		1
#define QUEUE_SIZE		16
#define ROOM			512
#define TAG_SIZE		36

/* Numbers and layouts of the kernel's FUSE interface. */
#define FUSE_ROOT_ID		1
#define FUSE_LOOKUP		1
#define FUSE_FORGET		2
#define FUSE_GETATTR		3
#define FUSE_STATFS		17
#define FUSE_INIT		26
#define FUSE_DESTROY		38
#define FUSE_UNKNOWN		4000
#define FUSE_MAJOR		7
#define FUSE_MINOR		31

#define ENOENT			2
#define ENOSYS			38
#define EPROTO			71

#define S_IFMT			0170000
#define S_IFDIR			0040000

struct fuse_in {
	uint32_t len, opcode;
	uint64_t unique, nodeid;
	uint32_t uid, gid, pid, padding;
	uint8_t body[ROOM];
};

struct fuse_out {
	uint32_t len;
	int32_t error;
	uint64_t unique;
	uint8_t body[ROOM];
};

#define IN_HEADER		40
#define OUT_HEADER		16
/* fuse_attr_out: its attributes after 16 bytes, whose mode is after 60 more. */
#define GETATTR_IN_SIZE		16
#define ATTR_OUT_SIZE		104
#define ATTR_OUT_MODE		76
#define STATFS_OUT_SIZE		80

const char *const guest_options[] = { "fs.requests", "fs.depth", NULL };

static struct virtq hiprio, queue;
static struct fuse_in request;
static struct fuse_out answer;

/* Send `size` bytes of a body; returns how many the device says it wrote. */
static uint32_t ask(struct virtio_test *t, struct virtq *q, uint32_t opcode, uint32_t size)
{
	const struct virtq_element elements[] = {
		{ &request, IN_HEADER + size }, { &answer, sizeof(answer) },
	};
	uint32_t len;

	request.len = IN_HEADER + size;
	request.opcode = opcode;
	request.unique += 2;
	request.nodeid = FUSE_ROOT_ID;
	memset(&answer, 0xa5, sizeof(answer));
	if (!virtq_add(q, elements, 1, opcode == FUSE_FORGET ? 0 : 1, VIRTQ_DIRECT, &request))
		tap_bail_out("%s: no room for a buffer in an idle queue", t->name);
	virtq_kick(q);
	if (!virtq_sleep(q) || virtq_get_used(q, &len) != &request)
		tap_bail_out("%s: the device broke", t->name);
	return len;
}

static bool succeeds(struct virtio_test *t, uint32_t opcode, uint32_t size, uint32_t least)
{
	const uint32_t len = ask(t, &queue, opcode, size);

	return len == answer.len && len >= OUT_HEADER + least && answer.error == 0
	       && answer.unique == request.unique;
}

static bool fails(struct virtio_test *t, uint32_t opcode, uint32_t size, int32_t error)
{
	const uint32_t len = ask(t, &queue, opcode, size);

	return len == OUT_HEADER && answer.len == len && answer.error == -error
	       && answer.unique == request.unique;
}

/* A fuse_init_in: major, minor, max_readahead, flags. */
static uint32_t make_init(uint32_t major)
{
	const uint32_t words[4] = { major, FUSE_MINOR, 1 << 17, 0 };

	memcpy(request.body, words, sizeof(words));
	return sizeof(words);
}

static uint32_t make_name(const char *name)
{
	uint32_t length = 0;

	do
		request.body[length] = name[length];
	while (name[length++]);
	return length;
}

static uint32_t make_zeroes(uint32_t size)
{
	memset(request.body, 0, size);
	return size;
}

static uint32_t read32(uint32_t offset)
{
	uint32_t value;

	memcpy(&value, answer.body + offset, sizeof(value));
	return value;
}

static void test_messages(struct virtio_test *t)
{
	CHECK(t, fails(t, FUSE_INIT, make_init(FUSE_MAJOR - 1), EPROTO),
	      "a driver of an older FUSE is refused");
	CHECK(t, succeeds(t, FUSE_INIT, make_init(FUSE_MAJOR), 8) && read32(0) == FUSE_MAJOR,
	      "the server agrees to FUSE 7");
	CHECK(t, succeeds(t, FUSE_GETATTR, make_zeroes(GETATTR_IN_SIZE), ATTR_OUT_SIZE)
		 && (read32(ATTR_OUT_MODE) & S_IFMT) == S_IFDIR,
	      "the root is a folder");
	CHECK(t, succeeds(t, FUSE_STATFS, 0, STATFS_OUT_SIZE), "the file system has a size");
	CHECK(t, fails(t, FUSE_LOOKUP, make_name("a name that no file has"), ENOENT),
	      "a name that no file has is not found");
	CHECK(t, fails(t, FUSE_UNKNOWN, 0, ENOSYS), "an unknown request is refused");
	CHECK_IS(t, ask(t, &hiprio, FUSE_FORGET, make_zeroes(8)), 0u,
		 "the high priority queue takes a FORGET, which has no answer");
	CHECK(t, succeeds(t, FUSE_STATFS, 0, STATFS_OUT_SIZE),
	      "the server is there after all that");
	CHECK(t, succeeds(t, FUSE_DESTROY, 0, 0), "the session ends");
}

static void test_config(struct virtio_test *t)
{
	bool ended = false, padded = true;

	for (uint16_t i = 0; i < TAG_SIZE; i++) {
		const bool zero = virtio_config_read8(t->device, i) == 0;

		padded &= zero || !ended;
		ended |= zero;
	}
	CHECK(t, virtio_config_read8(t->device, 0) != 0 && padded,
	      "the tag is a name, and zeroes after it (5.11.4)");
	CHECK(t, virtio_config_read32(t->device, TAG_SIZE) >= 1,
	      "there is a request queue (5.11.4.2)");
}

/* ----- requests to be counted: attributes of the root ----- */

static struct fuse_in requests[WORKLOAD_DEPTH_MAX];
static struct fuse_out answers[WORKLOAD_DEPTH_MAX];

static bool submit(void *context, unsigned int slot)
{
	struct fuse_in *in = &requests[slot];
	const struct virtq_element elements[] = {
		{ in, IN_HEADER + GETATTR_IN_SIZE },
		{ &answers[slot], OUT_HEADER + ATTR_OUT_SIZE },
	};

	(void)context;
	request.unique += 2;
	in->len = IN_HEADER + GETATTR_IN_SIZE;
	in->opcode = FUSE_GETATTR;
	in->unique = request.unique;
	in->nodeid = FUSE_ROOT_ID;
	return virtq_add(&queue, elements, 1, 1, VIRTQ_DIRECT, in);
}

static bool check(void *context, void *token, uint32_t len)
{
	const struct fuse_in *in = token;
	const struct fuse_out *out = &answers[in - requests];

	(void)context;
	return len == OUT_HEADER + ATTR_OUT_SIZE && !out->error && out->unique == in->unique;
}

static void measure(struct virtio_test *t, uint64_t count)
{
	const struct workload workload = {
		.vq = &queue, .requests = count, .depth = workload_depth("fs.depth", WORKLOAD_DEPTH_MAX),
		.submit = submit, .check = check,
	};

	if (!succeeds(t, FUSE_INIT, make_init(FUSE_MAJOR), 8))
		tap_bail_out("%s: the server does not agree to FUSE 7", t->name);
	CHECK_IS(t, workload_run(&workload), count, "the attributes of the root were told");
}

/* ----- a device ----- */

static void open(struct virtio_test *t, uint64_t features)
{
	virtio_test_negotiate(t, features);
	virtq_setup_at_most(&hiprio, t->device, HIPRIO, QUEUE_SIZE);
	virtq_setup_at_most(&queue, t->device, REQUESTQ, 2 * WORKLOAD_DEPTH_MAX);
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
	static const uint64_t feature_sets[] = { 0, BIT(VIRTIO_F_EVENT_IDX) };
	const uint64_t count = cmdline_number("fs.requests", 0);

	if (count) {
		open(t, t->device->offered & BIT(VIRTIO_F_EVENT_IDX));
		measure(t, count);
		virtio_reset(t->device);
		return;
	}
	virtio_test_basics(t);
	virtio_test_feature_sets(t, feature_sets, ARRAY_SIZE(feature_sets), test_features);
}

int main(void)
{
	virtio_test_each(VIRTIO_ID_FS, "fs", test_device);
	tap_done();
}

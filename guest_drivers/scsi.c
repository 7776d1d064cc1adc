// SPDX-License-Identifier: MIT
/*
 * Exercises every SCSI host device found: its units, their commands, what is wrong with a request,
 * and task management.  Only blocks that were read before are written, with what was in them.
 */
#include "cpu.h"
#include "virtio_test.h"
#include "workload.h"

#define VIRTIO_ID_SCSI		8
#define VIRTIO_SCSI_F_HOTPLUG	1
#define VIRTIO_SCSI_F_CHANGE	2

#define CONTROLQ		0
#define EVENTQ			1
#define REQUESTQ		2
#define QUEUE_SIZE		128

/* struct virtio_scsi_config (5.6.4) */
#define CONFIG_NUM_QUEUES	0
#define CONFIG_SENSE_SIZE	20
#define CONFIG_CDB_SIZE		24

#define CDB_SIZE		32
#define SENSE_SIZE		96
#define ROOM			4096

enum { RESPONSE_OK, RESPONSE_OVERRUN, RESPONSE_BAD_TARGET = 3, RESPONSE_FAILURE = 9,
	RESPONSE_FUNCTION_REJECTED = 11, RESPONSE_INCORRECT_LUN = 12 };
enum { TMF_ABORT_TASK, TMF_CLEAR_ACA = 2, TMF_LOGICAL_UNIT_RESET = 5, TMF_QUERY_TASK };

#define GOOD			0x00
#define CHECK_CONDITION		0x02
#define UNIT_ATTENTION		0x06
#define ILLEGAL_REQUEST		0x05

#define TEST_UNIT_READY		0x00
#define INQUIRY			0x12
#define READ_CAPACITY_10	0x25
#define READ_10			0x28
#define WRITE_10		0x2a
#define REPORT_LUNS		0xa0
#define NO_COMMAND		0xff
#define DISK_TYPE		0x00

struct request {
	uint8_t lun[8];
	uint64_t id;
	uint8_t task_attr, prio, crn;
	uint8_t cdb[CDB_SIZE];
} __attribute__((packed));

struct answer {
	uint32_t sense_len, residual;
	uint16_t status_qualifier;
	uint8_t status, response;
	uint8_t sense[SENSE_SIZE];
} __attribute__((packed));

struct function {
	uint32_t type, subtype;
	uint8_t lun[8];
	uint64_t id;
} __attribute__((packed));

static struct virtq controlq, eventq, requestq;
static struct request request;
static struct answer answer;
static uint8_t data[ROOM], copy[ROOM];

static void address(uint8_t *lun, unsigned int target, unsigned int number)
{
	memset(lun, 0, 8);
	lun[0] = 1;
	lun[1] = target;
	lun[2] = 0x40 | number >> 8;
	lun[3] = number;
}

/* The CDB of all bytes but these 0. */
static void command(uint8_t opcode)
{
	memset(&request, 0, sizeof(request));
	address(request.lun, 0, 0);
	request.id = 7;
	request.cdb[0] = opcode;
}

static void be32(uint8_t *to, uint32_t value)
{
	for (unsigned int i = 0; i < 4; i++)
		to[i] = value >> (24 - 8 * i);
}

static uint32_t from_be32(const uint8_t *from)
{
	return (uint32_t)from[0] << 24 | from[1] << 16 | from[2] << 8 | from[3];
}

/* Add the request, with `out` bytes of data to write and room for `in` bytes, and wait for it. */
static uint32_t ask(struct virtio_test *t, uint32_t out, uint32_t in)
{
	struct virtq_element elements[4] = { { &request, sizeof(request) } };
	unsigned int readable = 1, writable = 1;
	uint32_t len;

	if (out)
		elements[readable++] = (struct virtq_element){ copy, out };
	elements[readable] = (struct virtq_element){ &answer, sizeof(answer) };
	if (in)
		elements[readable + writable++] = (struct virtq_element){ data, in };
	memset(&answer, 0xa5, sizeof(answer));
	memset(data, 0xa5, sizeof(data));
	if (!virtq_add(&requestq, elements, readable, writable, VIRTQ_DIRECT, &request))
		tap_bail_out("%s: no room for a request in an idle queue", t->name);
	virtq_kick(&requestq);
	if (!virtq_sleep(&requestq) || virtq_get_used(&requestq, &len) != &request)
		tap_bail_out("%s: the device broke", t->name);
	return len;
}

static bool is_good(void)
{
	return answer.response == RESPONSE_OK && answer.status == GOOD;
}

static bool has_sense(uint8_t key)
{
	return answer.response == RESPONSE_OK && answer.status == CHECK_CONDITION
	       && answer.sense_len >= 14 && (answer.sense[2] & 0xf) == key;
}

static uint8_t function(struct virtio_test *t, uint32_t subtype, const uint8_t lun[8])
{
	static struct function tmf;
	static uint8_t response;
	const struct virtq_element elements[] = { { &tmf, sizeof(tmf) }, { &response, 1 } };
	uint32_t len;

	tmf = (struct function){ .subtype = subtype, .id = 12345 };
	memcpy(tmf.lun, lun, sizeof(tmf.lun));
	response = 0xa5;
	if (!virtq_add(&controlq, elements, 1, 1, VIRTQ_DIRECT, &tmf))
		tap_bail_out("%s: no room in an idle control queue", t->name);
	virtq_kick(&controlq);
	if (!virtq_sleep(&controlq) || virtq_get_used(&controlq, &len) != &tmf)
		tap_bail_out("%s: the device broke", t->name);
	return response;
}

/* A unit tells that it is new, and then nothing any more. */
static bool becomes_ready(struct virtio_test *t)
{
	command(TEST_UNIT_READY);
	for (unsigned int i = 0; i < 8; i++) {
		ask(t, 0, 0);
		if (is_good())
			return true;
		if (!has_sense(UNIT_ATTENTION))
			return false;
	}
	return false;
}

/* scsi.requests=N: no tests, but N random reads of 4 KiB, scsi.depth=N at a time, by interrupt. */
const char *const guest_options[] = { "scsi.vhost", "scsi.requests", "scsi.depth", NULL };

/* scsi.vhost=1: skip what Linux's vhost-scsi is known to do differently. */
static bool vhost;

static void test_config(struct virtio_test *t)
{
	CHECK(t, virtio_config_read32(t->device, CONFIG_NUM_QUEUES) >= 1, "has a request queue");
	CHECK_IS(t, virtio_config_read32(t->device, CONFIG_SENSE_SIZE), (uint32_t)SENSE_SIZE,
		 "sense_size is 96 (5.6.4.2)");
	CHECK_IS(t, virtio_config_read32(t->device, CONFIG_CDB_SIZE), (uint32_t)CDB_SIZE,
		 "cdb_size is 32 (5.6.4.2)");
}

static void test_units(struct virtio_test *t)
{
	uint32_t len;

	command(REPORT_LUNS);
	be32(request.cdb + 6, ROOM);
	ask(t, 0, ROOM);
	CHECK(t, is_good() && from_be32(data) >= 8 && from_be32(data) % 8 == 0,
	      "the target lists its units");
	CHECK_IS(t, answer.residual, ROOM - 8 - from_be32(data), "what was not written is residual");

	command(INQUIRY);
	request.cdb[4] = 36;
	len = ask(t, 0, 36);
	CHECK(t, is_good() && data[4] >= 31, "a unit says what it is");
	if (vhost)
		SKIP(t, "vhost-scsi says 0", "the used length has answer and data");
	else
		CHECK_IS(t, len, (uint32_t)sizeof(answer) + 36,
			 "the used length has answer and data");
	address(request.lun, 0, 4711);
	ask(t, 0, 36);
	if (vhost)
		SKIP(t, "vhost-scsi has BAD_TARGET for it", "there is no unit where none is");
	else
		CHECK_IS(t, (uint32_t)data[0], 0x7fu, "there is no unit where none is");
	address(request.lun, 201, 0);
	ask(t, 0, 36);
	CHECK_IS(t, (uint32_t)answer.response, (uint32_t)RESPONSE_BAD_TARGET,
		 "a target that is not there is BAD_TARGET (5.6.6.1)");
}

static void test_refusals(struct virtio_test *t)
{
	const struct virtq_element cut[] = { { &request, 18 }, { &answer, sizeof(answer) } };
	uint32_t len;

	command(NO_COMMAND);
	ask(t, 0, 0);
	CHECK(t, has_sense(ILLEGAL_REQUEST), "a command that is none is an illegal request");
	if (vhost) {
		SKIP(t, "vhost-scsi takes the sizes that there are, and breaks the ring of a request "
		     "that is cut short", "buffers that do not fit the command are refused");
		return;
	}
	command(INQUIRY);
	request.cdb[4] = 36;
	ask(t, 0, 35);
	CHECK_IS(t, (uint32_t)answer.response, (uint32_t)RESPONSE_OVERRUN,
		 "an allocation length larger than the buffer is OVERRUN (5.6.6.1)");
	ask(t, 36, 0);
	CHECK_IS(t, (uint32_t)answer.response, (uint32_t)RESPONSE_OVERRUN,
		 "a buffer in the wrong direction is OVERRUN (5.6.6.1)");
	ask(t, 36, 36);
	CHECK_IS(t, (uint32_t)answer.response, (uint32_t)RESPONSE_FAILURE,
		 "data both ways is FAILURE without INOUT (5.6.6.1)");
	if (t->qemu) {
		SKIP(t, "QEMU breaks the device", "a request that is cut short is FAILURE");
		return;
	}
	memset(&answer, 0xa5, sizeof(answer));
	virtq_add(&requestq, cut, 1, 1, VIRTQ_DIRECT, &request);
	virtq_kick(&requestq);
	if (!virtq_sleep(&requestq) || virtq_get_used(&requestq, &len) != &request)
		tap_bail_out("%s: the device broke", t->name);
	CHECK_IS(t, (uint32_t)answer.response, (uint32_t)RESPONSE_FAILURE,
		 "a request that is cut short is FAILURE");
}

static void transfer(struct virtio_test *t, uint8_t opcode, uint32_t block, uint32_t size)
{
	command(opcode);
	be32(request.cdb + 2, block);
	request.cdb[8] = 1;
	ask(t, opcode == WRITE_10 ? size : 0, opcode == WRITE_10 ? 0 : size);
}

static void test_blocks(struct virtio_test *t)
{
	uint32_t last, size;

	command(INQUIRY);
	request.cdb[4] = 36;
	ask(t, 0, 36);
	if (data[0] != DISK_TYPE) {
		SKIP(t, "the first unit is no disk", "blocks are read and written");
		return;
	}
	command(READ_CAPACITY_10);
	ask(t, 0, 8);
	last = from_be32(data);
	size = from_be32(data + 4);
	CHECK(t, is_good() && size >= 512 && size <= ROOM && !(size & (size - 1)),
	      "a disk tells its capacity");
	transfer(t, READ_10, last, size);
	CHECK(t, is_good() && !answer.residual, "its last block is read");
	memcpy(copy, data, size);
	transfer(t, WRITE_10, last, size);
	CHECK(t, is_good() && !answer.residual, "and written");
	transfer(t, READ_10, last, size);
	CHECK(t, is_good() && memory_equal(data, copy, size), "and is what was written");
	transfer(t, READ_10, last + 1, size);
	CHECK(t, has_sense(ILLEGAL_REQUEST), "a block beyond the last is an illegal request");
	if (vhost)
		SKIP(t, "vhost-scsi may count none", "and all of it is residual (5.6.6.1)");
	else
		CHECK_EXCEPT_QEMU(t, answer.residual == size,
				  "counts no residual of a refused command",
				  "and all of it is residual (5.6.6.1)");
	CHECK(t, memory_is(data, 0xa5, size), "of which nothing is written");
}

static void test_functions(struct virtio_test *t)
{
	uint8_t lun[8];

	address(lun, 0, 0);
	CHECK_IS(t, (uint32_t)function(t, TMF_ABORT_TASK, lun), (uint32_t)RESPONSE_OK,
		 "a task that is none is aborted (5.6.6.2)");
	CHECK_IS(t, (uint32_t)function(t, TMF_QUERY_TASK, lun), (uint32_t)RESPONSE_OK,
		 "and is not there (5.6.6.2)");
	CHECK_IS(t, (uint32_t)function(t, TMF_CLEAR_ACA, lun),
		 (uint32_t)RESPONSE_FUNCTION_REJECTED, "a function that is not had is rejected");
	CHECK_IS(t, (uint32_t)function(t, TMF_LOGICAL_UNIT_RESET, lun), (uint32_t)RESPONSE_OK,
		 "a unit is reset (5.6.6.2)");
	command(TEST_UNIT_READY);
	ask(t, 0, 0);
	CHECK(t, has_sense(UNIT_ATTENTION), "and tells that it was");
	address(lun, 0, 4711);
	CHECK_IS(t, (uint32_t)function(t, TMF_LOGICAL_UNIT_RESET, lun),
		 (uint32_t)RESPONSE_INCORRECT_LUN, "a unit that is not there is INCORRECT_LUN");
	address(lun, 201, 0);
	CHECK_IS(t, (uint32_t)function(t, TMF_LOGICAL_UNIT_RESET, lun),
		 (uint32_t)RESPONSE_BAD_TARGET, "a target that is not there is BAD_TARGET");
}

static void set_up(struct virtio_test *t, uint64_t features)
{
	virtio_test_negotiate(t, features);
	virtq_setup_at_most(&controlq, t->device, CONTROLQ, QUEUE_SIZE);
	virtq_setup_at_most(&eventq, t->device, EVENTQ, QUEUE_SIZE);
	virtq_setup_at_most(&requestq, t->device, REQUESTQ, QUEUE_SIZE);
	virtio_driver_ok(t->device);
}

/* ----- scsi.requests ----- */

struct read {
	struct request request;
	struct answer answer;
	uint8_t data[ROOM];
};

struct reads {
	struct read *reads;	/* one for each in flight */
	uint64_t random;
	uint32_t size;		/* bytes of a block */
	uint32_t spots;		/* on the disk */
};

static bool submit(void *context, unsigned int slot)
{
	struct reads *r = context;
	struct read *read = &r->reads[slot];
	const struct virtq_element elements[] = {
		{ &read->request, sizeof(read->request) },
		{ &read->answer, sizeof(read->answer) },
		{ read->data, ROOM },
	};

	/* Marsaglia's xorshift: three shifts, and no state but the number. */
	r->random ^= r->random << 13;
	r->random ^= r->random >> 7;
	r->random ^= r->random << 17;
	command(READ_10);
	be32(request.cdb + 2, (uint32_t)(r->random % r->spots) * (ROOM / r->size));
	request.cdb[8] = ROOM / r->size;
	request.id = slot;
	read->request = request;
	read->answer.response = read->answer.status = 0xa5;
	return virtq_add(&requestq, elements, 1, 2, VIRTQ_DIRECT, read);
}

static bool check(void *context, void *token, uint32_t len)
{
	const struct read *read = token;

	(void)context;
	(void)len;	/* vhost-scsi says 0 */
	return read->answer.response == RESPONSE_OK && read->answer.status == GOOD;
}

static void measure(struct virtio_test *t, uint64_t count)
{
	struct reads reads = { .random = 1 };
	const struct workload workload = {
		.vq = &requestq,
		.requests = count,
		/* A request is three descriptors. */
		.depth = workload_depth("scsi.depth", QUEUE_SIZE / 3u),
		.context = &reads,
		.submit = submit,
		.check = check,
	};

	command(READ_CAPACITY_10);
	ask(t, 0, 8);
	reads.size = from_be32(data + 4);
	if (!is_good() || reads.size < 512 || reads.size > ROOM)
		tap_bail_out("%s: no disk tells its capacity", t->name);
	reads.spots = (uint32_t)(((uint64_t)from_be32(data) + 1) * reads.size / ROOM);
	if (!reads.spots)
		tap_bail_out("%s is smaller than one read", t->name);
	reads.reads = memory_alloc(workload.depth * sizeof(*reads.reads), sizeof(uint64_t));
	CHECK_IS(t, workload_run(&workload), count, "the blocks were read");
}

static void test_features(struct virtio_test *t, uint64_t features)
{
	set_up(t, features);
	test_config(t);
	CHECK(t, becomes_ready(t), "the first unit becomes ready");
	test_units(t);
	test_refusals(t);
	test_blocks(t);
	if (vhost)
		SKIP(t, "vhost-scsi has one function", "tasks are managed");
	else
		test_functions(t);
	CHECK(t, becomes_ready(t), "the unit is ready after all that");
}

static void test_device(struct virtio_test *t)
{
	static const uint64_t feature_sets[] = {
		0,
		BIT(VIRTIO_SCSI_F_HOTPLUG) | BIT(VIRTIO_SCSI_F_CHANGE) | BIT(VIRTIO_F_EVENT_IDX),
	};
	const uint64_t requests = cmdline_number("scsi.requests", 0);

	if (requests) {
		virtio_test_name(t, 0);
		set_up(t, t->device->offered & BIT(VIRTIO_F_EVENT_IDX));
		CHECK(t, becomes_ready(t), "the first unit becomes ready");
		measure(t, requests);
		return;
	}
	virtio_test_basics(t);
	virtio_test_feature_sets(t, feature_sets, ARRAY_SIZE(feature_sets), test_features);
}

int main(void)
{
	vhost = cmdline_number("scsi.vhost", 0);
	virtio_test_each(VIRTIO_ID_SCSI, "scsi", test_device);
	tap_done();
}

// SPDX-License-Identifier: MIT
/*
 * console.mode=flood: numbered lines of 64 bytes, as fast as the port takes them.  Line n is n as
 * eight hexadecimal digits, a space, 54 letters of the alphabet from letter n % 26 on, round and
 * round, and a newline.
 */
#include "console/test.h"

#define LINE_SIZE	64
#define LETTERS		26
#define LETTERS_A_LINE	54
#define DIGITS		8
#define CHUNK_LINES	16
#define CHUNK_SIZE	(CHUNK_LINES * LINE_SIZE)
#define CHUNKS		8	/* in flight at once */
#define DEFAULT_KIB	64

static struct virtio_console console;
static uint32_t next_line;

static const char *letters(void)
{
	static char all[LETTERS + LETTERS_A_LINE];

	if (!all[0])
		for (unsigned int i = 0; i < sizeof(all); i++)
			all[i] = (char)('a' + i % LETTERS);
	return all;
}

static void make_line(char *line, uint32_t number)
{
	static const char digits[] = "0123456789abcdef";

	memcpy(line + DIGITS + 1, letters() + number % LETTERS, LETTERS_A_LINE);
	line[DIGITS] = ' ';
	line[LINE_SIZE - 1] = '\n';
	for (unsigned int i = DIGITS; i--; number >>= 4)
		line[i] = digits[number & 0xf];
}

static void send_chunk(struct virtq *vq, char *chunk)
{
	const struct virtq_element element = { chunk, CHUNK_SIZE };

	for (unsigned int i = 0; i < CHUNK_LINES; i++)
		make_line(chunk + i * LINE_SIZE, next_line++);
	virtq_add(vq, &element, 1, 0, VIRTQ_DIRECT, chunk);
	virtq_kick(vq);
}

/* `lines` is a number of whole chunks. */
static bool flood(struct virtq *vq, uint32_t lines)
{
	char *chunk;
	uint32_t len;

	for (unsigned int i = 0; i < CHUNKS && next_line < lines; i++)
		send_chunk(vq, memory_alloc(CHUNK_SIZE, LINE_SIZE));
	for (;;) {
		while ((chunk = virtq_get_used(vq, &len)))
			if (next_line < lines)
				send_chunk(vq, chunk);
		if (vq->num_free == vq->size)
			return true;
		if (!virtq_sleep(vq))
			return false;
	}
}

void run_flood(struct virtio_test *t)
{
	const uint64_t number = cmdline_number("console.port", 0);
	const uint64_t kib = cmdline_number("console.kib", DEFAULT_KIB);

	console_open(&console, t->device, wanted_features(t));
	console_settle(&console);
	if (number >= console.port_count || !console.ports[number].exists)
		tap_bail_out("%s has no port %llu", t->name, (unsigned long long)number);
	tap_note("ready");
	CHECK(t, flood(&console.ports[number].tx, (uint32_t)(kib * 1024 / LINE_SIZE)),
	      "every line was sent");
	tap_note("flooded %u lines", next_line);
	virtio_reset(t->device);
	tap_done();
}

// SPDX-License-Identifier: MIT
/* The kernel command line. */
#include "runtime.h"

#define CMDLINE_SIZE	2048
#define CMDLINE_WORDS	128
#define NAME_SIZE	64	/* longer than any option; of a word that is longer, the begin */
#define OPTIONS_SIZE	512

#define DEVICE_WORD	"virtio_mmio.device"

static char text[CMDLINE_SIZE];
static const char *words[CMDLINE_WORDS];
static unsigned int word_count;

/* The value if the word is `name` or `name=value`, else NULL. */
static const char *word_value(const char *word, const char *name)
{
	while (*name && *word == *name) {
		word++;
		name++;
	}
	if (*name || (*word && *word != '='))
		return NULL;
	return *word ? word + 1 : word;
}

/* A guest without options of its own has no array. */
__attribute__((weak)) const char *const guest_options[] = { NULL };

static bool is_option(const char *name)
{
	for (const char *const *option = guest_options; *option; option++)
		if (string_equal(name, *option))
			return true;
	return string_equal(name, DEVICE_WORD);
}

static _Noreturn void refuse(const char *name)
{
	char options[OPTIONS_SIZE] = "";
	size_t length = 0;

	for (const char *const *option = guest_options; *option && length < sizeof(options); option++)
		length += snprintf(options + length, sizeof(options) - length, " %s", *option);
	if (!length)
		tap_bail_out("there is no option %s: this guest has none", name);
	tap_bail_out("there is no option %s: this guest has%s", name, options);
}

static void check_word(unsigned int number)
{
	char name[NAME_SIZE];
	size_t size = 0;

	while (size < NAME_SIZE - 1 && words[number][size] && words[number][size] != '=') {
		name[size] = words[number][size];
		size++;
	}
	name[size] = '\0';
	if (!is_option(name))
		refuse(name);
	if (string_equal(name, DEVICE_WORD))
		return;
	for (unsigned int other = number + 1; other < word_count; other++)
		if (word_value(words[other], name))
			tap_bail_out("the option %s is given twice", name);
}

void cmdline_init(const char *line)
{
	bool in_word = false;

	for (size_t i = 0; line[i]; i++) {
		if (i == CMDLINE_SIZE - 1)
			tap_bail_out("the command line is longer than %u bytes", CMDLINE_SIZE - 1);
		if (line[i] == ' ') {
			in_word = false;
			continue;		/* text[i] is 0 and ends the word */
		}
		text[i] = line[i];
		if (in_word)
			continue;
		if (word_count == CMDLINE_WORDS)
			tap_bail_out("the command line has more than %u words", CMDLINE_WORDS);
		words[word_count++] = &text[i];
		in_word = true;
	}
	/* A mistyped option must not have the guest do something else than its user wants. */
	for (unsigned int i = 0; i < word_count; i++)
		check_word(i);
}

const char *cmdline_next(const char *name, unsigned int *position)
{
	if (!is_option(name))
		tap_bail_out("guest_options does not name %s", name);
	while (*position < word_count) {
		const char *value = word_value(words[(*position)++], name);

		if (value)
			return value;
	}
	return NULL;
}

const char *cmdline_option(const char *name)
{
	unsigned int position = 0;

	return cmdline_next(name, &position);
}

static int digit_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

bool parse_number(const char **string, uint64_t *value)
{
	const char *c = *string;
	const char *first;
	unsigned int base = 10;

	if (c[0] == '0' && c[1] == 'x') {
		base = 16;
		c += 2;
	}
	*value = 0;
	for (first = c; digit_value(*c) >= 0 && digit_value(*c) < (int)base; c++) {
		const uint64_t digit = (uint64_t)digit_value(*c);

		if (*value > (UINT64_MAX - digit) / base)
			return false;
		*value = *value * base + digit;
	}
	*string = c;
	return c != first;
}

uint64_t cmdline_number(const char *name, uint64_t otherwise)
{
	const char *string = cmdline_option(name);
	uint64_t value;

	if (!string)
		return otherwise;
	if (!parse_number(&string, &value) || *string)
		tap_bail_out("the option %s needs a number", name);
	return value;
}

bool string_equal(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return *a == *b;
}

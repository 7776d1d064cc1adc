// SPDX-License-Identifier: MIT
/* printf, and the console on the debug port. */
#include "cpu.h"
#include "runtime.h"

#define LINE_SIZE	256

struct output {
	char *buffer;
	size_t size;
	size_t length;
};

struct conversion {
	unsigned int width;
	bool zero_pad;
	bool wide;	/* l, ll, z: all 64 bits here */
};

static void put(struct output *out, char c)
{
	if (out->length + 1 < out->size)
		out->buffer[out->length++] = c;
}

static void put_string(struct output *out, const char *string)
{
	while (*string)
		put(out, *string++);
}

static void put_number(struct output *out, uint64_t value, unsigned int base, bool negative,
		       const struct conversion *conversion)
{
	char digits[20];	/* 2^64 in decimal */
	unsigned int count = 0;
	unsigned int length;

	do {
		digits[count++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);

	length = count + negative;
	if (negative && conversion->zero_pad)
		put(out, '-');
	for (; length < conversion->width; length++)
		put(out, conversion->zero_pad ? '0' : ' ');
	if (negative && !conversion->zero_pad)
		put(out, '-');
	while (count)
		put(out, digits[--count]);
}

static const char *parse_conversion(const char *format, struct conversion *conversion)
{
	*conversion = (struct conversion){ 0 };
	if (*format == '0') {
		conversion->zero_pad = true;
		format++;
	}
	while (*format >= '0' && *format <= '9')
		conversion->width = conversion->width * 10 + (unsigned int)(*format++ - '0');
	while (*format == 'l' || *format == 'z') {
		conversion->wide = true;
		format++;
	}
	return format;
}

size_t vsnprintf(char *buffer, size_t size, const char *format, va_list args)
{
	struct output out = { buffer, size, 0 };
	struct conversion conversion;
	int64_t number;

	for (; *format; format++) {
		if (*format != '%') {
			put(&out, *format);
			continue;
		}
		format = parse_conversion(format + 1, &conversion);
		switch (*format) {
		case 's':
			put_string(&out, va_arg(args, const char *));
			break;
		case 'c':
			put(&out, (char)va_arg(args, int));
			break;
		case 'd':
			number = conversion.wide ? va_arg(args, int64_t) : va_arg(args, int);
			put_number(&out, number < 0 ? -(uint64_t)number : (uint64_t)number, 10,
				   number < 0, &conversion);
			break;
		case 'u':
		case 'x':
			put_number(&out, conversion.wide ? va_arg(args, uint64_t)
				   : va_arg(args, unsigned int), *format == 'u' ? 10 : 16, false,
				   &conversion);
			break;
		case 'p':
			put_string(&out, "0x");
			put_number(&out, (uint64_t)va_arg(args, void *), 16, false, &conversion);
			break;
		case '%':
			put(&out, '%');
			break;
		default:
			tap_bail_out("printf knows no %%%c", *format);
		}
	}
	if (size)
		buffer[out.length] = '\0';
	return out.length;
}

size_t snprintf(char *buffer, size_t size, const char *format, ...)
{
	va_list args;
	size_t length;

	va_start(args, format);
	length = vsnprintf(buffer, size, format, args);
	va_end(args);
	return length;
}

/* One line collects here, so that it leaves in one string instruction: an exit or two. */
static char line[LINE_SIZE];
static size_t line_length;

void console_flush(void)
{
	outsb(DEBUG_CONSOLE_PORT, line, line_length);
	line_length = 0;
}

void console_fresh_line(void)
{
	if (line_length)
		printf("\n");
}

void vprintf(const char *format, va_list args)
{
	line_length += vsnprintf(line + line_length, sizeof(line) - line_length, format, args);
	if (line_length == sizeof(line) - 1) {
		console_flush();
		return;
	}
	if (line_length && line[line_length - 1] == '\n')
		console_flush();
}

void printf(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprintf(format, args);
	va_end(args);
}

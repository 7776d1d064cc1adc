// SPDX-License-Identifier: MIT
/* Test Anything Protocol, version 13, with the plan at the end. */
#include "runtime.h"

static unsigned int count, failures;

static void print_header(void)
{
	static bool printed;

	if (!printed)
		printf("TAP version 13\n");
	printed = true;
}

static void print_result(bool passed, const char *name, va_list args)
{
	print_header();
	count++;
	failures += !passed;
	printf("%s %u - ", passed ? "ok" : "not ok", count);
	vprintf(name, args);
}

bool tap_ok(bool passed, const char *name, ...)
{
	va_list args;

	va_start(args, name);
	print_result(passed, name, args);
	va_end(args);
	printf("\n");
	return passed;
}

bool tap_is(uint64_t got, uint64_t expected, const char *name, ...)
{
	va_list args;

	va_start(args, name);
	print_result(got == expected, name, args);
	va_end(args);
	printf("\n");
	if (got != expected)
		tap_note("expected %llu (0x%llx), got %llu (0x%llx)",
			 (unsigned long long)expected, (unsigned long long)expected,
			 (unsigned long long)got, (unsigned long long)got);
	return got == expected;
}

void tap_skip(const char *reason, const char *name, ...)
{
	va_list args;

	va_start(args, name);
	print_result(true, name, args);
	va_end(args);
	printf(" # SKIP %s\n", reason);
}

void tap_note(const char *format, ...)
{
	va_list args;

	print_header();
	printf("# ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
}

_Noreturn void tap_bail_out(const char *reason, ...)
{
	static bool again;
	va_list args;

	/* An exception while bailing out must not go round in circles. */
	if (again)
		exit(1);
	again = true;
	console_fresh_line();
	printf("Bail out! ");
	va_start(args, reason);
	vprintf(reason, args);
	va_end(args);
	printf("\n");
	exit(1);
}

_Noreturn void tap_done(void)
{
	print_header();
	printf("1..%u\n", count);
	exit(failures ? 1 : 0);
}

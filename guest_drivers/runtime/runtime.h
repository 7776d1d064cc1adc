/* SPDX-License-Identifier: MIT */
/* What a guest driver has instead of an operating system. */
#ifndef RUNTIME_H
#define RUNTIME_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)	((a) < (b) ? (a) : (b))
#define PRINTF(f, a)	__attribute__((format(printf, f, a)))

/* Every guest's own part; its return value is the exit status. */
int main(void);

/* ----- the host's ports ----- */

#define DEBUG_CONSOLE_PORT	0xe9
#define MEASUREMENT_PORT	0xea
#define EXIT_PORT		0xf4

_Noreturn void exit(int status);

/* What happens between the two is counted and timed by the host, if it knows how. */
void measure_begin(void);
void measure_end(void);

/* ----- console: printed a line at a time ----- */

/* %s %c %d %u %x %p %%, with l, ll and z, a width and zero padding. */
void printf(const char *format, ...) PRINTF(1, 2);
void vprintf(const char *format, va_list args);
/* Always terminates; returns the characters written, without the NUL. */
size_t snprintf(char *buffer, size_t size, const char *format, ...) PRINTF(3, 4);
size_t vsnprintf(char *buffer, size_t size, const char *format, va_list args);
void console_flush(void);
/* Ends a line that was begun, if one was. */
void console_fresh_line(void);

/* ----- Test Anything Protocol ----- */

bool tap_ok(bool passed, const char *name, ...) PRINTF(2, 3);
/* As tap_ok(got == expected), and a failure shows both. */
bool tap_is(uint64_t got, uint64_t expected, const char *name, ...) PRINTF(3, 4);
void tap_skip(const char *reason, const char *name, ...) PRINTF(2, 3);
/* A diagnostic line. */
void tap_note(const char *format, ...) PRINTF(1, 2);
/* Stop at once: what follows could not be trusted. */
_Noreturn void tap_bail_out(const char *reason, ...) PRINTF(1, 2);
/* Print the plan and exit: 0 when everything passed, else 1. */
_Noreturn void tap_done(void);

/* ----- command line: words `name=value`, with a space between ----- */

/*
 * The options that this guest knows, without virtio_mmio.device, which every guest does; NULL ends
 * the array.  The guest bails out before main() at any other word, and at an option that stands twice.
 */
extern const char *const guest_options[];

void cmdline_init(const char *line);
/* The option's value, "" for a bare name, NULL when not given. */
const char *cmdline_option(const char *name);
/* The same for an option that may be repeated; starts with *position = 0. */
const char *cmdline_next(const char *name, unsigned int *position);
/* Decimal or 0x... number of 64 bits at *text, which moves behind it; false if there is none. */
bool parse_number(const char **text, uint64_t *value);
/* The option as a number, or `otherwise`; anything else bails out. */
uint64_t cmdline_number(const char *name, uint64_t otherwise);
bool string_equal(const char *a, const char *b);

/* ----- memory: identity mapped, so an address is a guest physical address ----- */

void memory_init(uint64_t start, uint64_t end);
/* Not zeroed.  Bails out when there is none left. */
void *memory_alloc(size_t size, size_t align);
void *memory_zalloc(size_t size, size_t align);
/* Give back everything that was allocated since the mark. */
uint64_t memory_mark(void);
void memory_release(uint64_t mark);

void *memcpy(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *a, const void *b, size_t size);
/* Whether the two are equal, or all bytes are `value`: by string instructions, as memcpy(). */
bool memory_equal(const void *a, const void *b, size_t size);
bool memory_is(const void *memory, uint8_t value, size_t size);

/* ----- interrupts ----- */

void interrupts_init(void);
/* The part of it that each CPU does for itself; leaves interrupts off. */
void interrupts_init_cpu(void);
/*
 * Route a GSI, edge triggered, to a handler, which runs with interrupts off.  Handlers of one GSI
 * are all called for each of its interrupts.
 */
void irq_register(uint32_t gsi, void (*handler)(void *context), void *context);
/*
 * Sleep until an interrupt.  Call with interrupts off, after looking whether there is anything to
 * sleep for: sti takes effect after the instruction that follows it, so an interrupt that came since
 * the look ends the hlt.
 */
void irq_wait(void);

/* ----- other CPUs: each is known by its APIC ID ----- */

/* The calling CPU's, as its local APIC says. */
uint32_t cpu_number(void);
/* How many there are, as CPUID says: the boot CPU is number 0, and the others follow. */
unsigned int cpu_count(void);
/*
 * Start a CPU, by INIT and SIPI, in a function that never returns, on a stack of its own and with
 * interrupts off.  False when it does not come within seconds.  For the boot CPU to call.
 */
bool cpu_start(uint32_t cpu, void (*function)(void));

/* An interrupt from CPU to CPU: a vector for a handler, and sending it. */
unsigned int ipi_register(void (*handler)(void *context), void *context);
void ipi_send(uint32_t cpu, unsigned int vector);
void ipi_send_init(uint32_t cpu);
/* `address` is of a page below 1 MiB, where the CPU begins in real mode. */
void ipi_send_startup(uint32_t cpu, uint64_t address);

#endif

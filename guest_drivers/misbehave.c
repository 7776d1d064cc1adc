// SPDX-License-Identifier: MIT
/* A guest that does on purpose what a VMM, and a reader of TAP, must bear. */
#include "cpu.h"
#include "runtime.h"
#include "vectors.h"

/* Intel SDM, volume 3, 11.6.1: an interrupt to oneself. */
#define LAPIC_ICR	UINT64_C(0xfee00300)
#define ICR_SELF	(1u << 18)

#define STRAY_ADDRESS	UINT64_C(0xc0000000)	/* no RAM, no device */
#define STRAY_PORT	0x5555
#define STRAY_VALUE	0xa5

static void spin(void)
{
	for (;;)
		__asm__ volatile("");
}

static void halt(void)
{
	cpu_stop();
}

/* With no IDT an exception cannot be delivered, nor the double fault, and the CPU shuts down. */
static void triple_fault(void)
{
	const struct __attribute__((packed)) {
		uint16_t limit;
		uint64_t base;
	} empty = { 0, 0 };

	__asm__ volatile("lidt %0\n\tud2" : : "m"(empty));
}

static void stray_mmio(void)
{
	mmio_write32(STRAY_ADDRESS, STRAY_VALUE);
	tap_note("read 0x%08x at %p", mmio_read32(STRAY_ADDRESS), (void *)STRAY_ADDRESS);
	tap_ok(true, "a stray access to memory comes back");
	tap_done();
}

static void stray_port(void)
{
	outb(STRAY_PORT, STRAY_VALUE);
	tap_note("read 0x%02x from port 0x%x", inb(STRAY_PORT), STRAY_PORT);
	tap_ok(true, "a stray access to a port comes back");
	tap_done();
}

static void fail(void)
{
	tap_ok(true, "one and one");
	tap_is(1 + 1, 3, "makes three");
	tap_done();
}

static void bail(void)
{
	tap_ok(true, "so far, so good");
	tap_bail_out("asked to");
}

static void silent(void)
{
	exit(0);
}

static void exception(void)
{
	__asm__ volatile("ud2");
}

static void flood(void)
{
	for (unsigned int line = 0;; line++)
		tap_note("line %u of a flood without end", line);
}

static void bad_tap(void)
{
	tap_ok(true, "the first of three");
	tap_ok(true, "the second of three");
	printf("1..3\n");
	exit(0);
}

/*
 * An interrupt between the sti and the hlt of irq_wait(), as QEMU 7.2 lets them in where it emulates
 * SVM: the only one that the hlt waits for.
 */
static void early_interrupt(void)
{
	irq_disable();
	mmio_write32(LAPIC_ICR, ICR_SELF | VECTOR_IRQ_BASE);
	/* No interrupt is taken before the jmp is done. */
	__asm__ volatile("leaq 1f(%%rip), %%rax\n\tpushq %%rax\n\tsti\n\tjmp irq_wait_halt\n1:"
			 : : : "rax", "memory");
	tap_ok(true, "an interrupt just before the hlt is not slept through");
	tap_done();
}

static const struct {
	const char *name;
	void (*run)(void);
} ways[] = {
	{ "spin", spin },
	{ "halt", halt },
	{ "triple-fault", triple_fault },
	{ "stray-mmio", stray_mmio },
	{ "stray-port", stray_port },
	{ "fail", fail },
	{ "bail", bail },
	{ "silent", silent },
	{ "exception", exception },
	{ "flood", flood },
	{ "bad-tap", bad_tap },
	{ "early-interrupt", early_interrupt },
};

const char *const guest_options[] = { "misbehave", NULL };

int main(void)
{
	const char *wanted = cmdline_option("misbehave");

	for (size_t i = 0; wanted && i < ARRAY_SIZE(ways); i++)
		if (string_equal(wanted, ways[i].name))
			ways[i].run();

	for (size_t i = 0; i < ARRAY_SIZE(ways); i++)
		tap_note("misbehave=%s", ways[i].name);
	tap_bail_out("say on the command line how to misbehave");
}

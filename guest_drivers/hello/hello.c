// SPDX-License-Identifier: MIT
/*
 * The smallest guest: says hello on the debug console, leaves its answer in memory and in the
 * accumulator, and halts.
 *
 * One source for real, protected, paged and long mode.  The mode is the host's to set up: it starts
 * here with flat segments (base 0), a stack, and interrupts off.
 */
#include <stdint.h>

#define DEBUG_CONSOLE_PORT	0xe9
#define ANSWER			42
#define ANSWER_ADDRESS		0x400

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

_Noreturn void _start(void);

/* First in the image; see hello.ld. */
__attribute__((section(".text._start"))) _Noreturn void _start(void)
{
	static const char greeting[] = "Hello, World!\n";

	for (const char *c = greeting; *c; c++)
		outb(DEBUG_CONSOLE_PORT, (uint8_t)*c);

	*(volatile uint32_t *)ANSWER_ADDRESS = ANSWER;

	for (;;)
		__asm__ volatile("hlt" : : "a"(ANSWER) : "memory");
}

/* SPDX-License-Identifier: MIT */
/* The instructions that C has no words for. */
#ifndef CPU_H
#define CPU_H

#include <stdint.h>

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline void outsb(uint16_t port, const void *data, uint64_t count)
{
	__asm__ volatile("rep outsb" : "+S"(data), "+c"(count) : "d"(port) : "memory");
}

/*
 * MMIO accesses are one plain mov each.  A VMM decodes the instruction: anything cleverer that the
 * compiler might think of (test, or, movzx with memory) is one more thing to decode.
 */
#define MMIO_ACCESSORS(bits, type, suffix, constraint)						\
static inline type mmio_read##bits(uint64_t address)						\
{												\
	type value;										\
												\
	__asm__ volatile("mov" suffix " %1, %0" : "=" constraint(value)				\
			 : "m"(*(volatile type *)address) : "memory");				\
	return value;										\
}												\
static inline void mmio_write##bits(uint64_t address, type value)				\
{												\
	__asm__ volatile("mov" suffix " %0, %1"							\
			 : : constraint(value), "m"(*(volatile type *)address) : "memory");	\
}

MMIO_ACCESSORS(8, uint8_t, "b", "q")
MMIO_ACCESSORS(16, uint16_t, "w", "r")
MMIO_ACCESSORS(32, uint32_t, "l", "r")

static inline void irq_disable(void)
{
	__asm__ volatile("cli" : : : "memory");
}

static inline void irq_enable(void)
{
	__asm__ volatile("sti" : : : "memory");
}

static inline void cpu_relax(void)
{
	__asm__ volatile("pause" : : : "memory");
}

/* The time stamp counter: between one and some five thousand million a second. */
static inline uint64_t read_tsc(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

struct cpuid {
	uint32_t eax, ebx, ecx, edx;
};

static inline struct cpuid read_cpuid(uint32_t leaf, uint32_t subleaf)
{
	struct cpuid r;

	__asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
			 : "a"(leaf), "c"(subleaf));
	return r;
}

static inline _Noreturn void cpu_stop(void)
{
	for (;;)
		__asm__ volatile("cli\n\thlt" : : : "memory");
}

static inline uint64_t read_cr2(void)
{
	uint64_t value;

	__asm__ volatile("movq %%cr2, %0" : "=r"(value));
	return value;
}

#define READ_ONCE(x)		(*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, value)	(*(volatile __typeof__(x) *)&(x) = (value))

#endif

// SPDX-License-Identifier: MIT
/* Starts other CPUs, as the Intel SDM, volume 3, 9.4.4 has it: INIT, and a SIPI or two. */
#include "cpu.h"
#include "runtime.h"

/* A free page of the first MiB; the boot parameters in the pages behind it have been read. */
#define TRAMPOLINE_ADDRESS	UINT64_C(0x2000)
#define CPU_STACK_SIZE		4096
#define STACK_ALIGN		16

/* Longer than 10 ms, 200 us and some seconds, on counters of up to 5 GHz. */
#define TSC_10_MS		UINT64_C(50000000)
#define TSC_200_US		UINT64_C(1000000)
#define TSC_SECONDS		UINT64_C(20000000000)

#define CPUID_BASIC		1
#define CPUID_EBX_COUNT_SHIFT	16
#define CPUID_EBX_COUNT_MASK	0xff

extern const char trampoline[], trampoline_end[];

/* For the CPU that is being started, one at a time. */
uint32_t cpu_stack;
static void (*cpu_function)(void);
static bool cpu_entered;

_Noreturn void cpu_enter(void);

_Noreturn void cpu_enter(void)
{
	void (*const function)(void) = cpu_function;

	interrupts_init_cpu();
	/* From here on the next CPU may be started. */
	WRITE_ONCE(cpu_entered, true);
	function();
	cpu_stop();
}

unsigned int cpu_count(void)
{
	return read_cpuid(CPUID_BASIC, 0).ebx >> CPUID_EBX_COUNT_SHIFT & CPUID_EBX_COUNT_MASK;
}

static bool wait_for_entry(uint64_t ticks)
{
	const uint64_t start = read_tsc();

	while (!READ_ONCE(cpu_entered)) {
		if (read_tsc() - start > ticks)
			return false;
		cpu_relax();
	}
	return true;
}

bool cpu_start(uint32_t cpu, void (*function)(void))
{
	char *const stack = memory_alloc(CPU_STACK_SIZE, STACK_ALIGN);

	memcpy((void *)TRAMPOLINE_ADDRESS, trampoline, (size_t)(trampoline_end - trampoline));
	cpu_stack = (uint32_t)(uint64_t)(stack + CPU_STACK_SIZE);
	cpu_function = function;
	WRITE_ONCE(cpu_entered, false);

	ipi_send_init(cpu);
	wait_for_entry(TSC_10_MS);
	ipi_send_startup(cpu, TRAMPOLINE_ADDRESS);
	if (wait_for_entry(TSC_200_US))
		return true;
	/* A CPU that was started by the first takes no second one. */
	ipi_send_startup(cpu, TRAMPOLINE_ADDRESS);
	return wait_for_entry(TSC_SECONDS);
}

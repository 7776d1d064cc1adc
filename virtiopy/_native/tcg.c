/* SPDX-License-Identifier: MIT */
/*
 * What is hooked into Unicorn: where translated code stops, exceptions, system calls, CPUID, the time.
 *
 * uc_emu_stop from another thread takes effect after any memory access, in the middle of an
 * instruction that is then executed again: `add` to memory would add twice.  So nothing calls it but
 * look_around, at the start of a block of code.
 *
 * Nothing is linked here: Unicorn is looked up in the process, where Python has loaded it.
 */
#include <dlfcn.h>
#include <errno.h>
#include <time.h>

#include "native.h"

/* How many blocks of code, of some 20 ns each, are executed between two looks at the clock. */
#define CLOCK_BLOCKS	256

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t read_eflags(struct vp_tcg *tcg)
{
	uint64_t eflags = 0;

	tcg->read_register(tcg->engine, tcg->eflags, &eflags);
	return eflags;
}

static void stop(struct vp_tcg *tcg)
{
	tcg->stopped = 1;
	tcg->stop(tcg->engine);
}

/* Whether an interrupt can be taken before the next block: IF, and no instruction that holds it off. */
static int may_interrupt(const struct vp_tcg *tcg)
{
	return (tcg->cpu->eflags & EFLAGS_IF) && !(tcg->cpu->hflags & HF_INHIBIT_IRQ);
}

/* At the start of a block; one ends after each instruction that can change IF.  Says whether to stop there. */
static __attribute__((noinline)) int is_to_stop(struct vp_tcg *tcg)
{
	return __atomic_load_n(&tcg->stop_wanted, __ATOMIC_RELAXED) || tcg->stopped
		|| (tcg->window_wanted && may_interrupt(tcg))
		|| (tcg->blocks % CLOCK_BLOCKS == 0 && now() >= tcg->deadline);
}

/* Whether there may be something to stop for. */
static inline int is_to_look(struct vp_tcg *tcg)
{
	return __atomic_load_n(&tcg->stop_wanted, __ATOMIC_RELAXED) | tcg->window_wanted | tcg->stopped
		|| ++tcg->blocks % CLOCK_BLOCKS == 0;
}

/* A uc_cb_hookcode_t for UC_HOOK_BLOCK, for a Unicorn whose functions cannot be replaced. */
static void at_block(void *engine, uint64_t address, uint32_t size, void *user_data)
{
	struct vp_tcg *tcg = user_data;

	(void)engine;
	(void)address;
	(void)size;
	if (is_to_look(tcg) && is_to_stop(tcg))
		stop(tcg);
}

/* Unicorn's functions, the same for all engines. */
static void (*unicorns_look_around)(void *engine, uint32_t in_delay_slot);
static void (*leave_block)(void *cpu, uintptr_t return_address);

static __attribute__((noinline)) void leave_if_stopped(struct vp_tcg *tcg, uintptr_t return_address)
{
	if (!is_to_stop(tcg))
		return;
	stop(tcg);
	leave_block(vp_tcg_cpu_state(tcg), return_address);
}

/*
 * In the place of helper_check_exit_request, which each block calls when it starts: a hook besides would be
 * another call.  Only this engine's own thread stops it, so what the helper looks at need not be looked at.
 */
static void look_around(void *engine, uint32_t in_delay_slot)
{
	struct vp_tcg *tcg = vp_tcg_running;

	if (!tcg || tcg->hooks_blocks) {
		/* A jump, for the helper asks where it was called from. */
		unicorns_look_around(engine, in_delay_slot);
		return;
	}
	if (is_to_look(tcg))
		leave_if_stopped(tcg, (uintptr_t)__builtin_return_address(0));
}

/*
 * Replaces what can be replaced of Unicorn's functions, for engines that are made from then on.  Says whether
 * blocks call look_around; a negative errno where `library` is not loaded.
 */
int vp_tcg_prepare(const char *library)
{
	static int replaced;
	void *unicorn;

	if (replaced)
		return replaced > 0;
	unicorn = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
	if (!unicorn)
		return -ENOENT;
	*(void **)&unicorns_look_around = dlsym(unicorn, "helper_check_exit_request_x86_64");
	*(void **)&leave_block = dlsym(unicorn, "cpu_loop_exit_restore_x86_64");
	replaced = unicorns_look_around && leave_block
		&& vp_tcg_replace(unicorn, "helper_check_exit_request_x86_64", (void *)look_around) ? 1 : -1;
	vp_tcg_replace_mmu(unicorn);
	dlclose(unicorn);	/* Python's own reference keeps it. */
	return replaced > 0;
}

/* A uc_cb_hookintr_t for UC_HOOK_INTR: exceptions and `int`.  The engine goes on at what is in eip. */
static void at_exception(void *engine, uint32_t vector, void *user_data)
{
	struct vp_tcg *tcg = user_data;
	struct vp_tcg_exceptions *exceptions = tcg->exceptions;
	uint64_t eflags = read_eflags(tcg);

	(void)engine;
	/* Unicorn, which delivers none, would see the next one as nested in this. */
	exceptions->old_exception = -1;
	if (vp_tcg_deliver(tcg, (int)vector, exceptions->exception_is_int, 0,
			   (uint32_t)exceptions->error_code, eflags))
		return;
	tcg->exception = (int32_t)vector;
	stop(tcg);
}

/*
 * A uc_cb_hookinsn_invalid_t for UC_HOOK_INSN_INVALID; returns whether the engine is to go on.  Where not,
 * it ends with UC_ERR_INSN_INVALID, which Python takes for the same exception.
 */
static int at_invalid(void *engine, void *user_data)
{
	struct vp_tcg *tcg = user_data;

	(void)engine;
	tcg->exceptions->old_exception = -1;
	return vp_tcg_deliver(tcg, INVALID_OPCODE, 0, 0, 0, read_eflags(tcg));
}

static void at_syscall(void *engine, void *user_data)
{
	struct vp_tcg *tcg = user_data;

	(void)engine;
	vp_tcg_syscall(tcg, read_eflags(tcg));
}

/* Returns whether the instruction is answered. */
static int at_cpuid(void *engine, void *user_data)
{
	struct vp_tcg *tcg = user_data;
	uint64_t *regs = tcg->cpu->regs;
	uint32_t leaf = (uint32_t)regs[0], subleaf = (uint32_t)regs[R_RCX];

	(void)engine;
	for (uint32_t i = 0; i < tcg->cpuid_count; i++) {
		const struct vp_cpuid *entry = &tcg->cpuid[i];

		if (entry->leaf != leaf || (entry->subleaf != UINT32_MAX && entry->subleaf != subleaf))
			continue;
		regs[0] = entry->values[0];
		regs[3] = entry->values[1];
		regs[1] = entry->values[2];
		regs[2] = entry->values[3];
		return 1;
	}
	return 0;
}

/* The time stamp counter is nanoseconds since the engine was hooked. */
static int at_rdtsc(void *engine, void *user_data)
{
	struct vp_tcg *tcg = user_data;
	uint64_t value = now() - tcg->start;

	(void)engine;
	tcg->cpu->regs[0] = (uint32_t)value;
	tcg->cpu->regs[2] = value >> 32;
	return 1;
}

/*
 * Calls uc_hook_add for each hook; returns its uc_err, or a negative errno when `library` is not loaded
 * or is no Unicorn.  `types` are UC_HOOK_BLOCK, _INTR, _INSN_INVALID and _INSN; `instructions` those of SYSCALL,
 * CPUID, RDTSC.
 */
int vp_tcg_hook(const char *library, uintptr_t engine, const int *types, const int *instructions,
		struct vp_tcg *tcg)
{
	int (*add)(void *engine, size_t *handle, int type, void *callback, void *user_data,
		   uint64_t begin, uint64_t end, ...);
	void *unicorn = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
	void *instruction_hooks[] = { (void *)at_syscall, (void *)at_cpuid, (void *)at_rdtsc };
	size_t handle;
	int error;

	if (!unicorn)
		return -ENOENT;
	add = (__typeof__(add))dlsym(unicorn, "uc_hook_add");
	tcg->stop = (__typeof__(tcg->stop))dlsym(unicorn, "uc_emu_stop");
	tcg->read_register = (__typeof__(tcg->read_register))dlsym(unicorn, "uc_reg_read");
	dlclose(unicorn);	/* Python's own reference keeps it. */
	if (!add || !tcg->stop || !tcg->read_register)
		return -ENOENT;
	tcg->engine = (void *)engine;
	tcg->start = now();
	tcg->exception = -1;
	/* From 1 to 0 is everywhere. */
	error = 0;
	if (tcg->hooks_blocks)
		error = add(tcg->engine, &handle, types[0], (void *)at_block, tcg, 1, 0);
	if (!error)
		error = add(tcg->engine, &handle, types[1], (void *)at_exception, tcg, 1, 0);
	if (!error)
		error = add(tcg->engine, &handle, types[2], (void *)at_invalid, tcg, 1, 0);
	for (int i = 0; i < 3 && !error; i++)
		error = add(tcg->engine, &handle, types[3], instruction_hooks[i], tcg, 1, 0,
			    instructions[i]);
	return error;
}

/* Delivers an event to an engine that stands still; returns whether it was. */
int vp_tcg_take(struct vp_tcg *tcg, int vector, int software, int external, uint32_t error_code)
{
	return vp_tcg_deliver(tcg, vector, software, external, error_code, tcg->cpu->eflags);
}

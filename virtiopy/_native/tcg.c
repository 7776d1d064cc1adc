/* SPDX-License-Identifier: MIT */
/*
 * Where translated code stops.  uc_emu_stop from another thread takes effect after any memory access,
 * in the middle of an instruction that is then executed again: `add` to memory would add twice.  So
 * nobody calls it but this hook, at the start of a block of code.
 *
 * Nothing is linked here: the functions of Unicorn come as pointers.
 */
#include "native.h"

#define EFLAGS_IF	(1u << 9)

static int may_interrupt(struct vp_block_hook *hook, void *engine)
{
	uint64_t eflags = 0;

	if (hook->shadow) {
		hook->shadow = 0;
		return 0;
	}
	hook->read_register(engine, hook->eflags, &eflags);
	return !!(eflags & EFLAGS_IF);
}

/* A uc_cb_hookcode_t for UC_HOOK_BLOCK; a block ends after each instruction that can change IF. */
void vp_block_hook(void *engine, uint64_t address, uint32_t size, void *user_data)
{
	struct vp_block_hook *hook = user_data;

	(void)address;
	(void)size;
	if (!__atomic_load_n(&hook->stop_wanted, __ATOMIC_RELAXED)
	    && !(hook->window_wanted && may_interrupt(hook, engine)))
		return;
	hook->stopped = 1;
	hook->stop(engine);
}

/* SPDX-License-Identifier: MIT */
/*
 * Where translated code stops.  uc_emu_stop from another thread takes effect after any memory access,
 * in the middle of an instruction that is then executed again: `add` to memory would add twice.  So
 * nobody calls it but this hook, at the start of a block of code.
 *
 * Nothing is linked here: Unicorn is looked up in the process, where Python has loaded it.
 */
#include <dlfcn.h>
#include <errno.h>

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
static void at_block(void *engine, uint64_t address, uint32_t size, void *user_data)
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

/* Calls uc_hook_add; returns its uc_err, or a negative errno when `library` is not loaded or no Unicorn. */
int vp_hook_blocks(const char *library, uintptr_t engine, int type, struct vp_block_hook *hook)
{
	int (*add)(void *engine, size_t *handle, int type, void *callback, void *user_data,
		   uint64_t begin, uint64_t end, ...);
	void *unicorn = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
	size_t handle;

	if (!unicorn)
		return -ENOENT;
	add = (__typeof__(add))dlsym(unicorn, "uc_hook_add");
	hook->stop = (__typeof__(hook->stop))dlsym(unicorn, "uc_emu_stop");
	hook->read_register = (__typeof__(hook->read_register))dlsym(unicorn, "uc_reg_read");
	dlclose(unicorn);	/* Python's own reference keeps it. */
	if (!add || !hook->stop || !hook->read_register)
		return -ENOENT;
	/* From 1 to 0 is everywhere. */
	return add((void *)engine, &handle, type, (void *)at_block, hook, 1, 0);
}

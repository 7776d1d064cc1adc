/* SPDX-License-Identifier: MIT */
/* What tcg.c and tcg_events.c share: Unicorn's CPU, and what is hooked into it. */
#ifndef VIRTIOPY_TCG_H
#define VIRTIOPY_TCG_H

#include <stdint.h>

#define CR0_WP		(1u << 16)
#define EFER_SCE	(1u << 0)
#define EFER_LMA	(1u << 10)

#define EFLAGS_TF	(1u << 8)
#define EFLAGS_IF	(1u << 9)
#define EFLAGS_DF	(1u << 10)
#define EFLAGS_NT	(1u << 14)
#define EFLAGS_RF	(1u << 16)
#define EFLAGS_VM	(1u << 17)

/* hflags and CC_OP_EFLAGS: target/i386/cpu.h of QEMU 5.0.1, as in accel/tcg/state.py. */
#define HF_CPL		3u
#define HF_INHIBIT_IRQ	(1u << 3)
#define HF_CS32		(1u << 4)
#define HF_SS32		(1u << 5)
#define HF_ADDSEG	(1u << 6)
#define HF_CS64		(1u << 15)
#define CC_OP_EFLAGS	1

#define INVALID_OPCODE	6

enum { R_RSP = 4, R_RCX = 1, R_R11 = 11 };
enum { SEG_CS = 1, SEG_SS = 2 };

/* CPUX86State, from its start; the parts that are far from it follow. */
struct vp_tcg_segment {
	uint32_t selector;
	uint64_t base;
	uint32_t limit, flags;
};

struct vp_tcg_cpu {
	uint64_t regs[16], eip, eflags, cc_dst, cc_src, cc_src2;
	uint32_t cc_op;
	int32_t df;
	uint32_t hflags, hflags2;
	struct vp_tcg_segment segs[6], ldt, tr, gdt, idt;
	uint64_t cr[9];
	int32_t a20_mask;
	uint64_t bounds[11], efer;
};

struct vp_tcg_syscall {
	uint64_t star, vm_hsave, lstar, cstar, fmask;
};

struct vp_tcg_exceptions {
	int32_t error_code, exception_is_int;
	uint64_t exception_next_eip, dr[8];
	void *breakpoints[4];
	int32_t old_exception;
};

struct vp_tcg_region {
	uint64_t guest_address, size;
	uint64_t host_address;
};

#define VP_TCG_REGIONS	8

/* A leaf of CPUID. */
struct vp_cpuid {
	uint32_t leaf, subleaf, values[4];
};

/* An engine and its hooks; it must stay where it is. */
struct vp_tcg {
	int (*stop)(void *engine);
	int (*read_register)(void *engine, int id, void *value);
	void *engine;
	struct vp_tcg_cpu *cpu;
	struct vp_tcg_syscall *syscall;
	struct vp_tcg_exceptions *exceptions;
	int eflags;
	/* Whether events are delivered here at all, or all left to Python. */
	int native_events;
	/* What is wanted of the hooks: a stop; one as soon as an interrupt can be taken. */
	uint32_t stop_wanted, window_wanted;
	/* A hook has stopped the engine. */
	uint32_t stopped;
	/* The vector of an exception that is left to Python, or -1. */
	int32_t exception;
	/* CLOCK_MONOTONIC, ns: when to stop for a timer; when the engine was hooked.  `blocks` have begun. */
	uint64_t deadline, start;
	uint32_t blocks;
	uint32_t region_count, cpuid_count;
	struct vp_tcg_region regions[VP_TCG_REGIONS];
	struct vp_cpuid cpuid[48];
	/* Whether blocks are hooked, where look_around cannot be called. */
	int hooks_blocks;
	int has_mmu;
	struct vp_tcg_mmu *mmu;		/* tcg_mmu.c */
};

/* The engine that runs on this thread. */
extern _Thread_local struct vp_tcg *vp_tcg_running __attribute__((tls_model("initial-exec")));

int vp_tcg_prepare(const char *library);
int vp_tcg_hook(const char *library, uintptr_t engine, const int *types, const int *instructions,
		struct vp_tcg *tcg);
int vp_tcg_take(struct vp_tcg *tcg, int vector, int software, int external, uint32_t error_code);

/* tcg_replace.c */
int vp_tcg_replace(void *library, const char *name, void *replacement);

/* tcg_mmu.c */
void *vp_tcg_cpu_state(const struct vp_tcg *tcg);
void vp_tcg_replace_mmu(void *library);
void vp_tcg_enter(struct vp_tcg *tcg);
int vp_tcg_take_over_mmu(const char *library, struct vp_tcg *tcg, uintptr_t cpu);
void vp_tcg_written(struct vp_tcg *tcg, uint64_t address, uint64_t length);
int vp_tcg_has_code(const struct vp_tcg *tcg, uint64_t address, uint64_t length);
void vp_tcg_free(struct vp_tcg *tcg);

/* tcg_events.c */
int vp_tcg_deliver(struct vp_tcg *tcg, int vector, int software, int external, uint32_t error_code,
		   uint64_t eflags);
void vp_tcg_syscall(struct vp_tcg *tcg, uint64_t eflags);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Events and system calls in 64-bit mode, where a kernel takes hundreds of thousands of them: what
 * accel/tcg/events.py does for all modes.  Whatever is not as a 64-bit kernel has it, and whatever
 * fails, is left to Python, with nothing changed.
 */
#include <string.h>

#include "native.h"

#define PAGE		0x1000u
#define PTE_ADDRESS	0x000ffffffffff000ull
#define PTE_PRESENT	(1u << 0)
#define PTE_WRITABLE	(1u << 1)
#define PTE_LARGE	(1u << 7)

/* A segment's flags, as in the second word of a descriptor. */
#define DESC_TYPE(flags)	((flags) >> 8 & 0xf)
#define DESC_DPL(flags)		((flags) >> 13 & 3)
#define DESC_A		(1u << 8)
#define DESC_W		(1u << 9)
#define DESC_C		(1u << 10)
#define DESC_CODE	(1u << 11)
#define DESC_S		(1u << 12)
#define DESC_P		(1u << 15)
#define DESC_L		(1u << 21)
#define DESC_B		(1u << 22)
#define DESC_G		(1u << 23)
#define DESC_FLAGS	0xf0ff00u

#define EFLAGS_ARITHMETIC 0x8d5u	/* OF, SF, ZF, AF, PF, CF */

#define GATE_INTERRUPT	0xe
#define GATE_TRAP	0xf

#define TSS_RSP		0x04
#define TSS_IST		0x24

/* Vectors that have an error code: 8, 10-14, 17, 21, 29, 30. */
#define WITH_ERROR_CODE	(1u << 8 | 0x1fu << 10 | 1u << 17 | 1u << 21 | 3u << 29)

/* Memory at a guest physical address, up to the end of its page; NULL where there is none. */
static uint8_t *at_physical(const struct vp_tcg *tcg, uint64_t address)
{
	for (uint32_t i = 0; i < tcg->region_count; i++) {
		const struct vp_tcg_region *region = &tcg->regions[i];

		if (address - region->guest_address < region->size)
			return (uint8_t *)(uintptr_t)region->host_address
				+ (address - region->guest_address);
	}
	return NULL;
}

/* Memory of `size` bytes at a linear address, as a supervisor's access finds it, in 4-level paging. */
static uint8_t *at_linear(const struct vp_tcg *tcg, uint64_t address, uint32_t size, int write)
{
	uint64_t table = tcg->cpu->cr[3] & PTE_ADDRESS, entry;
	int writable = 1, level;

	if ((address & (PAGE - 1)) + size > PAGE)
		return NULL;
	for (level = 39; ; level -= 9) {
		const uint8_t *place = at_physical(tcg, table + (address >> level & 0x1ff) * 8);

		if (!place)
			return NULL;
		memcpy(&entry, place, sizeof(entry));
		if (!(entry & PTE_PRESENT))
			return NULL;
		writable &= !!(entry & PTE_WRITABLE);
		table = entry & PTE_ADDRESS;
		if (level == 12 || (level < 39 && (entry & PTE_LARGE)))
			break;
	}
	if (write && !writable && (tcg->cpu->cr[0] & CR0_WP))
		return NULL;
	table &= ~((1ull << level) - 1);
	return at_physical(tcg, table | (address & ((1ull << level) - 1)));
}

static int read_linear(const struct vp_tcg *tcg, uint64_t address, void *to, uint32_t size)
{
	const uint8_t *from = at_linear(tcg, address, size, 0);

	if (from)
		memcpy(to, from, size);
	return !!from;
}

static int read_tss(const struct vp_tcg *tcg, uint32_t offset, uint64_t *value)
{
	return offset + 7 <= tcg->cpu->tr.limit
		&& read_linear(tcg, tcg->cpu->tr.base + offset, value, sizeof(*value));
}

/* Loads the descriptor of 64-bit code for a privilege level; 0 where it is something else. */
static int read_code(const struct vp_tcg *tcg, uint32_t selector, struct vp_tcg_segment *code)
{
	const struct vp_tcg_segment *gdt = &tcg->cpu->gdt;
	uint32_t offset = selector & ~7u, word[2];

	if (selector & 4 || !offset || offset + 7 > gdt->limit
	    || !read_linear(tcg, gdt->base + offset, word, sizeof(word)))
		return 0;
	code->flags = word[1] & DESC_FLAGS;
	code->base = word[0] >> 16 | (word[1] & 0xff) << 16 | (word[1] & 0xff000000u);
	code->limit = (word[0] & 0xffff) | (word[1] & 0xf0000);
	if (code->flags & DESC_G)
		code->limit = code->limit << 12 | 0xfff;
	return (code->flags & (DESC_S | DESC_CODE | DESC_C | DESC_P | DESC_L | DESC_B))
		== (DESC_S | DESC_CODE | DESC_P | DESC_L);
}

static void enter_64_bit_code(struct vp_tcg_cpu *cpu, uint32_t privilege)
{
	cpu->hflags &= ~(HF_CPL | HF_INHIBIT_IRQ | HF_ADDSEG | EFLAGS_TF | EFLAGS_VM);
	cpu->hflags |= HF_CS32 | HF_SS32 | HF_CS64 | privilege;
}

/*
 * Takes an event through the IDT (SDM volume 3, 6.14); `eflags` are the whole of them.  Returns 0 with
 * nothing changed where this is not the plain case.
 */
int vp_tcg_deliver(struct vp_tcg *tcg, int vector, int software, int external, uint32_t error_code,
		   uint64_t eflags)
{
	struct vp_tcg_cpu *cpu = tcg->cpu;
	uint32_t cpl = cpu->hflags & HF_CPL, type, dpl, stack, words = 5;
	uint64_t gate[2], pointer, frame[6];
	struct vp_tcg_segment code;
	int with_error = !software && !external && vector < 32 && (WITH_ERROR_CODE >> vector & 1);
	uint8_t *place;

	if (!tcg->native_events || !(cpu->efer & EFER_LMA) || (uint32_t)vector * 16 + 15 > cpu->idt.limit
	    || !read_linear(tcg, cpu->idt.base + (uint32_t)vector * 16, gate, sizeof(gate)))
		return 0;
	type = gate[0] >> 40 & 0x1f;
	if ((type != GATE_INTERRUPT && type != GATE_TRAP) || !(gate[0] >> 47 & 1)
	    || (software && (gate[0] >> 45 & 3) < cpl))
		return 0;
	code.selector = gate[0] >> 16 & 0xffff;
	if (!read_code(tcg, code.selector, &code))
		return 0;
	dpl = DESC_DPL(code.flags);
	if (dpl > cpl)
		return 0;

	stack = gate[0] >> 32 & 7;
	pointer = cpu->regs[R_RSP];
	if (stack ? !read_tss(tcg, TSS_IST + 8 * (stack - 1), &pointer)
		  : dpl < cpl && !read_tss(tcg, TSS_RSP + 8 * dpl, &pointer))
		return 0;
	pointer &= ~0xfull;
	if (with_error)
		frame[6 - ++words] = error_code;
	frame[1] = cpu->eip;
	frame[2] = cpu->segs[SEG_CS].selector;
	frame[3] = eflags;
	frame[4] = cpu->regs[R_RSP];
	frame[5] = cpu->segs[SEG_SS].selector;
	pointer -= words * 8;
	place = at_linear(tcg, pointer, words * 8, 1);
	if (!place)
		return 0;
	memcpy(place, frame + 6 - words, words * 8);

	if (dpl < cpl) {
		struct vp_tcg_segment *ss = &cpu->segs[SEG_SS];

		ss->selector = dpl;
		ss->base = 0;
		ss->limit = UINT32_MAX;
		ss->flags = DESC_P | DESC_S | DESC_W | DESC_A | dpl << 13 | DESC_B;
	}
	code.selector = (code.selector & ~3u) | dpl;
	cpu->segs[SEG_CS] = code;
	cpu->regs[R_RSP] = pointer;
	cpu->eip = (gate[0] & 0xffff) | (gate[0] >> 32 & 0xffff0000) | (gate[1] << 32);
	cpu->eflags &= ~(uint64_t)(EFLAGS_TF | EFLAGS_NT | EFLAGS_RF | EFLAGS_VM
				   | (type == GATE_INTERRUPT ? EFLAGS_IF : 0));
	enter_64_bit_code(cpu, dpl);
	return 1;
}

/* How many bytes the syscall instruction at eip has, with its prefixes. */
static uint32_t syscall_length(const struct vp_tcg *tcg)
{
	uint64_t address = tcg->cpu->eip;
	uint8_t bytes[2] = { 0, 0 };

	for (uint32_t length = 1; length <= 15; length++) {
		bytes[0] = bytes[1];
		if (!read_linear(tcg, address + length - 1, bytes + 1, 1))
			break;
		if (bytes[0] == 0x0f && bytes[1] == 0x05)
			return length;
	}
	return 2;
}

/*
 * Does what the SYSCALL instruction does in 64-bit mode (SDM volume 2).  Unicorn adds the instruction's
 * length to eip when its hook returns.
 */
void vp_tcg_syscall(struct vp_tcg *tcg, uint64_t eflags)
{
	struct vp_tcg_cpu *cpu = tcg->cpu;
	const struct vp_tcg_syscall *msr = tcg->syscall;
	uint32_t selector = msr->star >> 32 & 0xfffc, length = syscall_length(tcg);
	struct vp_tcg_segment *cs = &cpu->segs[SEG_CS], *ss = &cpu->segs[SEG_SS];

	if (!(cpu->efer & EFER_SCE) || !(cpu->efer & EFER_LMA)) {
		/* To be #UD, which only Python takes from here. */
		cpu->eip -= length;
		tcg->exception = INVALID_OPCODE;
		tcg->stopped = 1;
		tcg->stop(tcg->engine);
		return;
	}
	cpu->regs[R_RCX] = cpu->eip + length;
	cpu->regs[R_R11] = eflags & ~(uint64_t)EFLAGS_RF;
	cpu->eip = (cpu->hflags & HF_CS64 ? msr->lstar : msr->cstar) - length;

	eflags &= ~msr->fmask & ~(uint64_t)EFLAGS_RF;
	cpu->cc_src = eflags & EFLAGS_ARITHMETIC;
	cpu->cc_op = CC_OP_EFLAGS;
	cpu->df = eflags & EFLAGS_DF ? -1 : 1;
	cpu->eflags = (eflags & ~(uint64_t)(EFLAGS_ARITHMETIC | EFLAGS_DF)) | 2;

	cs->selector = selector;
	cs->base = 0;
	cs->limit = UINT32_MAX;
	cs->flags = DESC_G | DESC_P | DESC_S | DESC_CODE | DESC_W | DESC_A | DESC_L;
	ss->selector = selector + 8;
	ss->base = 0;
	ss->limit = UINT32_MAX;
	ss->flags = DESC_G | DESC_B | DESC_P | DESC_S | DESC_W | DESC_A;
	enter_64_bit_code(cpu, 0);
}

/* SPDX-License-Identifier: MIT */
/*
 * From the PVH entry (32-bit protected mode, paging off, ebx = hvm_start_info) to 64-bit C, the same
 * way from real mode for the other CPUs, and the entry points of exceptions and interrupts.
 */
#include "vectors.h"

#define XEN_ELFNOTE_PHYS32_ENTRY	18

#define CR0_PE		(1 << 0)
#define CR0_PG		(1 << 31)
#define CR4_PAE		(1 << 5)
#define MSR_EFER	0xc0000080
#define EFER_LME	(1 << 8)

#define PTE_PRESENT	(1 << 0)
#define PTE_WRITE	(1 << 1)
#define PTE_PWT		(1 << 3)
#define PTE_PCD		(1 << 4)
#define PDE_LARGE	(1 << 7)
#define PTE_TABLE	(PTE_PRESENT | PTE_WRITE)
#define PDE_MEMORY	(PTE_PRESENT | PTE_WRITE | PDE_LARGE)
#define PDE_DEVICE	(PDE_MEMORY | PTE_PWT | PTE_PCD)

#define LARGE_PAGE	0x200000
#define LARGE_PAGES_GIB	512

#define SELECTOR_CODE	0x08
#define SELECTOR_DATA	0x10
#define SELECTOR_CODE32	0x18

#define STACK_SIZE	16384

	/* A desc of 8 bytes, as in Linux: QEMU reads that many from an ELF64. */
	.section .note.pvh, "a", @note
	.balign	4
	.long	4, 8, XEN_ELFNOTE_PHYS32_ENTRY
	.asciz	"Xen"
	.quad	pvh_start

/* ----- entry ----- */

	.text
	.code32
	.globl	pvh_start
pvh_start:
	cli
	cld
	movl	$stack_top, %esp
	movl	%ebx, %edi		/* start_info, boot's argument */
	movl	$boot, %esi

	/* esp: a stack, esi: a function of C, edi: its argument. */
enter_long_mode:
	movl	$page_map_l4, %eax
	movl	%eax, %cr3
	movl	%cr4, %eax
	orl	$CR4_PAE, %eax
	movl	%eax, %cr4
	movl	$MSR_EFER, %ecx
	rdmsr
	orl	$EFER_LME, %eax
	wrmsr
	lgdt	gdt_descriptor
	movl	%cr0, %eax
	orl	$(CR0_PG | CR0_PE), %eax
	movl	%eax, %cr0
	ljmp	$SELECTOR_CODE, $long_mode

	.code64
long_mode:
	movl	$SELECTOR_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	/* The loader zeroed .bss, as ELF asks (p_memsz > p_filesz). */
	movl	%edi, %edi
	movl	%esi, %esi
	xorl	%ebp, %ebp
	call	*%rsi
	ud2

/* ----- the other CPUs: smp.c copies the trampoline to where the SIPI sends them ----- */

	.code16
	.globl	trampoline
trampoline:
	cli
	cld
	movw	%cs, %ax
	movw	%ax, %ds
	lgdtl	(trampoline_gdt - trampoline)
	movl	%cr0, %eax
	orl	$CR0_PE, %eax
	movl	%eax, %cr0
	ljmpl	$SELECTOR_CODE32, $protected_mode
	/* The one in the image is beyond real mode's reach. */
trampoline_gdt:
	.word	gdt_descriptor - gdt - 1
	.long	gdt
	.globl	trampoline_end
trampoline_end:

	.code32
protected_mode:
	movl	$SELECTOR_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	cpu_stack, %esp
	movl	$cpu_enter, %esi
	jmp	enter_long_mode
	.code64

/* ----- exceptions and interrupts ----- */

	/* The CPU pushes an error code for these vectors only. */
	.set	HAS_ERROR_CODE, (1 << 8) | (1 << 10) | (1 << 11) | (1 << 12) | (1 << 13) | (1 << 14) \
			| (1 << 17) | (1 << 21) | (1 << 29) | (1 << 30)

	.set	vector, 0
	.rept	VECTOR_IRQ_BASE
	.balign	16
	.if	((HAS_ERROR_CODE >> vector) & 1) == 0
	pushq	$0
	.endif
	pushq	$vector
	jmp	exception_common
	.set	vector, vector + 1
	.endr

	.rept	VECTOR_COUNT - VECTOR_IRQ_BASE
	.balign	16
	pushq	$vector
	jmp	irq_common
	.set	vector, vector + 1
	.endr

	/* The first stub is found from here: they are STUB_SIZE apart, and the last is number 63. */
	.balign	16
	.globl	vector_stubs_end
vector_stubs_end:

exception_common:
	cld
	movq	%rsp, %rdi		/* struct exception_frame; see interrupts.c */
	andq	$-16, %rsp
	call	exception
	ud2

	.globl	irq_wait
irq_wait:
	sti
	.globl	irq_wait_halt
irq_wait_halt:
	hlt
	ret

irq_common:
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	movl	(9 * 8)(%rsp), %edi	/* the vector, below the nine registers */
	/*
	 * No interrupt is taken between sti and hlt; but QEMU 7.2 forgets that where it emulates SVM,
	 * leaves the guest there and comes back.  What the hlt is for has come then: pass over it.
	 */
	cmpq	$irq_wait_halt, (10 * 8)(%rsp)
	jne	1f
	incq	(10 * 8)(%rsp)		/* hlt is one byte */
1:
	subq	$8, %rsp		/* the ABI's 16 byte alignment */
	cld
	call	irq_dispatch
	addq	$8, %rsp
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rdx
	popq	%rcx
	popq	%rax
	addq	$8, %rsp
	iretq

/* ----- tables ----- */

	.section .rodata
	.balign	8
gdt:
	.quad	0
	.quad	0x00af9a000000ffff	/* SELECTOR_CODE: 64-bit, execute/read */
	.quad	0x00cf92000000ffff	/* SELECTOR_DATA: read/write */
	.quad	0x00cf9a000000ffff	/* SELECTOR_CODE32: 32-bit, execute/read */
gdt_descriptor:
	.word	gdt_descriptor - gdt - 1
	.long	gdt

	/*
	 * The low 4 GiB, identity mapped in 2 MiB pages; devices live in the top GiB.  Made by the
	 * assembler: ring 0 may be interpreted, and a loop over 2048 entries would show.
	 */
	.section .data
	.balign	4096
page_map_l4:
	.quad	page_directory_pointers + PTE_TABLE
	.fill	511, 8, 0
page_directory_pointers:
	.quad	page_directories + PTE_TABLE
	.quad	page_directories + 4096 + PTE_TABLE
	.quad	page_directories + 8192 + PTE_TABLE
	.quad	page_directories + 12288 + PTE_TABLE
	.fill	508, 8, 0
page_directories:
	.set	page, 0
	.rept	3 * LARGE_PAGES_GIB
	.quad	page + PDE_MEMORY
	.set	page, page + LARGE_PAGE
	.endr
	.rept	LARGE_PAGES_GIB
	.quad	page + PDE_DEVICE
	.set	page, page + LARGE_PAGE
	.endr

	.section .bss
	.balign	16
	.skip	STACK_SIZE
stack_top:

	.section .note.GNU-stack, "", @progbits

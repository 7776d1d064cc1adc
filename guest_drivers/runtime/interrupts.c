// SPDX-License-Identifier: MIT
/* Exceptions end the run; device interrupts come through the IOAPIC to the local APIC. */
#include "cpu.h"
#include "runtime.h"
#include "vectors.h"

/* ----- the registers, after the Intel SDM, volume 3, and the 82093AA and 8259A data sheets ----- */

#define LAPIC_BASE		UINT64_C(0xfee00000)
#define LAPIC_ID		(LAPIC_BASE + 0x020)
#define LAPIC_TASK_PRIORITY	(LAPIC_BASE + 0x080)
#define LAPIC_EOI		(LAPIC_BASE + 0x0b0)
#define LAPIC_SPURIOUS		(LAPIC_BASE + 0x0f0)
#define LAPIC_SPURIOUS_ENABLE	(1u << 8)
#define APIC_ID_SHIFT		24	/* in LAPIC_ID and in a redirection entry's high half */

#define IOAPIC_BASE		UINT64_C(0xfec00000)
#define IOAPIC_INDEX		(IOAPIC_BASE + 0x00)
#define IOAPIC_DATA		(IOAPIC_BASE + 0x10)
#define IOAPIC_VERSION		0x01
#define IOAPIC_LAST_ENTRY_SHIFT	16
#define IOAPIC_LAST_ENTRY_MASK	0xff
/* A redirection entry's low half of 0 is: fixed, physical, active high, edge, not masked. */
#define IOAPIC_REDIRECTION(n)	(0x10 + 2 * (n))

#define PIC_MASTER_MASK		0x21
#define PIC_SLAVE_MASK		0xa1
#define PIC_MASK_ALL		0xff

#define IDT_INTERRUPT_GATE	0x8e00	/* present, ring 0, interrupts off */
#define SELECTOR_CODE		0x08

struct idt_gate {
	uint16_t offset_low;
	uint16_t selector;
	uint16_t flags;
	uint16_t offset_middle;
	uint32_t offset_high;
	uint32_t reserved;
};

struct __attribute__((packed)) idt_descriptor {
	uint16_t limit;
	uint64_t base;
};

/* What start.S and the CPU leave on the stack. */
struct exception_frame {
	uint64_t vector;
	uint64_t error_code;
	uint64_t rip;
};

struct irq_action {
	void (*handler)(void *context);
	void *context;
};

extern char vector_stubs_end[];

static struct idt_gate idt[VECTOR_COUNT];
static struct irq_action actions[VECTOR_COUNT];
static unsigned int next_vector = VECTOR_IRQ_BASE;

_Noreturn void exception(const struct exception_frame *frame);
void irq_dispatch(unsigned int vector);

_Noreturn void exception(const struct exception_frame *frame)
{
	tap_bail_out("exception %llu at %p, error code 0x%llx, cr2 0x%llx",
		     (unsigned long long)frame->vector, (void *)frame->rip,
		     (unsigned long long)frame->error_code, (unsigned long long)read_cr2());
}

void irq_dispatch(unsigned int vector)
{
	/* A spurious interrupt has no bit in the in-service register, and gets no EOI. */
	if (vector == VECTOR_SPURIOUS)
		return;
	if (actions[vector].handler)
		actions[vector].handler(actions[vector].context);
	mmio_write32(LAPIC_EOI, 0);
}

static void load_idt(void)
{
	const uint64_t stubs = (uint64_t)vector_stubs_end - VECTOR_COUNT * STUB_SIZE;
	const struct idt_descriptor descriptor = { sizeof(idt) - 1, (uint64_t)idt };

	for (unsigned int vector = 0; vector < VECTOR_COUNT; vector++) {
		uint64_t stub = stubs + vector * STUB_SIZE;

		idt[vector].offset_low = (uint16_t)stub;
		idt[vector].selector = SELECTOR_CODE;
		idt[vector].flags = IDT_INTERRUPT_GATE;
		idt[vector].offset_middle = (uint16_t)(stub >> 16);
		idt[vector].offset_high = (uint32_t)(stub >> 32);
	}
	__asm__ volatile("lidt %0" : : "m"(descriptor));
}

void interrupts_init(void)
{
	load_idt();
	/* A GSI below 16 is wired to the 8259 as well, whose vectors 0-15 nobody wants. */
	outb(PIC_MASTER_MASK, PIC_MASK_ALL);
	outb(PIC_SLAVE_MASK, PIC_MASK_ALL);
	mmio_write32(LAPIC_TASK_PRIORITY, 0);
	mmio_write32(LAPIC_SPURIOUS, LAPIC_SPURIOUS_ENABLE | VECTOR_SPURIOUS);
	irq_enable();
}

static uint32_t ioapic_read(uint32_t index)
{
	mmio_write32(IOAPIC_INDEX, index);
	return mmio_read32(IOAPIC_DATA);
}

static void ioapic_write(uint32_t index, uint32_t value)
{
	mmio_write32(IOAPIC_INDEX, index);
	mmio_write32(IOAPIC_DATA, value);
}

void irq_register(uint32_t gsi, void (*handler)(void *context), void *context)
{
	const uint32_t apic_id = mmio_read32(LAPIC_ID) >> APIC_ID_SHIFT;
	const uint32_t last = (ioapic_read(IOAPIC_VERSION) >> IOAPIC_LAST_ENTRY_SHIFT)
			      & IOAPIC_LAST_ENTRY_MASK;

	if (gsi > last)
		tap_bail_out("GSI %u: the IOAPIC ends at %u", gsi, last);
	if (next_vector == VECTOR_SPURIOUS)
		tap_bail_out("more than %u interrupts", VECTOR_SPURIOUS - VECTOR_IRQ_BASE);

	actions[next_vector] = (struct irq_action){ handler, context };
	/* The low half last: it unmasks. */
	ioapic_write(IOAPIC_REDIRECTION(gsi) + 1, apic_id << APIC_ID_SHIFT);
	ioapic_write(IOAPIC_REDIRECTION(gsi), next_vector);
	next_vector++;
}

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
#define LAPIC_COMMAND		(LAPIC_BASE + 0x300)
#define LAPIC_DESTINATION	(LAPIC_BASE + 0x310)
#define COMMAND_FIXED		(0u << 8)
#define COMMAND_INIT		(5u << 8)
#define COMMAND_STARTUP		(6u << 8)
#define COMMAND_PENDING		(1u << 12)
#define COMMAND_ASSERT		(1u << 14)
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

/* What to call for a vector; devices that share a GSI share its vector. */
struct irq_action {
	void (*handler)(void *context);
	void *context;
	const struct irq_action *next;
	uint32_t gsi;
};

extern char vector_stubs_end[];

static struct idt_gate idt[VECTOR_COUNT];
#define ACTIONS_MAX	64
#define NO_GSI		UINT32_MAX

static struct irq_action actions[ACTIONS_MAX];
static unsigned int action_count;
static const struct irq_action *first_action[VECTOR_COUNT];
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
	for (const struct irq_action *action = first_action[vector]; action; action = action->next)
		action->handler(action->context);
	mmio_write32(LAPIC_EOI, 0);
}

static void fill_idt(void)
{
	const uint64_t stubs = (uint64_t)vector_stubs_end - VECTOR_COUNT * STUB_SIZE;

	for (unsigned int vector = 0; vector < VECTOR_COUNT; vector++) {
		uint64_t stub = stubs + vector * STUB_SIZE;

		idt[vector].offset_low = (uint16_t)stub;
		idt[vector].selector = SELECTOR_CODE;
		idt[vector].flags = IDT_INTERRUPT_GATE;
		idt[vector].offset_middle = (uint16_t)(stub >> 16);
		idt[vector].offset_high = (uint32_t)(stub >> 32);
	}
}

static void load_idt(void)
{
	const struct idt_descriptor descriptor = { sizeof(idt) - 1, (uint64_t)idt };

	__asm__ volatile("lidt %0" : : "m"(descriptor));
}

void interrupts_init_cpu(void)
{
	load_idt();
	mmio_write32(LAPIC_TASK_PRIORITY, 0);
	mmio_write32(LAPIC_SPURIOUS, LAPIC_SPURIOUS_ENABLE | VECTOR_SPURIOUS);
}

void interrupts_init(void)
{
	fill_idt();
	/* A GSI below 16 is wired to the 8259 as well, whose vectors 0-15 no driver here wants. */
	outb(PIC_MASTER_MASK, PIC_MASK_ALL);
	outb(PIC_SLAVE_MASK, PIC_MASK_ALL);
	interrupts_init_cpu();
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

static unsigned int new_vector(void)
{
	if (next_vector == VECTOR_SPURIOUS)
		tap_bail_out("more than %u interrupts", VECTOR_SPURIOUS - VECTOR_IRQ_BASE);
	return next_vector++;
}

static void add_action(unsigned int vector, uint32_t gsi, void (*handler)(void *context),
		       void *context)
{
	if (action_count == ACTIONS_MAX)
		tap_bail_out("more than %u interrupt handlers", ACTIONS_MAX);
	actions[action_count] = (struct irq_action){ handler, context, first_action[vector], gsi };
	/* The interrupt may come already: the list is whole at any time. */
	WRITE_ONCE(first_action[vector], &actions[action_count]);
	action_count++;
}

static bool is_routed(uint32_t gsi, unsigned int *vector)
{
	for (*vector = VECTOR_IRQ_BASE; *vector < next_vector; ++*vector)
		if (first_action[*vector] && first_action[*vector]->gsi == gsi)
			return true;
	return false;
}

void irq_register(uint32_t gsi, void (*handler)(void *context), void *context)
{
	const uint32_t last = (ioapic_read(IOAPIC_VERSION) >> IOAPIC_LAST_ENTRY_SHIFT)
			      & IOAPIC_LAST_ENTRY_MASK;
	unsigned int vector;

	if (gsi > last)
		tap_bail_out("GSI %u: the IOAPIC ends at %u", gsi, last);
	if (is_routed(gsi, &vector)) {
		add_action(vector, gsi, handler, context);
		return;
	}
	vector = new_vector();
	add_action(vector, gsi, handler, context);
	/* The low half last: it unmasks. */
	ioapic_write(IOAPIC_REDIRECTION(gsi) + 1, cpu_number() << APIC_ID_SHIFT);
	ioapic_write(IOAPIC_REDIRECTION(gsi), vector);
}

/* ----- between CPUs ----- */

uint32_t cpu_number(void)
{
	return mmio_read32(LAPIC_ID) >> APIC_ID_SHIFT;
}

/* The one command register of a CPU is used by that CPU alone, and by no interrupt handler. */
static void send_command(uint32_t cpu, uint32_t command)
{
	mmio_write32(LAPIC_DESTINATION, cpu << APIC_ID_SHIFT);
	mmio_write32(LAPIC_COMMAND, command);
	while (mmio_read32(LAPIC_COMMAND) & COMMAND_PENDING)
		cpu_relax();
}

unsigned int ipi_register(void (*handler)(void *context), void *context)
{
	const unsigned int vector = new_vector();

	add_action(vector, NO_GSI, handler, context);
	return vector;
}

void ipi_send(uint32_t cpu, unsigned int vector)
{
	send_command(cpu, COMMAND_FIXED | COMMAND_ASSERT | vector);
}

void ipi_send_init(uint32_t cpu)
{
	send_command(cpu, COMMAND_INIT | COMMAND_ASSERT);
}

void ipi_send_startup(uint32_t cpu, uint64_t address)
{
	send_command(cpu, COMMAND_STARTUP | COMMAND_ASSERT | (uint32_t)(address >> 12));
}

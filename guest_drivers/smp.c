// SPDX-License-Identifier: MIT
/*
 * Starts every CPU that CPUID tells of, has each one do something that leaves the guest, and ends on
 * the last one: smp.end=boot has the boot CPU end the run.
 */
#include "cpu.h"
#include "virtio_test.h"

#define ROUNDS		100
#define CPUS_MAX	64
#define QUEUE_SIZE	4
#define CPUID_BASIC	1
#define CPUID_TOPOLOGY	0xb
#define INITIAL_ID_SHIFT 24

#define TSC_SECONDS	UINT64_C(20000000000)

/* What a CPU found out about itself; written by that CPU. */
struct report {
	uint32_t local_apic;
	uint32_t initial;
	uint32_t topology;
	bool done;
};

enum { HOLD, KICK, EXIT };

static struct report reports[CPUS_MAX];
static unsigned int counter;
static unsigned int awaited_vector;
static unsigned int interrupts;
static int wish = HOLD;
static struct virtq queue;

static void count_interrupt(void *context)
{
	(void)context;
	interrupts++;
}

static void report(struct report *r)
{
	r->local_apic = cpu_number();
	r->initial = read_cpuid(CPUID_BASIC, 0).ebx >> INITIAL_ID_SHIFT;
	r->topology = read_cpuid(0, 0).eax >= CPUID_TOPOLOGY ? read_cpuid(CPUID_TOPOLOGY, 0).edx
							    : r->initial;
}

/* What a CPU that was started does. */
static void work(void)
{
	const uint32_t number = cpu_number();

	report(&reports[number]);
	for (unsigned int i = 0; i < ROUNDS; i++)
		__atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
	WRITE_ONCE(reports[number].done, true);
	ipi_send(0, awaited_vector);

	/* The last one does what the boot CPU wishes. */
	while (number == cpu_count() - 1) {
		switch (__atomic_load_n(&wish, __ATOMIC_ACQUIRE)) {
		case KICK:
			virtq_kick(&queue);
			__atomic_store_n(&wish, HOLD, __ATOMIC_RELEASE);
			break;
		case EXIT:
			tap_done();
		default:
			cpu_relax();
		}
	}
}

static bool wait_until_done(const struct report *r)
{
	const uint64_t start = read_tsc();

	while (!READ_ONCE(r->done)) {
		if (read_tsc() - start > TSC_SECONDS)
			return false;
		cpu_relax();
	}
	return true;
}

static void test_start(unsigned int count)
{
	for (unsigned int number = 1; number < count; number++) {
		const struct report *r = &reports[number];

		if (!tap_ok(cpu_start(number, work), "CPU %u starts by INIT and SIPI", number)
		    || !wait_until_done(r))
			tap_bail_out("CPU %u is not there", number);
		tap_is(r->local_apic, number, "its local APIC has ID %u", number);
		tap_is(r->initial, number, "CPUID gives it the initial APIC ID %u", number);
		tap_is(r->topology, number, "CPUID's topology gives it the same ID");
		tap_is(__atomic_load_n(&counter, __ATOMIC_SEQ_CST), number * ROUNDS,
		       "its locked additions are all there");
	}
}

static void test_interrupts(unsigned int count)
{
	irq_disable();
	while (READ_ONCE(interrupts) < count - 1) {
		irq_wait();
		irq_disable();
	}
	irq_enable();
	tap_is(interrupts, count - 1, "each CPU's interrupt reaches the boot CPU");
}

/* The last CPU kicks, and the interrupt comes to the boot CPU. */
static void test_device(struct virtio_test *t)
{
	static uint8_t buffer[64];
	const struct virtq_element element = { buffer, sizeof(buffer) };
	uint32_t len;

	virtio_test_negotiate(t, 0);
	virtq_setup_at_most(&queue, t->device, 0, QUEUE_SIZE);
	virtio_driver_ok(t->device);
	for (unsigned int i = 0; i < QUEUE_SIZE; i++) {
		const uint32_t seen = t->device->used_interrupts;

		virtq_add(&queue, &element, 0, 1, VIRTQ_DIRECT, buffer);
		__atomic_store_n(&wish, KICK, __ATOMIC_RELEASE);
		tap_ok(virtio_wait_interrupt(t->device, seen) && virtq_sleep(&queue)
		       && virtq_get_used(&queue, &len) == buffer,
		       "%s: what another CPU kicks for comes back (2.7.13)", t->label);
		while (__atomic_load_n(&wish, __ATOMIC_ACQUIRE) != HOLD)
			cpu_relax();
	}
	virtio_reset(t->device);
}

const char *const guest_options[] = { "smp.end", NULL };

static bool is_on_command_line(void)
{
	return cmdline_option("virtio_mmio.device");
}

int main(void)
{
	const unsigned int count = cpu_count();
	const char *const end = cmdline_option("smp.end");
	struct report boot;

	tap_note("%u CPUs", count);
	if (end && !string_equal(end, "boot"))
		tap_bail_out("smp.end=%s is not boot", end);
	if (count < 2 || count > CPUS_MAX)
		tap_bail_out("between 2 and %u CPUs are needed", CPUS_MAX);
	report(&boot);
	tap_is(boot.local_apic, 0, "the boot CPU's local APIC has ID 0");
	tap_is(boot.initial, 0, "CPUID gives it the initial APIC ID 0");

	awaited_vector = ipi_register(count_interrupt, NULL);
	test_start(count);
	test_interrupts(count);
	if (is_on_command_line())
		virtio_test_each(VIRTIO_ID_ENTROPY, "rng", test_device);
	if (end)
		tap_done();
	tap_note("the last CPU ends the run");
	__atomic_store_n(&wish, EXIT, __ATOMIC_RELEASE);
	cpu_stop();
}

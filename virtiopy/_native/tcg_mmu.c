/* SPDX-License-Identifier: MIT */
/*
 * TLB misses in 64-bit mode, and the pages that hold translated code.
 *
 * Unicorn walks page tables by way of its model of a bus, eight look-ups a miss; here they are read where
 * they are.  And it has each store to a page that may be executed look for code there: which, before a
 * kernel has protected its data, is all of memory.  Here a page is mapped for execution only when code is
 * fetched from it.  So there are three things to see to, for all ways that a page is mapped at once:
 *
 *   - Code is fetched from a page that may be mapped for quick stores: the TLB is flushed.
 *   - A page with code is to be stored to by a mapping that is executable: it stays so, and each store
 *     looks for code.  That is how code rewrites itself.
 *   - A page with code is to be stored to by one that is not, as where a kernel uses memory again: its
 *     code is forgotten, the TLB is flushed, and it is a page without code.
 *
 * What faults, and all that is not plain 4-level paging, is Unicorn's own to do.  Its functions that are
 * called here have no header: they are QEMU 5.0's.
 */
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

#define PAGE		0x1000ull
#define PTE_ADDRESS	0x000ffffffffff000ull
#define PTE_PRESENT	(1ull << 0)
#define PTE_WRITABLE	(1ull << 1)
#define PTE_USER	(1ull << 2)
#define PTE_ACCESSED	(1ull << 5)
#define PTE_DIRTY	(1ull << 6)
#define PTE_LARGE	(1ull << 7)
#define PTE_NX		(1ull << 63)
/* Bits that make an entry none of ours: above 40 bits of physical address, below those for software. */
#define PTE_RESERVED	0x000fff0000000000ull

#define CR0_PG		(1ull << 31)
#define CR4_OTHERS	(1ull << 12 | 1ull << 20 | 1ull << 21 | 1ull << 22)	/* LA57, SMEP, SMAP, PKE */
#define EFER_NX		(1ull << 11)

enum { PROT_R = 1, PROT_W = 2, PROT_X = 4 };
enum { ACCESS_LOAD, ACCESS_STORE, ACCESS_FETCH };
enum { MMU_USER = 1 };

typedef bool fill_tlb(void *cpu, uint64_t address, int size, int access, int mmu, bool probe,
		      uintptr_t retaddr);

struct vp_tcg_mmu {
	void *cpu;			/* CPUState */
	void (*set_page)(void *cpu, uint64_t address, uint64_t physical, int prot, int mmu,
			 uint64_t size);
	void (*flush)(void *cpu);
	void (*forget_code)(void *engine, uint64_t start, uint64_t end);
	uint64_t (*ram_address)(void *engine, void *host);
	uint8_t *code[VP_TCG_REGIONS];	/* a byte a page: code was fetched from it */
	uint8_t *quick[VP_TCG_REGIONS];	/* it may be mapped for stores that look for no code */
};

/* x86_cpu_tlb_fill, the same for all engines. */
static fill_tlb *unicorns_fill;

_Thread_local struct vp_tcg *vp_tcg_running;

void vp_tcg_enter(struct vp_tcg *tcg)
{
	vp_tcg_running = tcg;
}

/* The CPUState. */
void *vp_tcg_cpu_state(const struct vp_tcg *tcg)
{
	return tcg->mmu->cpu;
}

static int find_region(const struct vp_tcg *tcg, uint64_t address)
{
	for (uint32_t i = 0; i < tcg->region_count; i++)
		if (address - tcg->regions[i].guest_address < tcg->regions[i].size)
			return (int)i;
	return -1;
}

static uint8_t *host(const struct vp_tcg *tcg, int region, uint64_t address)
{
	const struct vp_tcg_region *place = &tcg->regions[region];

	return (uint8_t *)(uintptr_t)place->host_address + (address - place->guest_address);
}

/* A page table entry in memory; NULL where there is none. */
static uint64_t *entry_at(const struct vp_tcg *tcg, uint64_t address)
{
	int region = find_region(tcg, address);

	return region < 0 ? NULL : (uint64_t *)(void *)host(tcg, region, address);
}

static void flush(struct vp_tcg *tcg)
{
	for (uint32_t i = 0; i < tcg->region_count; i++)
		memset(tcg->mmu->quick[i], 0, tcg->regions[i].size / PAGE);
	tcg->mmu->flush(tcg->mmu->cpu);
}

static void forget_code(struct vp_tcg *tcg, int region, uint64_t page)
{
	uint64_t start = tcg->mmu->ram_address(tcg->engine, host(tcg, region, page));

	tcg->mmu->forget_code(tcg->engine, start, start + PAGE);
}

/* Says how a page of memory is to be mapped for an access, where its tables allow `prot`. */
static int place_page(struct vp_tcg *tcg, uint64_t page, int access, int prot)
{
	int region = find_region(tcg, page);
	uint64_t index;
	uint8_t *code, *quick;

	if (region < 0)
		return prot;
	index = (page - tcg->regions[region].guest_address) / PAGE;
	code = &tcg->mmu->code[region][index];
	quick = &tcg->mmu->quick[region][index];
	if (access == ACCESS_FETCH) {
		if (*quick)
			flush(tcg);
		*code = 1;
		return prot;
	}
	if (*code) {
		if (prot & PROT_X)
			return prot;
		if (access != ACCESS_STORE)
			return prot & ~PROT_W;
		forget_code(tcg, region, page);
		flush(tcg);
		*code = 0;
	}
	if (prot & PROT_W)
		*quick = 1;
	return prot & ~PROT_X;
}

/* Walks the tables; returns whether the access is allowed and the page is mapped. */
static bool fill(struct vp_tcg *tcg, uint64_t address, int access, int mmu)
{
	struct vp_tcg_cpu *cpu = tcg->cpu;
	uint64_t table = cpu->cr[3] & PTE_ADDRESS, *place, entry, size, page;
	uint64_t nx_allowed = cpu->efer & EFER_NX ? PTE_NX : 0;
	bool user = true, writable = true, nx = false;
	int level, prot = PROT_R;

	if (!(cpu->cr[0] & CR0_PG) || !(cpu->efer & EFER_LMA) || (cpu->cr[4] & CR4_OTHERS)
	    || (uint64_t)((int64_t)address >> 47) + 1 > 1)
		return false;
	for (level = 39; ; level -= 9) {
		place = entry_at(tcg, table + (address >> level & 0x1ff) * 8);
		if (!place)
			return false;
		entry = *place;
		if (!(entry & PTE_PRESENT) || (entry & (PTE_RESERVED | (PTE_NX & ~nx_allowed))))
			return false;
		user &= !!(entry & PTE_USER);
		writable &= !!(entry & PTE_WRITABLE);
		nx |= !!(entry & PTE_NX);
		table = entry & PTE_ADDRESS;
		if (level == 12 || (level < 39 && (entry & PTE_LARGE)))
			break;
		if (level == 39 && (entry & PTE_LARGE))
			return false;
		if (!(entry & PTE_ACCESSED))
			*place = entry | PTE_ACCESSED;
	}
	size = 1ull << level;
	if (level > 12) {
		/* Bit 12 is the attribute table's, and the others have to be 0. */
		table &= ~(1ull << 12);
		if (table & (size - 1))
			return false;
	}
	if (mmu == MMU_USER && !user)
		return false;
	if (access == ACCESS_FETCH && nx)
		return false;
	writable |= mmu != MMU_USER && !(cpu->cr[0] & CR0_WP);
	if (access == ACCESS_STORE) {
		if (!writable)
			return false;
		if ((entry & (PTE_ACCESSED | PTE_DIRTY)) != (PTE_ACCESSED | PTE_DIRTY))
			*place = entry |= PTE_ACCESSED | PTE_DIRTY;
	} else if (!(entry & PTE_ACCESSED)) {
		*place = entry |= PTE_ACCESSED;
	}
	/* The first store has to come here, for the dirty bit. */
	if (writable && (entry & PTE_DIRTY))
		prot |= PROT_W;
	if (!nx)
		prot |= PROT_X;
	page = (table | (address & (size - 1))) & ~(PAGE - 1);
	prot = place_page(tcg, page, access, prot);
	tcg->mmu->set_page(tcg->mmu->cpu, address & ~(PAGE - 1), page, prot, mmu, size);
	return true;
}

static bool fill_or_fault(void *cpu, uint64_t address, int size, int access, int mmu, bool probe,
			  uintptr_t retaddr)
{
	struct vp_tcg *tcg = vp_tcg_running;

	if (tcg && tcg->mmu->cpu == cpu && fill(tcg, address, access, mmu))
		return true;
	return unicorns_fill(cpu, address, size, access, mmu, probe, retaddr);
}

static void (*unicorns_reset_dirty)(void *cpu, uint64_t address, uint64_t length);

/*
 * In the place of tlb_reset_dirty_by_vaddr: code was translated from here, and the next store has to look for
 * it.  Unicorn goes through all of the TLB to say so at each block that it translates.  But only a mapping
 * without execution is ever let off looking, and where code comes from has none of those: see above.  With
 * SMEP a supervisor's mapping of a user's page is one, which is Unicorn's own to map.
 */
static void reset_dirty(void *cpu, uint64_t address, uint64_t length)
{
	struct vp_tcg *tcg = vp_tcg_running;

	if (!tcg || tcg->mmu->cpu != cpu || !tcg->has_mmu || (tcg->cpu->cr[4] & CR4_OTHERS))
		unicorns_reset_dirty(cpu, address, length);
}

void vp_tcg_replace_mmu(void *library)
{
	*(void **)&unicorns_reset_dirty = dlsym(library, "tlb_reset_dirty_by_vaddr_x86_64");
	if (unicorns_reset_dirty)
		vp_tcg_replace(library, "tlb_reset_dirty_by_vaddr_x86_64", (void *)reset_dirty);
}

/*
 * Has TLB misses of the CPU (a CPUState) come here, in the place of Unicorn's own function: the pointers to
 * that are looked for in the CPU's class, which is a part of it.  Returns how many there were, 0 where this
 * Unicorn is another, which then goes on as it is; or a negative errno.
 */
int vp_tcg_take_over_mmu(const char *library, struct vp_tcg *tcg, uintptr_t cpu)
{
	void *unicorn = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
	struct vp_tcg_mmu *mmu = calloc(1, sizeof(*mmu));
	uintptr_t *word = (uintptr_t *)cpu, *end;
	int found = 0;

	if (!unicorn || !mmu) {
		free(mmu);
		return -ENOENT;
	}
	mmu->cpu = (void *)cpu;
	unicorns_fill = (fill_tlb *)dlsym(unicorn, "x86_cpu_tlb_fill_x86_64");
	mmu->set_page = (__typeof__(mmu->set_page))dlsym(unicorn, "tlb_set_page_x86_64");
	mmu->flush = (__typeof__(mmu->flush))dlsym(unicorn, "tlb_flush_x86_64");
	mmu->forget_code = (__typeof__(mmu->forget_code))dlsym(unicorn, "tb_invalidate_phys_range_x86_64");
	mmu->ram_address = (__typeof__(mmu->ram_address))dlsym(unicorn, "qemu_ram_addr_from_host_x86_64");
	dlclose(unicorn);
	tcg->mmu = mmu;
	if (!unicorns_fill || !mmu->set_page || !mmu->flush || !mmu->forget_code || !mmu->ram_address)
		return 0;
	for (uint32_t i = 0; i < tcg->region_count; i++) {
		mmu->code[i] = calloc(tcg->regions[i].size / PAGE, 1);
		mmu->quick[i] = calloc(tcg->regions[i].size / PAGE, 1);
		if (!mmu->code[i] || !mmu->quick[i])
			return -ENOMEM;
	}
	end = (uintptr_t *)(cpu + malloc_usable_size((void *)cpu));
	for (; word < end; word++) {
		if (*word != (uintptr_t)unicorns_fill)
			continue;
		*word = (uintptr_t)fill_or_fault;
		found++;
	}
	return found;
}

/*
 * Forgets the code of pages that a device has written to.  For the thread that runs the engine, while that
 * stands still.
 */
void vp_tcg_written(struct vp_tcg *tcg, uint64_t address, uint64_t length)
{
	uint64_t page = address & ~(PAGE - 1);

	if (!tcg->mmu || !tcg->mmu->code[0])
		return;
	for (; page < address + length; page += PAGE) {
		int region = find_region(tcg, page);

		if (region >= 0
		    && tcg->mmu->code[region][(page - tcg->regions[region].guest_address) / PAGE])
			forget_code(tcg, region, page);
	}
}

/* Says whether a page in the range may hold translated code; for any thread. */
int vp_tcg_has_code(const struct vp_tcg *tcg, uint64_t address, uint64_t length)
{
	uint64_t page = address & ~(PAGE - 1);

	if (!tcg->mmu || !tcg->mmu->code[0])
		return 0;
	for (; page < address + length; page += PAGE) {
		int region = find_region(tcg, page);

		if (region >= 0
		    && tcg->mmu->code[region][(page - tcg->regions[region].guest_address) / PAGE])
			return 1;
	}
	return 0;
}

void vp_tcg_free(struct vp_tcg *tcg)
{
	if (!tcg->mmu)
		return;
	for (uint32_t i = 0; i < tcg->region_count; i++) {
		free(tcg->mmu->code[i]);
		free(tcg->mmu->quick[i]);
	}
	free(tcg->mmu);
	tcg->mmu = NULL;
}

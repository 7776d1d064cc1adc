// SPDX-License-Identifier: MIT
/* The C side of the PVH boot: reads hvm_start_info, then runs main(). */
#include "cpu.h"
#include "runtime.h"

/* Xen's public/arch-x86/hvm/start_info.h describes both structures. */
#define XEN_HVM_START_MAGIC_VALUE	0x336ec578
#define XEN_HVM_MEMMAP_TYPE_RAM		1
#define HVM_START_INFO_HAS_MEMMAP	1	/* from this version on */

struct hvm_start_info {
	uint32_t magic;
	uint32_t version;
	uint32_t flags;
	uint32_t nr_modules;
	uint64_t modlist_paddr;
	uint64_t cmdline_paddr;
	uint64_t rsdp_paddr;
	uint64_t memmap_paddr;
	uint32_t memmap_entries;
	uint32_t reserved;
};

struct hvm_memmap_table_entry {
	uint64_t addr;
	uint64_t size;
	uint32_t type;
	uint32_t reserved;
};

#define IDENTITY_MAP_END	(UINT64_C(4) << 30)	/* see start.S */

extern char image_end[];

_Noreturn void boot(const struct hvm_start_info *info);

_Noreturn void exit(int status)
{
	console_flush();
	outb(EXIT_PORT, (uint8_t)status);
	cpu_stop();
}

/* The memory behind the image, up to the end of the RAM that the image lies in. */
static void find_memory(const struct hvm_start_info *info)
{
	const struct hvm_memmap_table_entry *entry = (const void *)info->memmap_paddr;
	const uint64_t start = (uint64_t)image_end;

	if (info->version < HVM_START_INFO_HAS_MEMMAP || !info->memmap_entries)
		tap_bail_out("hvm_start_info has no memory map");

	for (uint32_t i = 0; i < info->memmap_entries; i++, entry++) {
		uint64_t end = entry->addr + entry->size;

		if (entry->type == XEN_HVM_MEMMAP_TYPE_RAM && entry->addr <= start && start < end) {
			memory_init(start, MIN(end, IDENTITY_MAP_END));
			return;
		}
	}
	tap_bail_out("the memory map has no RAM at %p, where the image ends", (void *)start);
}

_Noreturn void boot(const struct hvm_start_info *info)
{
	interrupts_init();
	if (info->magic != XEN_HVM_START_MAGIC_VALUE)
		tap_bail_out("ebx = %p points to no hvm_start_info", (const void *)info);

	/* Both copy what they need: the structures may lie in the memory that is handed out next. */
	if (info->cmdline_paddr)
		cmdline_init((const char *)info->cmdline_paddr);
	find_memory(info);

	exit(main());
}

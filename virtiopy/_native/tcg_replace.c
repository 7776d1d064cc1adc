/* SPDX-License-Identifier: MIT */
/*
 * Functions of Unicorn's that are replaced by ours.
 *
 * Unicorn is built so that its own calls of exported functions go through tables of addresses, which the
 * dynamic linker fills in (System V ABI, AMD64 supplement, 4.4): what is loaded first may bring a function
 * of the same name.  We are loaded later, so the addresses are changed in the tables.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "native.h"

/* What the dynamic section says, as far as it is needed here. */
struct tables {
	const ElfW(Sym) *symbols;
	const char *names;
	const ElfW(Rela) *relocations[2];
	size_t counts[2];
	uintptr_t base;
	/* What the linker made read-only after it was filled in. */
	uintptr_t protected, protected_end;
};

static int find_protected(struct dl_phdr_info *info, size_t size, void *data)
{
	struct tables *tables = data;

	(void)size;
	if (info->dlpi_addr != tables->base)
		return 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];

		if (header->p_type != PT_GNU_RELRO)
			continue;
		tables->protected = info->dlpi_addr + header->p_vaddr;
		tables->protected_end = tables->protected + header->p_memsz;
	}
	return 1;
}

static int find_tables(void *library, struct tables *tables)
{
	struct link_map *map = NULL;

	memset(tables, 0, sizeof(*tables));
	if (dlinfo(library, RTLD_DI_LINKMAP, &map) || !map)
		return 0;
	tables->base = map->l_addr;
	for (const ElfW(Dyn) *entry = map->l_ld; entry->d_tag != DT_NULL; entry++) {
		uintptr_t value = entry->d_un.d_val;

		switch (entry->d_tag) {
		case DT_SYMTAB:
			tables->symbols = (const ElfW(Sym) *)value;
			break;
		case DT_STRTAB:
			tables->names = (const char *)value;
			break;
		case DT_RELA:
			tables->relocations[0] = (const ElfW(Rela) *)value;
			break;
		case DT_RELASZ:
			tables->counts[0] = value / sizeof(ElfW(Rela));
			break;
		case DT_JMPREL:
			tables->relocations[1] = (const ElfW(Rela) *)value;
			break;
		case DT_PLTRELSZ:
			tables->counts[1] = value / sizeof(ElfW(Rela));
			break;
		}
	}
	/* glibc has made addresses of what the file has as offsets. */
	if (!tables->symbols || !tables->names || (uintptr_t)tables->symbols < tables->base)
		return 0;
	dl_iterate_phdr(find_protected, tables);
	return 1;
}

static int write_address(const struct tables *tables, uintptr_t *place, uintptr_t value)
{
	uintptr_t size = (uintptr_t)sysconf(_SC_PAGESIZE), page = (uintptr_t)place & ~(size - 1);
	int is_protected = page >= (tables->protected & ~(size - 1)) && page < tables->protected_end;

	if (is_protected && mprotect((void *)page, size, PROT_READ | PROT_WRITE))
		return 0;
	*place = value;
	if (is_protected)
		mprotect((void *)page, size, PROT_READ);
	return 1;
}

/*
 * Has a library call `replacement` for its own exported function `name`, and name it where it takes the
 * address of that.  Returns in how many places; 0 where it calls the function directly.
 */
int vp_tcg_replace(void *library, const char *name, void *replacement)
{
	void *function = dlsym(library, name);
	struct tables tables;
	int changed = 0;

	if (!function || !find_tables(library, &tables))
		return 0;
	for (int i = 0; i < 2; i++) {
		for (size_t j = 0; j < tables.counts[i]; j++) {
			const ElfW(Rela) *relocation = &tables.relocations[i][j];
			uint64_t type = ELF64_R_TYPE(relocation->r_info);
			const ElfW(Sym) *symbol = &tables.symbols[ELF64_R_SYM(relocation->r_info)];

			if (tables.base + symbol->st_value != (uintptr_t)function || relocation->r_addend
			    || (type != R_X86_64_JUMP_SLOT && type != R_X86_64_GLOB_DAT
				&& type != R_X86_64_64)
			    || strcmp(tables.names + symbol->st_name, name) != 0)
				continue;
			changed += write_address(&tables, (uintptr_t *)(tables.base + relocation->r_offset),
						 (uintptr_t)replacement);
		}
	}
	return changed;
}

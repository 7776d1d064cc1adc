"""x86 register state, and the modes that a virtual CPU can be started in.

Knows no KVM: every accelerator sets its CPU up from these. Section numbers are those of the
Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3.
"""

import struct

from virtiopy.memory import GuestMemory
from virtiopy.records import Record

# Control registers (2.5) and IA32_EFER (2.2.1).
CR0_PE = 1 << 0
CR0_ET = 1 << 4
CR0_PG = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
EFER_LME = 1 << 8
EFER_LMA = 1 << 10

#: Bit 1 of RFLAGS is always set.
RFLAGS_RESERVED = 1 << 1

# Page table entries (4.3, 4.5).
PAGE_PRESENT = 1 << 0
PAGE_WRITABLE = 1 << 1
PAGE_SIZE_FLAG = 1 << 7

# Segment types (3.4.5.1, 3.5).
TYPE_LDT = 0x2
TYPE_DATA = 0x3
TYPE_CODE = 0xB
TYPE_TSS_BUSY = 0xB

CODE_SELECTOR = 0x08
DATA_SELECTOR = 0x10


class Registers(Record):
    """General registers, instruction pointer and flags."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = RFLAGS_RESERVED


class Segment(Record):
    """A segment register with its hidden part."""

    base: int = 0
    limit: int = 0xFFFF
    selector: int = 0
    type: int = TYPE_DATA
    present: int = 1
    dpl: int = 0
    db: int = 0
    s: int = 1
    l: int = 0  # noqa: E741 - the manual's name
    g: int = 0
    avl: int = 0
    unusable: int = 0


class DescriptorTable(Record):
    """GDTR or IDTR."""

    base: int = 0
    limit: int = 0


class SystemRegisters(Record):
    """Segments, descriptor tables, control registers: what says which mode the CPU is in."""

    cs: Segment = Segment()
    ds: Segment = Segment()
    es: Segment = Segment()
    fs: Segment = Segment()
    gs: Segment = Segment()
    ss: Segment = Segment()
    tr: Segment = Segment(type=TYPE_TSS_BUSY, s=0)
    ldt: Segment = Segment(type=TYPE_LDT, s=0)
    gdt: DescriptorTable = DescriptorTable()
    idt: DescriptorTable = DescriptorTable()
    cr0: int = CR0_ET
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    #: None leaves the CPU's own, which says where its local APIC is and that it is the first CPU.
    apic_base: int | None = None


def _with_segments(state: SystemRegisters, code: Segment, data: Segment) -> SystemRegisters:
    state.cs = code
    state.ds = state.es = state.fs = state.gs = state.ss = data
    return state


def real_mode() -> SystemRegisters:
    """16-bit real mode with all segments at 0 (20.1)."""
    state = SystemRegisters(idt=DescriptorTable(0, 0x3FF))
    return _with_segments(state, Segment(type=TYPE_CODE), Segment(type=TYPE_DATA))


def protected_mode() -> SystemRegisters:
    """32-bit protected mode without paging, with flat segments (3.2.1)."""
    state = SystemRegisters(cr0=CR0_ET | CR0_PE)
    return _with_segments(
        state,
        Segment(limit=0xFFFF_FFFF, selector=CODE_SELECTOR, type=TYPE_CODE, db=1, g=1),
        Segment(limit=0xFFFF_FFFF, selector=DATA_SELECTOR, type=TYPE_DATA, db=1, g=1),
    )


def paged_mode(page_directory: int) -> SystemRegisters:
    """32-bit protected mode with 32-bit paging and 4 MiB pages (4.3)."""
    state = protected_mode()
    state.cr3 = page_directory
    state.cr4 |= CR4_PSE
    state.cr0 |= CR0_PG
    return state


def long_mode(page_tables: int) -> SystemRegisters:
    """64-bit mode with 4-level paging (4.5, 10.8.5)."""
    state = protected_mode()
    state.cs.db, state.cs.l = 0, 1
    state.cr3 = page_tables
    state.cr4 |= CR4_PAE
    state.cr0 |= CR0_PG
    state.efer |= EFER_LME | EFER_LMA
    return state


def write_page_directory(memory: GuestMemory, address: int) -> None:
    """Write a 32-bit page directory at `address` that maps the first 4 MiB to themselves (4.3)."""
    entry = PAGE_PRESENT | PAGE_WRITABLE | PAGE_SIZE_FLAG
    memory.write(address, struct.pack("<1024I", entry, *[0] * 1023))


def write_page_tables(memory: GuestMemory, address: int) -> None:
    """Write 4-level tables, 12 KiB from `address` on, that map the first 1 GiB to itself (4.5)."""
    flags = PAGE_PRESENT | PAGE_WRITABLE
    pml4, pointers, directory = address, address + 0x1000, address + 0x2000
    entries = [page << 21 | flags | PAGE_SIZE_FLAG for page in range(512)]
    memory.write(pml4, struct.pack("<512Q", pointers | flags, *[0] * 511))
    memory.write(pointers, struct.pack("<512Q", directory | flags, *[0] * 511))
    memory.write(directory, struct.pack("<512Q", *entries))

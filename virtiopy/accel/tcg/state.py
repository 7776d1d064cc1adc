"""The state of a Unicorn engine's CPU: QEMU's `CPUX86State`, which layout.py finds."""

from virtiopy._native import CData
from virtiopy.cpu.x86 import (
    CR0_PE,
    EFER_LMA,
    DescriptorTable,
    Registers,
    Segment,
    SystemRegisters,
)
from virtiopy.errors import HostError

#: The order of `regs`, which is that of the instruction encoding.
REGISTER_ORDER = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
RSP = REGISTER_ORDER.index("rsp")

#: The order of `segs`.
SEGMENT_ORDER = ("es", "cs", "ss", "ds", "fs", "gs")
CS, SS = SEGMENT_ORDER.index("cs"), SEGMENT_ORDER.index("ss")

EFLAGS_TF = 1 << 8
EFLAGS_IF = 1 << 9
EFLAGS_VM = 1 << 17
_EFLAGS_IOPL = 3 << 12

# A segment's flags.
DESCRIPTOR_S = 1 << 12
DESCRIPTOR_P = 1 << 15
DESCRIPTOR_L = 1 << 21
DESCRIPTOR_DB = 1 << 22
DESCRIPTOR_G = 1 << 23

# hflags.
_HF_CPL = 3
_HF_INHIBIT_IRQ = 1 << 3
_HF_CS32 = 1 << 4
_HF_SS32 = 1 << 5
_HF_ADDSEG = 1 << 6
_HF_PE = 1 << 7
_HF_LMA = 1 << 14
_HF_CS64 = 1 << 15
_HF_OSFXSR = 1 << 22
#: CR0's MP, EM and TS stand at 9 in hflags.
_HF_MP_SHIFT = 9 - 1
_HF_FROM_CR0 = 7 << 9
_HF_DERIVED = (
    _HF_CPL | _HF_CS32 | _HF_SS32 | _HF_ADDSEG | _HF_PE | _HF_FROM_CR0 | _HF_LMA | _HF_CS64
    | _HF_OSFXSR | EFLAGS_TF | _EFLAGS_IOPL | EFLAGS_VM
)  # fmt: skip
_CR4_OSFXSR = 1 << 9

#: `old_exception` when the guest is not in the middle of taking one.
_NO_EXCEPTION = -1


def segment_flags(segment: Segment) -> int:
    """Return the second word of a descriptor, without base and limit (SDM volume 3, 3.4.5)."""
    return (
        segment.type << 8
        | segment.s << 12
        | segment.dpl << 13
        | segment.present << 15
        | segment.avl << 20
        | segment.l << 21
        | segment.db << 22
        | segment.g << 23
    )


def _read_segment(cache: CData) -> Segment:
    flags = cache.flags
    return Segment(
        base=cache.base,
        limit=cache.limit,
        selector=cache.selector,
        type=flags >> 8 & 0xF,
        present=flags >> 15 & 1,
        dpl=flags >> 13 & 3,
        db=flags >> 22 & 1,
        s=flags >> 12 & 1,
        l=flags >> 21 & 1,
        g=flags >> 23 & 1,
        avl=flags >> 20 & 1,
        unusable=int(not flags & DESCRIPTOR_P),
    )


def _write_segment(cache: CData, segment: Segment) -> None:
    cache.selector, cache.base, cache.limit = segment.selector, segment.base, segment.limit
    cache.flags = segment_flags(segment)


class TcgState:
    """The state of an engine's CPU, where it lives: for its owner, while the CPU stands still."""

    def __init__(self, cpu: CData, exceptions: CData) -> None:
        self.cpu = cpu
        self.exceptions = exceptions

    def check(self) -> None:
        """Look at a CPU that Unicorn has just made in 64-bit mode.

        Raises HostError where the layout must be another than ours.
        """
        if not self._is_plausible():
            raise HostError(
                "This Unicorn keeps its CPU state in a layout that virtiopy does not know: "
                "install one that it does with pip install 'unicorn>=2.1,<2.2'."
            )

    def _is_plausible(self) -> bool:
        """Say whether it looks like a CPU that Unicorn has just made in 64-bit mode."""
        return bool(
            self.exceptions.old_exception == _NO_EXCEPTION
            and self.cpu.cr[0] & CR0_PE == CR0_PE
            and self.cpu.efer & EFER_LMA == EFER_LMA
            and self.cpu.hflags & _HF_CS64 == _HF_CS64
        )

    # What the CPU may do

    @property
    def cpl(self) -> int:
        """The privilege level, 0 to 3."""
        return int(self.cpu.hflags & _HF_CPL)

    @property
    def is_protected(self) -> bool:
        """Whether protected mode is on."""
        return bool(self.cpu.cr[0] & CR0_PE)

    @property
    def is_long(self) -> bool:
        """Whether long mode is active, 64-bit or compatible."""
        return bool(self.cpu.efer & EFER_LMA)

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF."""
        return bool(self.cpu.eflags & EFLAGS_IF)

    @property
    def in_shadow(self) -> bool:
        """Whether the last instruction was one that holds interrupts off for the next (6.8.3)."""
        return bool(self.cpu.hflags & _HF_INHIBIT_IRQ)

    @property
    def instruction_address(self) -> int:
        """The linear address of the next instruction."""
        base = 0 if self.cpu.hflags & _HF_CS64 else self.cpu.segs[CS].base
        address = int(base + self.cpu.eip)
        return address if self.cpu.hflags & _HF_CS64 else address & 0xFFFF_FFFF

    def exception_taken(self) -> None:
        """Forget the exception: Unicorn, which never delivers one, would see it nested forever."""
        self.exceptions.old_exception = _NO_EXCEPTION

    def update_hflags(self) -> None:
        """Derive hflags from the registers, as QEMU's x86_update_hflags does."""
        cpu = self.cpu
        cs, ss = cpu.segs[CS].flags, cpu.segs[SS].flags
        hflags = cpu.hflags & ~_HF_DERIVED & ~_HF_INHIBIT_IRQ
        hflags |= cpu.cr[0] << _HF_MP_SHIFT & _HF_FROM_CR0
        hflags |= cpu.eflags & (EFLAGS_TF | EFLAGS_VM | _EFLAGS_IOPL)
        if cpu.cr[4] & _CR4_OSFXSR:
            hflags |= _HF_OSFXSR
        if self.is_protected:
            hflags |= _HF_PE | ss >> 13 & _HF_CPL
        if self.is_long:
            hflags |= _HF_LMA
        if self.is_long and cs & DESCRIPTOR_L:
            cpu.hflags = hflags | _HF_CS32 | _HF_SS32 | _HF_CS64
            return
        if cs & DESCRIPTOR_DB:
            hflags |= _HF_CS32
        if ss & DESCRIPTOR_DB:
            hflags |= _HF_SS32
        bases = [cpu.segs[SEGMENT_ORDER.index(name)].base for name in ("ds", "es", "ss")]
        flat = self.is_protected and cs & DESCRIPTOR_DB and not cpu.eflags & EFLAGS_VM
        if any(bases) or not flat:
            hflags |= _HF_ADDSEG
        cpu.hflags = hflags

    # The accelerators' common form

    def get_registers(self) -> Registers:
        """Return the general registers."""
        values = dict(zip(REGISTER_ORDER, self.cpu.regs, strict=True))
        return Registers(**values, rip=self.cpu.eip, rflags=self.cpu.eflags)

    def set_registers(self, registers: Registers) -> None:
        """Set the general registers."""
        for index, name in enumerate(REGISTER_ORDER):
            self.cpu.regs[index] = getattr(registers, name)
        self.cpu.eip = registers.rip
        self.cpu.eflags = registers.rflags
        self.update_hflags()

    def get_system_registers(self) -> SystemRegisters:
        """Return what says which mode the CPU is in."""
        cpu = self.cpu
        state = SystemRegisters(
            tr=_read_segment(cpu.tr),
            ldt=_read_segment(cpu.ldt),
            gdt=DescriptorTable(cpu.gdt.base, cpu.gdt.limit),
            idt=DescriptorTable(cpu.idt.base, cpu.idt.limit),
            cr0=cpu.cr[0],
            cr2=cpu.cr[2],
            cr3=cpu.cr[3],
            cr4=cpu.cr[4],
            efer=cpu.efer,
        )
        for index, name in enumerate(SEGMENT_ORDER):
            setattr(state, name, _read_segment(cpu.segs[index]))
        return state

    def set_system_registers(self, state: SystemRegisters) -> None:
        """Set what says which mode the CPU is in."""
        cpu = self.cpu
        for index, name in enumerate(SEGMENT_ORDER):
            _write_segment(cpu.segs[index], getattr(state, name))
        _write_segment(cpu.tr, state.tr)
        _write_segment(cpu.ldt, state.ldt)
        cpu.gdt.base, cpu.gdt.limit = state.gdt.base, state.gdt.limit
        cpu.idt.base, cpu.idt.limit = state.idt.base, state.idt.limit
        cpu.cr[0], cpu.cr[2], cpu.cr[3] = state.cr0, state.cr2, state.cr3
        cpu.cr[4] = state.cr4
        cpu.efer = state.efer
        self.update_hflags()

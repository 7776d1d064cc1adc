from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from virtiopy._native import ffi
from virtiopy.accel.tcg.events import Event, Exception_, TripleFault, take
from virtiopy.accel.tcg.state import EFLAGS_IF, EFLAGS_TF, TcgState
from virtiopy.cpu.x86 import (
    DescriptorTable,
    Registers,
    Segment,
    SystemRegisters,
    long_mode,
    protected_mode,
    real_mode,
    write_page_tables,
)
from virtiopy.memory import GuestMemory

GDT, IDT, TSS, TABLES = 0x1000, 0x2000, 0x3000, 0x4000
STACK, KERNEL_STACK, IST_STACK = 0x9000, 0xA000, 0xB000
RIP, HANDLER = 0x1234, 0x5678
FLAGS = 0x2 | EFLAGS_IF | EFLAGS_TF

CODE0, DATA0, CODE3, DATA3 = 0x08, 0x10, 0x18, 0x20


@dataclass
class Cpu:
    """A CPU about to take something."""

    memory: GuestMemory
    state: TcgState

    def take(self, event: Event) -> None:
        take(event, self.state, self.memory)

    def stack(self, count: int, size: int) -> list[int]:
        """The words on the stack, the top first."""
        data = self.memory.read(self.state.cpu.regs[4], count * size)
        return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]

    def set_gate(self, vector: int, *, flags: int = 0x8E00, selector: int = CODE0) -> None:
        size = 16 if self.state.is_long else 8
        gate = HANDLER | selector << 16 | flags << 32
        self.memory.write(IDT + vector * size, gate.to_bytes(size, "little"))

    @property
    def registers(self) -> Registers:
        return self.state.get_registers()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(1 << 20) as memory:
        yield memory


def make_cpu(memory: GuestMemory, system: SystemRegisters, ring: int = 0) -> Cpu:
    code_flags = 0xAF9A00 if system.cs.l else 0xCF9A00
    for selector, flags in (
        (CODE0, code_flags),
        (DATA0, 0xCF9200),
        (CODE3, code_flags | 0x6000),
        (DATA3, 0xCFF200),
    ):
        memory.write(GDT + selector, (flags << 32 | 0xFFFF).to_bytes(8, "little"))
    if system.cs.l:
        memory.write(TSS + 4, KERNEL_STACK.to_bytes(8, "little"))
        memory.write(TSS + 0x24, IST_STACK.to_bytes(8, "little"))
    else:
        memory.write(TSS + 4, KERNEL_STACK.to_bytes(4, "little"))
        memory.write(TSS + 8, DATA0.to_bytes(2, "little"))
    system.gdt = DescriptorTable(GDT, 0x27)
    system.idt = DescriptorTable(IDT, 0xFFF)
    system.tr = Segment(base=TSS, limit=0x67, selector=0x28, type=0xB, s=0)
    if ring:
        system.cs.selector, system.cs.dpl = CODE3 | 3, 3
        system.ss = Segment(limit=0xFFFF_FFFF, selector=DATA3 | 3, dpl=3, db=1, g=1)
    state = TcgState(ffi.new("struct vp_tcg_cpu *"), ffi.new("struct vp_tcg_exceptions *"))
    state.set_system_registers(system)
    state.set_registers(Registers(rip=RIP, rsp=STACK, rflags=FLAGS))
    return Cpu(memory, state)


def make_long(memory: GuestMemory, ring: int = 0) -> Cpu:
    write_page_tables(memory, TABLES)
    return make_cpu(memory, long_mode(TABLES), ring)


def test_real_mode_goes_through_the_vector_table(memory: GuestMemory) -> None:
    cpu = make_cpu(memory, real_mode())
    cpu.memory.write(IDT + 4 * 0x21, (0x0040_0010).to_bytes(4, "little"))

    cpu.take(Event(0x21, external=True))

    assert cpu.stack(3, 2) == [RIP, 0, FLAGS]
    assert (cpu.registers.rip, cpu.state.cpu.segs[1].base) == (0x10, 0x400)
    assert cpu.registers.rflags == FLAGS & ~(EFLAGS_IF | EFLAGS_TF)


def test_a_trap_gate_leaves_interrupts_on(memory: GuestMemory) -> None:
    cpu = make_cpu(memory, protected_mode())
    cpu.set_gate(0x21, flags=0x8F00)
    cpu.take(Event(0x21, external=True))
    assert cpu.registers.rflags == FLAGS & ~EFLAGS_TF


def test_protected_mode_changes_to_the_stack_of_the_inner_ring(memory: GuestMemory) -> None:
    cpu = make_cpu(memory, protected_mode(), ring=3)
    cpu.set_gate(13)

    cpu.take(Event(13, 0x50))

    assert cpu.registers.rsp == KERNEL_STACK - 24
    assert cpu.stack(6, 4) == [0x50, RIP, CODE3 | 3, FLAGS, STACK, DATA3 | 3]
    assert cpu.state.cpl == 0
    assert cpu.registers.rip == HANDLER


def test_a_16_bit_gate_pushes_words(memory: GuestMemory) -> None:
    cpu = make_cpu(memory, protected_mode())
    cpu.set_gate(0x21, flags=0x8600)
    cpu.take(Event(0x21, external=True))
    assert cpu.registers.rsp == STACK - 6
    assert cpu.stack(3, 2) == [RIP, CODE0, FLAGS]


@pytest.mark.parametrize(
    ("ring", "ist", "top"), [(0, 0, STACK), (3, 0, KERNEL_STACK), (0, 1, IST_STACK)]
)
def test_long_mode_chooses_its_stack(memory: GuestMemory, ring: int, ist: int, top: int) -> None:
    cpu = make_long(memory, ring)
    cpu.set_gate(14, flags=0x8E00 | ist)
    cs, ss = cpu.state.cpu.segs[1].selector, cpu.state.cpu.segs[2].selector

    cpu.take(Event(14, 2))

    assert cpu.registers.rsp == top - 48
    assert cpu.stack(6, 8) == [2, RIP, cs, FLAGS, STACK, ss]
    assert cpu.state.cpl == 0
    assert cpu.state.is_long


def test_long_mode_aligns_the_stack(memory: GuestMemory) -> None:
    cpu = make_long(memory)
    cpu.set_gate(0x21)
    cpu.state.cpu.regs[4] = STACK - 3
    cpu.take(Event(0x21, external=True))
    assert cpu.registers.rsp == STACK - 16 - 40


def test_an_int_instruction_needs_a_gate_that_is_open_to_its_ring(memory: GuestMemory) -> None:
    cpu = make_long(memory, ring=3)
    cpu.set_gate(0x80)
    cpu.set_gate(13)
    cpu.take(Event(0x80, software=True))
    assert cpu.stack(1, 8) == [0x80 << 3 | 2]

    cpu = make_long(memory, ring=3)
    cpu.set_gate(0x80, flags=0xEE00)
    cpu.take(Event(0x80, software=True))
    assert cpu.stack(1, 8) == [RIP]


def test_an_interrupt_without_a_gate_is_a_general_protection_fault(memory: GuestMemory) -> None:
    cpu = make_long(memory)
    cpu.set_gate(13)
    cpu.take(Event(0x21, external=True))
    assert cpu.stack(1, 8) == [0x21 << 3 | 2 | 1]


def test_a_fault_in_a_faults_delivery_is_a_double_fault(memory: GuestMemory) -> None:
    cpu = make_long(memory)
    cpu.set_gate(Exception_.DOUBLE_FAULT)
    cpu.take(Event(14, 2))
    assert cpu.stack(2, 8) == [0, RIP]


def test_a_stack_that_is_not_mapped_faults_with_its_address(memory: GuestMemory) -> None:
    cpu = make_long(memory)
    cpu.set_gate(0x21)
    cpu.set_gate(14, flags=0x8E01)
    cpu.state.cpu.regs[4] = 0x8000_0000
    cpu.take(Event(0x21, external=True))
    assert cpu.registers.rip == HANDLER
    assert cpu.stack(1, 8) == [2]
    assert cpu.state.cpu.cr[2] == 0x8000_0000 - 40


@pytest.mark.parametrize("system", [real_mode, protected_mode])
def test_without_an_idt_the_cpu_shuts_down_as_it_was(
    memory: GuestMemory, system: Callable[[], SystemRegisters]
) -> None:
    cpu = make_cpu(memory, system())
    cpu.state.cpu.idt.limit = 0
    with pytest.raises(TripleFault):
        cpu.take(Event(6))
    assert (cpu.registers.rip, cpu.registers.rsp) == (RIP, STACK)

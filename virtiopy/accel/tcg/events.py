"""Taking an interrupt or exception as the CPU does: through the IDT, onto a stack, into a handler.

SDM volume 3, chapter 6, and 20.1.4 for real mode. Not there: task gates, virtual-8086 mode.
"""

import enum
from dataclasses import dataclass

from virtiopy._native import CData
from virtiopy.accel.tcg.paging import LinearMemory, PageFault
from virtiopy.accel.tcg.state import (
    CS,
    DESCRIPTOR_DB,
    DESCRIPTOR_G,
    DESCRIPTOR_L,
    DESCRIPTOR_P,
    DESCRIPTOR_S,
    EFLAGS_IF,
    EFLAGS_TF,
    RSP,
    SS,
    TcgState,
)
from virtiopy.memory import AddressError, GuestMemory


class Exception_(enum.IntEnum):  # noqa: N801 - the other name is taken
    """Vectors of exceptions (table 6-1)."""

    INVALID_OPCODE = 6
    DOUBLE_FAULT = 8
    INVALID_TSS = 10
    SEGMENT_NOT_PRESENT = 11
    STACK_FAULT = 12
    GENERAL_PROTECTION = 13
    PAGE_FAULT = 14


_WITH_ERROR_CODE = frozenset([8, 10, 11, 12, 13, 14, 17, 21, 29, 30])
_CONTRIBUTORY = frozenset([0, 10, 11, 12, 13])

# Bits of an error code that names a gate (6.13).
_EXTERNAL = 1
_IN_IDT = 2

_FLAG_NT = 1 << 14
_FLAG_RF = 1 << 16
_FLAG_VM = 1 << 17

# Gate types (3.5); bit 3 says 32 bits, or 64 in long mode.
_INTERRUPT_GATES = (0x6, 0xE)
_TRAP_GATES = (0x7, 0xF)
_SIZE_32 = 0x8

_CONFORMING_CODE = 0x4
_CODE = 0x8


@dataclass(slots=True, frozen=True)
class Event:
    """What the CPU is to take.

    `software` is an int instruction, whose gate must allow it to who ran it; `external` comes
    from the interrupt chips.
    """

    vector: int
    error_code: int = 0
    software: bool = False
    external: bool = False

    @property
    def has_error_code(self) -> bool:
        """Whether the CPU pushes one."""
        return not (self.software or self.external) and self.vector in _WITH_ERROR_CODE


class TripleFault(Exception):  # noqa: N818 - the manual's name
    """The CPU could not even deliver a double fault, and shuts down (6.15, interrupt 8)."""


class _Fault(Exception):  # noqa: N818
    """Delivering failed with another exception."""

    def __init__(self, vector: int, error_code: int) -> None:
        super().__init__(vector)
        self.event = Event(vector, error_code)


def take(event: Event, state: TcgState, memory: GuestMemory) -> None:
    """Change `state` and the guest's stack to the first instruction of the event's handler.

    Raises TripleFault.
    """
    while True:
        try:
            _Delivery(event, state, memory).run()
        except _Fault as fault:
            event = _combine(event, fault.event)
        else:
            return


def _combine(first: Event, second: Event) -> Event:
    """Say what becomes of an exception while another event is delivered (table 6-5)."""
    page_fault = Exception_.PAGE_FAULT
    if first.software or first.external:
        return second
    if first.vector == Exception_.DOUBLE_FAULT:
        raise TripleFault
    contributory = second.vector in _CONTRIBUTORY
    if (first.vector in _CONTRIBUTORY and contributory) or (
        first.vector == page_fault and (contributory or second.vector == page_fault)
    ):
        return Event(Exception_.DOUBLE_FAULT)
    return second


@dataclass(slots=True, frozen=True)
class _Gate:
    selector: int
    offset: int
    type: int
    dpl: int
    present: bool
    stack: int


@dataclass(slots=True, frozen=True)
class _Descriptor:
    """A code or data segment's descriptor (3.4.5)."""

    base: int
    limit: int
    flags: int

    @classmethod
    def parse(cls, data: bytes) -> "_Descriptor":
        raw = int.from_bytes(data, "little")
        limit = raw & 0xFFFF | raw >> 32 & 0xF0000
        flags = raw >> 32
        if flags & DESCRIPTOR_G:
            limit = limit << 12 | 0xFFF
        base = raw >> 16 & 0xFF_FFFF | raw >> 32 & 0xFF00_0000
        return cls(base, limit, flags & 0xF0FF00)

    @property
    def type(self) -> int:
        return self.flags >> 8 & 0xF

    @property
    def dpl(self) -> int:
        return self.flags >> 13 & 3

    def load(self, cache: CData, selector: int) -> None:
        cache.selector, cache.base, cache.limit = selector, self.base, self.limit
        cache.flags = self.flags


class _Delivery:
    """One attempt. The registers change only after everything that can fail has not."""

    def __init__(self, event: Event, state: TcgState, memory: GuestMemory) -> None:
        self.event = event
        self.state = state
        self.cpu = cpu = state.cpu
        self.linear = LinearMemory(memory, cpu.cr[0], cpu.cr[3], cpu.cr[4], cpu.efer)

    def run(self) -> None:
        try:
            if not self.state.is_protected:
                self._real()
            else:
                self._protected()
        except PageFault as fault:
            self.cpu.cr[2] = fault.address
            raise _Fault(Exception_.PAGE_FAULT, fault.error_code) from fault
        except AddressError as error:
            # Tables or a stack where no memory is: a bus that reads as ones has no use for them.
            raise _Fault(Exception_.GENERAL_PROTECTION, 0) from error
        self.state.update_hflags()

    # Real mode

    def _real(self) -> None:
        cpu, vector = self.cpu, self.event.vector
        if vector * 4 + 3 > cpu.idt.limit:
            raise _Fault(Exception_.GENERAL_PROTECTION, 0)
        target = int.from_bytes(self.linear.read(cpu.idt.base + vector * 4, 4), "little")
        frame = (cpu.eip, cpu.segs[CS].selector, cpu.eflags)
        pointer = cpu.regs[RSP] - 6 & 0xFFFF
        data = b"".join((word & 0xFFFF).to_bytes(2, "little") for word in frame)
        self.linear.write(cpu.segs[SS].base + pointer, data)
        cpu.regs[RSP] = cpu.regs[RSP] & ~0xFFFF | pointer
        cpu.eflags &= ~(EFLAGS_IF | EFLAGS_TF)
        cpu.segs[CS].selector, cpu.segs[CS].base = target >> 16, target >> 16 << 4
        cpu.eip = target & 0xFFFF

    # Protected and long mode

    def _protected(self) -> None:
        cpu, event = self.cpu, self.event
        gate = self._read_gate()
        code = self._read_descriptor(gate.selector, Exception_.GENERAL_PROTECTION)
        privilege = self._check_code(code, gate.selector)
        cpl = self.state.cpl
        wide = self.state.is_long
        size = 8 if wide else 4 if gate.type & _SIZE_32 else 2

        # What it returns to; the stack too, where that is another one.
        frame: list[int] = [cpu.eip, cpu.segs[CS].selector, cpu.eflags]
        if wide or privilege < cpl:
            frame += [cpu.regs[RSP], cpu.segs[SS].selector]
        if event.has_error_code:
            frame.insert(0, event.error_code)
        mask = (1 << size * 8) - 1
        data = b"".join((word & mask).to_bytes(size, "little") for word in frame)

        stack: tuple[_Descriptor, int] | None = None
        if wide:
            pointer = self._long_stack(gate, privilege) - len(data)
            self.linear.write(pointer, data)
        else:
            pointer, stack = self._push_protected(privilege, data)

        # From here on nothing fails.
        if stack is not None:
            stack[0].load(cpu.segs[SS], stack[1])
        elif wide and privilege < cpl:
            null = cpu.segs[SS]
            null.selector, null.base, null.limit = privilege, 0, 0xFFFF_FFFF
            null.flags = DESCRIPTOR_P | DESCRIPTOR_S | 3 << 8 | privilege << 13 | DESCRIPTOR_DB
        code.load(cpu.segs[CS], gate.selector & ~3 | privilege)
        cpu.regs[RSP] = pointer
        cpu.eip = gate.offset
        cleared = EFLAGS_TF | _FLAG_NT | _FLAG_RF | _FLAG_VM
        if gate.type in _INTERRUPT_GATES:
            cleared |= EFLAGS_IF
        cpu.eflags &= ~cleared

    def _error(self, selector: int, *, in_idt: bool = False) -> int:
        """Word an error code that names a selector, or a gate (6.13)."""
        return selector | in_idt * _IN_IDT | (not self.event.software) * _EXTERNAL

    def _read_gate(self) -> _Gate:
        cpu, vector = self.cpu, self.event.vector
        size = 16 if self.state.is_long else 8
        error = self._error(vector << 3, in_idt=True)
        if vector * size + size - 1 > cpu.idt.limit:
            raise _Fault(Exception_.GENERAL_PROTECTION, error)
        raw = int.from_bytes(self.linear.read(cpu.idt.base + vector * size, size), "little")
        gate = _Gate(
            selector=raw >> 16 & 0xFFFF,
            offset=raw & 0xFFFF | raw >> 32 & 0xFFFF_FFFF_FFFF_0000,
            type=raw >> 40 & 0xF,
            dpl=raw >> 45 & 3,
            present=bool(raw >> 47 & 1),
            stack=raw >> 32 & 7,
        )
        is_gate = gate.type in _INTERRUPT_GATES + _TRAP_GATES and not raw >> 44 & 1
        if not is_gate or (self.state.is_long and not gate.type & _SIZE_32):
            raise _Fault(Exception_.GENERAL_PROTECTION, error)
        if self.event.software and gate.dpl < self.state.cpl:
            raise _Fault(Exception_.GENERAL_PROTECTION, error)
        if not gate.present:
            raise _Fault(Exception_.SEGMENT_NOT_PRESENT, error)
        return gate

    def _read_descriptor(self, selector: int, exception: Exception_) -> _Descriptor:
        table = self.cpu.ldt if selector & 4 else self.cpu.gdt
        offset = selector & ~7
        if not selector & ~3 or offset + 7 > table.limit:
            raise _Fault(exception, self._error(selector & ~3))
        return _Descriptor.parse(self.linear.read(table.base + offset, 8))

    def _check_code(self, code: _Descriptor, selector: int) -> int:
        """Return the privilege level that the handler runs at."""
        error = self._error(selector & ~3)
        if not code.flags & DESCRIPTOR_S or not code.type & _CODE or code.dpl > self.state.cpl:
            raise _Fault(Exception_.GENERAL_PROTECTION, error)
        if self.state.is_long and (not code.flags & DESCRIPTOR_L or code.flags & DESCRIPTOR_DB):
            raise _Fault(Exception_.GENERAL_PROTECTION, error)
        if not code.flags & DESCRIPTOR_P:
            raise _Fault(Exception_.SEGMENT_NOT_PRESENT, error)
        return self.state.cpl if code.type & _CONFORMING_CODE else code.dpl

    def _long_stack(self, gate: _Gate, privilege: int) -> int:
        """Return the top of the handler's stack, aligned (6.14.2, 6.14.4)."""
        if gate.stack:
            pointer = self._read_tss(0x24 + 8 * (gate.stack - 1), 8)
        elif privilege < self.state.cpl:
            pointer = self._read_tss(0x04 + 8 * privilege, 8)
        else:
            pointer = self.cpu.regs[RSP]
        return int(pointer) & ~0xF

    def _push_protected(
        self, privilege: int, data: bytes
    ) -> tuple[int, tuple[_Descriptor, int] | None]:
        """Push the frame; return the stack pointer, and the new stack segment if there is one."""
        cpu = self.cpu
        if privilege == self.state.cpl:
            base, flags, pointer = cpu.segs[SS].base, cpu.segs[SS].flags, cpu.regs[RSP]
            stack = None
        else:
            # A 32-bit TSS (7.2.1).
            pointer = self._read_tss(4 + 8 * privilege, 4)
            selector = self._read_tss(8 + 8 * privilege, 2)
            segment = self._read_descriptor(selector, Exception_.INVALID_TSS)
            if segment.dpl != privilege or not segment.flags & DESCRIPTOR_S:
                raise _Fault(Exception_.INVALID_TSS, self._error(selector & ~3))
            if not segment.flags & DESCRIPTOR_P:
                raise _Fault(Exception_.STACK_FAULT, self._error(selector & ~3))
            base, flags, stack = segment.base, segment.flags, (segment, selector)
        mask = 0xFFFF_FFFF if flags & DESCRIPTOR_DB else 0xFFFF
        top = pointer - len(data) & mask
        self.linear.write(base + top & 0xFFFF_FFFF, data)
        return int(pointer & ~mask | top), stack

    def _read_tss(self, offset: int, size: int) -> int:
        tr = self.cpu.tr
        if offset + size - 1 > tr.limit:
            raise _Fault(Exception_.INVALID_TSS, self._error(tr.selector & ~3))
        return int.from_bytes(self.linear.read(tr.base + offset, size), "little")

"""KVM: why the guest stopped."""

import pytest

from tests.unit.kvm.guest import CODE, HLT, NO_MEMORY, PAGE_TABLES, guest_of, needs_kvm
from virtiopy.cpu.exits import Exit, ExitReason, IoExit, MmioExit
from virtiopy.cpu.rare_exits import (
    InternalErrorExit,
)
from virtiopy.cpu.x86 import (
    Registers,
    long_mode,
)


@needs_kvm
@pytest.mark.parametrize(
    ("instruction", "size"), [("ee", 1), ("ef", 2), ("66 ef", 4)], ids=["outb", "outw", "outl"]
)
def test_an_out_instruction_is_an_exit_with_its_data(instruction: str, size: int) -> None:
    registers = Registers(rax=0x4433_2211, rdx=0x1234)
    with guest_of(bytes.fromhex(instruction) + HLT, registers=registers) as guest:
        exit_ = guest.next_exit()
        assert isinstance(exit_, IoExit)
        assert (exit_.port, exit_.size, exit_.count, exit_.is_write) == (0x1234, size, 1, True)
        assert exit_.data == b"\x11\x22\x33\x44"[:size]


@needs_kvm
@pytest.mark.parametrize(
    ("instruction", "size"), [("ec", 1), ("ed", 2), ("66 ed", 4)], ids=["inb", "inw", "inl"]
)
def test_an_in_instruction_reads_what_is_put_into_its_exit(instruction: str, size: int) -> None:
    registers = Registers(rax=0xFFFF_FFFF, rdx=0x1234)
    with guest_of(bytes.fromhex(instruction) + HLT, registers=registers) as guest:
        exit_ = guest.next_exit()
        assert isinstance(exit_, IoExit)
        assert (exit_.port, exit_.size, exit_.count, exit_.is_write) == (0x1234, size, 1, False)
        exit_.data[:] = b"\x11\x22\x33\x44"[:size]
        assert guest.next_exit().reason is ExitReason.HLT
        rax = guest.cpu.get_registers().rax
    assert rax.to_bytes(8, "little")[:4] == b"\x11\x22\x33\x44"[:size] + b"\xff" * (4 - size)


@needs_kvm
@pytest.mark.parametrize(
    ("instruction", "size"), [("f3 6e", 1), ("f3 6f", 2), ("66 f3 6f", 4)], ids=["b", "w", "l"]
)
def test_a_string_of_outs_arrives_whole_in_however_many_exits(instruction: str, size: int) -> None:
    data, count = bytes(range(1, 1 + 20 * size)), 20
    registers = Registers(rcx=count, rsi=0x2000, rdx=0x1234)
    with guest_of(bytes.fromhex(instruction) + HLT, registers=registers) as guest:
        guest.memory.write(0x2000, data)
        written = b""
        while isinstance(exit_ := guest.next_exit(), IoExit):
            assert (exit_.port, exit_.size, exit_.is_write) == (0x1234, size, True)
            assert len(exit_.data) == exit_.size * exit_.count
            written += bytes(exit_.data)
        assert exit_.reason is ExitReason.HLT
    assert written == data


@needs_kvm
def test_a_string_of_ins_fills_memory() -> None:
    data = bytes(range(1, 21))
    registers = Registers(rcx=20, rdi=0x2000, rdx=0x1234)
    with guest_of(bytes.fromhex("f3 6c") + HLT, registers=registers) as guest:
        given = 0
        while isinstance(exit_ := guest.next_exit(), IoExit):
            assert not exit_.is_write
            exit_.data[:] = data[given : given + len(exit_.data)]
            given += len(exit_.data)
        assert guest.memory.read(0x2000, 21) == data + b"\0"


LONG_WRITES = [("88 07", 1), ("66 89 07", 2), ("89 07", 4), ("48 89 07", 8)]
LONG_READS = [("8a 07", 1), ("66 8b 07", 2), ("8b 07", 4), ("48 8b 07", 8)]


@needs_kvm
@pytest.mark.parametrize(("instruction", "size"), LONG_WRITES)
def test_a_write_where_no_memory_is_becomes_an_exit_with_its_data(
    instruction: str, size: int
) -> None:
    registers = Registers(rax=0x8877_6655_4433_2211, rdi=NO_MEMORY)
    state = long_mode(PAGE_TABLES)
    with guest_of(bytes.fromhex(instruction) + HLT, state=state, registers=registers) as guest:
        exit_ = guest.next_exit()
        assert isinstance(exit_, MmioExit)
        assert (exit_.address, exit_.is_write) == (NO_MEMORY, True)
        assert exit_.data == bytes.fromhex("1122334455667788")[:size]


@needs_kvm
@pytest.mark.parametrize(("instruction", "size"), LONG_READS)
def test_a_read_where_no_memory_is_gets_what_is_put_into_its_exit(
    instruction: str, size: int
) -> None:
    registers = Registers(rax=0, rdi=NO_MEMORY + 8)
    state = long_mode(PAGE_TABLES)
    with guest_of(bytes.fromhex(instruction) + HLT, state=state, registers=registers) as guest:
        exit_ = guest.next_exit()
        assert isinstance(exit_, MmioExit)
        assert (exit_.address, exit_.is_write, len(exit_.data)) == (NO_MEMORY + 8, False, size)
        exit_.data[:] = bytes.fromhex("1122334455667788")[:size]
        assert guest.next_exit().reason is ExitReason.HLT
        rax = guest.cpu.get_registers().rax
    assert rax.to_bytes(8, "little") == bytes.fromhex("1122334455667788")[:size].ljust(8, b"\0")


@needs_kvm
def test_without_interrupt_chips_hlt_is_an_exit_after_which_the_guest_goes_on() -> None:
    with guest_of(HLT + HLT) as guest:
        assert guest.next_exit() == Exit(ExitReason.HLT)
        assert guest.next_exit() == Exit(ExitReason.HLT)
        assert guest.cpu.get_registers().rip == CODE + 2


@needs_kvm
def test_a_triple_fault_is_an_exit() -> None:
    state = long_mode(PAGE_TABLES)
    state.idt.limit = 0
    with guest_of(b"\x0f\x0b", state=state) as guest:
        assert guest.next_exit() == Exit(ExitReason.SHUTDOWN)


@needs_kvm
def test_executing_what_is_no_memory_is_an_internal_error_that_can_be_described() -> None:
    # jmp rax
    with guest_of(
        b"\xff\xe0", state=long_mode(PAGE_TABLES), registers=Registers(rax=NO_MEMORY)
    ) as guest:
        exit_ = guest.next_exit()
    assert isinstance(exit_, InternalErrorExit)
    assert exit_.describe().startswith("KVM_EXIT_INTERNAL_ERROR, suberror EMULATION, data [")

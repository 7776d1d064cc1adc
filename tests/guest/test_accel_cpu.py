"""What a CPU does, a few instructions in 32-bit protected mode at a time, on each accelerator."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.guest.accelerators import TIMEOUT, each_accelerator, needs_unicorn
from virtiopy.accel import AcceleratorName, select
from virtiopy.accel.base import Accelerator, Cpu
from virtiopy.cpu.exits import ExitReason, IoExit, MmioExit
from virtiopy.cpu.x86 import Registers, SystemRegisters, protected_mode
from virtiopy.errors import GuestError
from virtiopy.memory import GuestMemory

CODE = 0x1000
IDT = 0x2000
GDT = 0x3000
HANDLER = 0x4000
STACK = 0x8000
COUNTER = 0x9000
MMIO = 0xD000_0000

GSI = 20
VECTOR = 0x30


@dataclass
class Guest:
    """A CPU with code to run, and what it asked for."""

    memory: GuestMemory
    accelerator: Accelerator
    cpu: Cpu
    accesses: list[tuple[str, int, bytes]] = field(default_factory=list)
    on_access: Callable[[int], bool] = lambda count: True

    def answer(self, access: IoExit | MmioExit) -> bool:
        name = "mmio" if isinstance(access, MmioExit) else "port"
        address = access.address if isinstance(access, MmioExit) else access.port
        self.accesses.append((name, address, bytes(access.data) if access.is_write else b""))
        if not access.is_write:
            access.data[:] = bytes(range(0x11, 0x11 + len(access.data)))
        return self.on_access(len(self.accesses))

    def run(self) -> ExitReason | None:
        watchdog = threading.Timer(TIMEOUT, self.cpu.stop)
        watchdog.start()
        try:
            exit_ = self.cpu.run(self.answer)
        finally:
            watchdog.cancel()
            watchdog.join()
        return None if exit_ is None else exit_.reason


def little(value: int) -> str:
    """A 32-bit operand, in hexadecimal."""
    return value.to_bytes(4, "little").hex()


def gate(handler: int, flags: int = 0x8E00) -> bytes:
    """An interrupt gate (3.5) to `handler`."""
    return (handler & 0xFFFF | 0x08 << 16 | flags << 32 | handler >> 16 << 48).to_bytes(8, "little")


def flat_tables() -> SystemRegisters:
    """Protected mode with a GDT and an IDT, which an interrupt needs."""
    state = protected_mode()
    state.gdt.base, state.gdt.limit = GDT, 0x17
    state.idt.base, state.idt.limit = IDT, 0x7FF
    return state


@contextmanager
def guest(name: str, code: str, *, interrupts: bool = False, handler: str = "") -> Iterator[Guest]:
    with GuestMemory.allocate(2 << 20) as memory:
        memory.write(CODE, bytes.fromhex(code))
        memory.write(HANDLER, bytes.fromhex(handler))
        memory.write(
            GDT, b"".join(v.to_bytes(8, "little") for v in (0, 0xCF9A000000FFFF, 0xCF92000000FFFF))
        )
        memory.write(IDT, gate(HANDLER) * 256)
        accelerator = select(name, memory, interrupts=interrupts)
        cpu = accelerator.create_cpu()
        cpu.set_system_registers(flat_tables())
        cpu.set_registers(Registers(rip=CODE, rsp=STACK, rdx=MMIO))
        try:
            yield Guest(memory, accelerator, cpu)
        finally:
            cpu.close()
            accelerator.close()


@each_accelerator
def test_accesses_are_answered_in_order_and_reads_reach_registers(name: str) -> None:
    # mov [edx], eax; mov eax, [edx+8]; out 0xe9, al; in eax, 0xf0; mov [edx+4], ax; hlt
    with guest(name, "8902 8b4208 e6e9 e5f0 66894204 f4") as it:
        assert it.run() is ExitReason.HLT

    assert it.accesses == [
        ("mmio", MMIO, bytes(4)),
        ("mmio", MMIO + 8, b""),
        ("port", 0xE9, b"\x11"),
        ("port", 0xF0, b""),
        ("mmio", MMIO + 4, b"\x11\x12"),
    ]


@each_accelerator
def test_no_access_is_answered_after_the_one_that_was_to_be_the_last(name: str) -> None:
    # Two writes in a row: mov [edx], eax; mov [edx+4], eax; hlt
    with guest(name, "8902 894204 f4") as it:
        it.on_access = lambda count: False
        assert it.run() is None

    assert len(it.accesses) == 1


@each_accelerator
def test_what_an_answer_raises_ends_the_run(name: str) -> None:
    def refuse(count: int) -> bool:
        raise GuestError("no")

    # Two writes in a row: mov [edx], eax; mov [edx+4], eax; hlt
    with guest(name, "8902 894204 f4") as it:
        it.on_access = refuse
        with pytest.raises(GuestError, match="no"):
            it.run()

    assert len(it.accesses) == 1


@each_accelerator
def test_code_that_the_guest_rewrites_runs_as_rewritten(name: str) -> None:
    # mov ecx, 2; again: mov al, 1; out 0xe9, al; mov byte [again + 1], 2; dec ecx; jnz again; hlt
    with guest(name, "b902000000 b001 e6e9 c6050610000002 49 75f2 f4") as it:
        assert it.run() is ExitReason.HLT

    assert [data for _, _, data in it.accesses] == [b"\1", b"\2"]


@each_accelerator
def test_a_stop_before_a_run_is_not_lost(name: str) -> None:
    with guest(name, "ebfe") as it:
        it.cpu.stop()
        assert it.run() is None


@each_accelerator
def test_a_spinning_guest_stops_within_100_ms(name: str) -> None:
    def run() -> None:
        cpu_ended.append(it.run())
        times.append(time.monotonic())

    cpu_ended: list[ExitReason | None] = []
    times: list[float] = []
    # out 0xe9, al; jmp $
    with guest(name, "e6e9 ebfe") as it:
        spinning = threading.Event()

        def notice(count: int) -> bool:
            spinning.set()
            return True

        it.on_access = notice
        thread = threading.Thread(target=run)
        thread.start()
        spinning.wait(TIMEOUT)
        start = time.monotonic()
        it.cpu.stop()
        thread.join()

    assert cpu_ended == [None]
    assert times[0] - start < 0.1


@each_accelerator
def test_stops_and_runs_again_lose_no_instruction_and_repeat_none(name: str) -> None:
    """Whatever instruction a stop from another thread falls upon: here, adding to memory."""
    # again: add dword [COUNTER], 1; inc ebx; cmp ebx, turns; jne again; hlt
    turns = 20_000 if name == "kvm" else 3_000_000
    code = f"830500900000 01 43 81fb{little(turns)} 75f0 f4"
    with guest(name, code) as it:
        running = True

        def pester() -> None:
            while running:
                it.cpu.stop()
                # Else it may have the CPU's lock again and again, and the guest never run.
                os.sched_yield()

        thread = threading.Thread(target=pester)
        thread.start()
        stops = 0
        try:
            while it.cpu.run(it.answer) is None:
                stops += 1
        finally:
            running = False
            thread.join()
        counted = int.from_bytes(it.memory.read(COUNTER, 4), "little")

    assert counted == turns
    assert stops > 0


# Interrupts: the handler counts in memory, ends the interrupt and returns

#: inc dword [COUNTER]; mov dword [0xfee000b0], 0; iret
COUNTING_HANDLER = "ff0500900000 c705b000e0fe00000000 cf"

#: Local APIC on, pin GSI of the IOAPIC to VECTOR.
SETUP = (
    "c705f000e0feff010000"  # mov dword [spurious vector], 0x1ff
    f"c7050000c0fe{0x10 + 2 * GSI:02x}000000"  # mov dword [IOREGSEL], entry
    f"c7051000c0fe{VECTOR:02x}000000"  # mov dword [IOWIN], VECTOR
)


def pulse(accelerator: Accelerator) -> None:
    accelerator.set_irq_line(GSI, True)
    accelerator.set_irq_line(GSI, False)


def interrupted(name: str, code: str, *, by_thread: bool) -> Guest:
    """Run `code`, where an out means "now" and one to port 0xf4 the end."""
    with guest(name, SETUP + code, interrupts=True, handler=COUNTING_HANDLER) as it:

        def answer(count: int) -> bool:
            if it.accesses[-1][1] == 0xF4:
                return False
            if by_thread:
                thread = threading.Thread(target=pulse, args=(it.accelerator,))
                threads.append(thread)
                thread.start()
            else:
                pulse(it.accelerator)
            return True

        threads: list[threading.Thread] = []
        it.on_access = answer
        it.run()
        for thread in threads:
            thread.join()
        it.accesses.append(("counter", 0, it.memory.read(COUNTER, 4)))
        return it


def count(it: Guest) -> int:
    return int.from_bytes(it.accesses[-1][2], "little")


#: wait: cmp dword [COUNTER], 0; je wait; out 0xf4, al
WAIT_AND_END = "833d0090000000 74f7 e6f4 f4"


@each_accelerator
@pytest.mark.parametrize("by_thread", [False, True], ids=["its-own-thread", "another-thread"])
def test_an_interrupt_reaches_a_spinning_guest(name: str, by_thread: bool) -> None:
    # sti; out 0xe9, al
    it = interrupted(name, "fb e6e9" + WAIT_AND_END, by_thread=by_thread)
    assert count(it) == 1


@each_accelerator
def test_an_interrupt_waits_for_sti_and_comes_after_the_next_instruction(name: str) -> None:
    # out 0xe9, al; mov ecx, 1000; again: dec ecx; jnz again; mov eax, [COUNTER]; out 0xe8, eax;
    # sti; mov eax, [COUNTER]; mov ebx, eax; mov eax, ebx; out 0xe7, eax
    code = "e6e9 b9e8030000 49 75fd a100900000 e7e8 fb a100900000 89c3 89d8 e7e7"
    with guest(name, SETUP + code + "e6f4 f4", interrupts=True, handler=COUNTING_HANDLER) as it:

        def answer(number: int) -> bool:
            if number == 1:
                pulse(it.accelerator)
            return it.accesses[-1][1] != 0xF4

        it.on_access = answer
        it.run()
        counted = int.from_bytes(it.memory.read(COUNTER, 4), "little")

    before, shadow = it.accesses[1:3]
    assert (before[1], shadow[1]) == (0xE8, 0xE7)
    assert (before[2], shadow[2]) == (bytes(4), bytes(4))
    assert counted == 1


@each_accelerator
@pytest.mark.parametrize("by_thread", [False, True], ids=["its-own-thread", "another-thread"])
def test_an_interrupt_ends_a_hlt(name: str, by_thread: bool) -> None:
    # cli; out 0xe9, al; sti; hlt; out 0xf4, al
    it = interrupted(name, "fa e6e9 fb f4 e6f4 f4", by_thread=by_thread)
    assert count(it) == 1


@needs_unicorn
def test_interrupts_from_another_thread_disturb_no_instruction() -> None:
    """Adding to memory while interrupts come as fast as they can."""
    turns = 500_000
    total = COUNTER + 0x10
    # sti; again: add dword [total], 1; inc ebx; cmp ebx, turns; jne again; out 0xf4, al
    code = f"fb 8305{little(total)}01 43 81fb{little(turns)} 75f0 e6f4 f4"
    with guest("tcg", SETUP + code, interrupts=True, handler=COUNTING_HANDLER) as it:
        it.on_access = lambda number: False
        running = True

        def pester() -> None:
            while running:
                pulse(it.accelerator)
                # A device's thread waits for its next request here, and lets the CPU's have the
                # interpreter, which each stop of the engine needs.
                time.sleep(0)

        thread = threading.Thread(target=pester)
        thread.start()
        assert it.run() is None
        running = False
        thread.join()
        counted = int.from_bytes(it.memory.read(total, 4), "little")
        interrupts = int.from_bytes(it.memory.read(COUNTER, 4), "little")

    assert counted == turns
    assert interrupts > 0


@each_accelerator
def test_the_ports_of_the_old_chips_are_taken_in_silence(name: str) -> None:
    # mov al, 0xff; out 0x21, al; out 0xa1, al; in al, 0x21; out 0xf4, al
    with guest(name, "b0ff e621 e6a1 e421 e6f4 f4", interrupts=True) as it:
        it.on_access = lambda number: False
        it.run()

    assert it.accesses == [("port", 0xF4, b"\xff")]


# Exceptions: the handler stores the error code (or what is on the stack) and cr2, and halts

#: mov eax, [esp]; mov [COUNTER], eax; mov eax, cr2; mov [COUNTER + 4], eax; hlt
STORING_HANDLER = "8b0424 a300900000 0f20d0 a304900000 f4"


@each_accelerator
@pytest.mark.parametrize(
    ("code", "stored"),
    [
        pytest.param("31c9 f7f1", CODE + 2, id="divide-error"),
        pytest.param("cd80", CODE + 2, id="int-80"),
        pytest.param("cc", CODE + 1, id="int3"),
        pytest.param("0f0b", CODE, id="invalid-opcode"),
        pytest.param("b850000000 8ed8", 0x50, id="general-protection"),
    ],
)
def test_an_exception_is_taken_with_its_frame(name: str, code: str, stored: int) -> None:
    with guest(name, code + "f4", handler=STORING_HANDLER) as it:
        reason = it.run()
        if name == AcceleratorName.KVM and reason is ExitReason.INTERNAL_ERROR:
            pytest.skip("this host's KVM cannot emulate the instruction")
        assert reason is ExitReason.HLT
        word = int.from_bytes(it.memory.read(COUNTER, 4), "little")

    assert word == stored


@needs_unicorn
@pytest.mark.parametrize(
    ("code", "error"),
    [
        pytest.param("a100004000", 0, id="read"),
        pytest.param("a300004000", 2, id="write"),
        pytest.param("a10000c000", 0, id="read-further"),
    ],
)
def test_page_faults_are_taken_again_and_again(code: str, error: int) -> None:
    """The translator's own idea of nested exceptions must not make the second a double fault."""
    # add esp, 4; inc dword [COUNTER + 8]; cmp dword [COUNTER + 8], 3; je end; iret; end: hlt
    handler = "8b0424 a300900000 0f20d0 a30490000083c404 ff0508900000 833d0890000003 7401 cf f4"
    with guest("tcg", code, handler=handler) as it:
        state = flat_tables()
        it.memory.write(0x10000, (0x83).to_bytes(4, "little") + bytes(4092))
        state.cr3, state.cr4, state.cr0 = 0x10000, 0x10, state.cr0 | 1 << 31
        it.cpu.set_system_registers(state)
        assert it.run() is ExitReason.HLT
        stored, cr2, times = (
            int.from_bytes(it.memory.read(COUNTER + 4 * n, 4), "little") for n in range(3)
        )

    assert (stored, cr2, times) == (error, int.from_bytes(bytes.fromhex(code)[1:], "little"), 3)


@needs_unicorn
def test_an_instruction_that_unicorn_cannot_fetch_is_told_with_its_address() -> None:
    # mov eax, MMIO; jmp eax
    with guest("tcg", "b8000000d0 ffe0") as it:
        exit_ = it.cpu.run(it.answer)

    assert exit_ is not None
    assert exit_.reason is ExitReason.INTERNAL_ERROR
    assert exit_.describe() == "an instruction that is not in memory"

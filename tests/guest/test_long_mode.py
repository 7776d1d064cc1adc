"""What a 64-bit kernel does with its CPU: ring 3 and back, by system calls and exceptions."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.guest.accelerators import TIMEOUT, needs_unicorn
from tests.guest.test_accel_cpu import Guest, little
from tests.patience import PATIENCE
from virtiopy.accel import select
from virtiopy.accel.tcg import cpu as tcg_cpu
from virtiopy.cpu.exits import ExitReason
from virtiopy.cpu.x86 import DescriptorTable, Registers, Segment, long_mode
from virtiopy.memory import GuestMemory

pytestmark = needs_unicorn

CODE, USER, HANDLER = 0x1000, 0x1800, 0x4000
IDT, GDT, TSS, TABLES = 0x2000, 0x3000, 0x3800, 0x10000
KERNEL_STACK, USER_STACK, OTHER_STACK = 0x8000, 0x9000, 0xA000
STORED = 0xB000

KERNEL_CS, KERNEL_SS, USER_SS, USER_CS = 0x08, 0x10, 0x1B, 0x23
#: SYSRET takes the selectors from STAR: base for user data 8 above, for user code 16 above.
STAR = (0x13 << 48 | KERNEL_CS << 32).to_bytes(8, "little")
DESCRIPTORS = (
    0,
    0x00AF_9B00_0000_FFFF,  # kernel code
    0x00CF_9300_0000_FFFF,  # kernel data
    0x00CF_F300_0000_FFFF,  # user data
    0x00AF_FB00_0000_FFFF,  # user code
)


def gate64(handler: int, dpl: int = 0, stack: int = 0) -> bytes:
    flags = 0x8E00 | dpl << 13 | stack
    low = handler & 0xFFFF | KERNEL_CS << 16 | flags << 32 | (handler >> 16 & 0xFFFF) << 48
    return low.to_bytes(8, "little") + (handler >> 32).to_bytes(8, "little")


def wrmsr(number: int, low: int, high: int = 0) -> str:
    # mov ecx, number; mov eax, low; mov edx, high; wrmsr
    return f"b9{little(number)} b8{little(low)} ba{little(high)} 0f30"


#: EFER.SCE beside LME and LMA; STAR, LSTAR, FMASK (IF and TF and the arithmetic flags).
SYSCALLS = (
    wrmsr(0xC0000080, 0x501)
    + wrmsr(0xC0000081, 0, 0x13 << 16 | KERNEL_CS)
    + wrmsr(0xC0000082, HANDLER)
    + wrmsr(0xC0000084, 0x3D5)
)

#: Loads the task register, for the stack of ring 0, and goes to USER in ring 3 by iretq.
TO_RING_3 = (
    f"66b82800 0f00d8 6a{USER_SS:02x} 68{little(USER_STACK)} 68{little(0x202)} 6a{USER_CS:02x}"
    f"68{little(USER)} 48cf"
)


@contextmanager
def kernel(
    code: str,
    user: str = "",
    handler: str = "",
    *,
    gate: bytes | None = None,
    interrupts: bool = False,
) -> Iterator[Guest]:
    """A CPU in long mode, with all of the first GiB its users' too."""
    with GuestMemory.allocate(2 << 20) as memory:
        pml4, pointers, directory = TABLES, TABLES + 0x1000, TABLES + 0x2000
        memory.write(pml4, (pointers | 7).to_bytes(8, "little"))
        memory.write(pointers, (directory | 7).to_bytes(8, "little"))
        memory.write(directory, (0x87).to_bytes(8, "little"))
        memory.write(CODE, bytes.fromhex(code))
        memory.write(USER, bytes.fromhex(user))
        memory.write(HANDLER, bytes.fromhex(handler))
        memory.write(IDT, (gate or gate64(HANDLER, dpl=3)) * 256)
        busy = 0x67 | (TSS & 0xFFFFFF) << 16 | 0x89 << 40 | (TSS >> 24) << 56
        table = b"".join(entry.to_bytes(8, "little") for entry in (*DESCRIPTORS, busy, 0))
        memory.write(GDT, table)
        memory.write(TSS + 4, KERNEL_STACK.to_bytes(8, "little"))
        memory.write(TSS + 0x24, OTHER_STACK.to_bytes(8, "little"))
        accelerator = select("tcg", memory, interrupts=interrupts)
        cpu = accelerator.create_cpu()
        state = long_mode(TABLES)
        state.gdt = DescriptorTable(GDT, len(table) - 1)
        state.idt = DescriptorTable(IDT, 0xFFF)
        state.ss = Segment(limit=0xFFFF_FFFF, selector=KERNEL_SS, db=1, g=1)
        cpu.set_system_registers(state)
        cpu.set_registers(Registers(rip=CODE, rsp=KERNEL_STACK - 0x800))
        try:
            yield Guest(memory, accelerator, cpu)
        finally:
            cpu.close()
            accelerator.close()


def stored(it: Guest, count: int) -> list[int]:
    data = it.memory.read(STORED, 8 * count)
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]


def store(register: str, index: int) -> str:
    """Write a register to STORED: mov [STORED + 8 * index], register."""
    modrm = {"rax": 0x04, "rcx": 0x0C, "rdx": 0x14, "rsp": 0x24, "rdi": 0x3C}
    prefix, code = ("4c", 0x1C) if register == "r11" else ("48", modrm[register])
    return f"{prefix}89{code:02x}25{little(STORED + 8 * index)}"


@pytest.fixture(params=["native", "python"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events by native code, and by Python's, which native code leaves the unusual to."""
    if request.param == "python":
        monkeypatch.setattr(tcg_cpu, "NATIVE_EVENTS", False)


def test_a_system_call_goes_to_the_kernel_and_comes_back() -> None:
    # In the kernel: remember rcx, r11, rsp; sysretq. In user space: stc; syscall; then a port to
    # say it is back.
    handler = store("rcx", 0) + store("r11", 1) + store("rsp", 2) + "8cc8" + store("rax", 3)
    handler += "480f07"
    # The second time: hlt (the handler of interrupt 0x80 by int).
    user = "f9 0f05 cd80"
    with kernel(SYSCALLS + TO_RING_3, user, handler, gate=gate64(HANDLER + 0x100, dpl=3)) as it:
        # mov eax, cs; ...; hlt
        it.memory.write(HANDLER + 0x100, bytes.fromhex(store("rsp", 4) + "f4"))
        assert it.run() is ExitReason.HLT
        rcx, r11, rsp, cs, stack = stored(it, 5)

    assert rcx == USER + 3
    assert r11 & 0x203 == 0x203
    # The stack is the user's still; the code is the kernel's.
    assert (rsp, cs) == (USER_STACK, KERNEL_CS)
    # int 0x80 came from user space again: by the stack of ring 0, with five words on it.
    assert stack == KERNEL_STACK - 40


def test_a_system_call_masks_the_flags_that_it_is_told_to() -> None:
    # pushfq; pop rax; remember; hlt
    with kernel(SYSCALLS + TO_RING_3, "f9 0f05", "9c58" + store("rax", 0) + "f4") as it:
        assert it.run() is ExitReason.HLT
        (flags,) = stored(it, 1)

    assert flags & 0x3D5 == 0


def test_a_prefix_of_a_system_call_is_passed_over() -> None:
    # syscall with a REX prefix
    with kernel(SYSCALLS + TO_RING_3, "480f05", store("rcx", 0) + "f4") as it:
        assert it.run() is ExitReason.HLT
        (rcx,) = stored(it, 1)

    assert rcx == USER + 3


def test_a_system_call_that_is_not_switched_on_is_an_invalid_opcode() -> None:
    # pop rax; remember; hlt: there is no error code, so it is the address.
    with kernel(TO_RING_3, "90 0f05", "58" + store("rax", 0) + "f4") as it:
        assert it.run() is ExitReason.HLT
        (address,) = stored(it, 1)

    assert address == USER + 1


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    ("user", "words"),
    [
        pytest.param("90 cd80", [USER + 3, USER_CS], id="int"),
        pytest.param("90 cc", [USER + 2, USER_CS], id="int3"),
        pytest.param("90 0f0b", [USER + 1, USER_CS], id="invalid-opcode"),
        pytest.param("90 31c9 f7f1", [USER + 3, USER_CS], id="divide-error"),
        pytest.param("90 fa", [0, USER + 1], id="general-protection"),
        # mov eax, [0x200000], which is not mapped: a user's read of nothing.
        pytest.param(f"90 8b0425{little(0x200000)}", [4, USER + 1], id="page-fault"),
    ],
)
def test_an_exception_in_ring_3_is_taken_on_the_stack_of_ring_0(
    user: str, words: list[int]
) -> None:
    # mov rax, [rsp]; mov rcx, [rsp + 8]; remember them and rsp; mov rax, cr2; hlt
    handler = "488b0424 488b4c2408" + store("rax", 0) + store("rcx", 1) + store("rsp", 2)
    handler += "8cd0" + store("rax", 3) + "0f20d0" + store("rax", 4) + "f4"
    with kernel(TO_RING_3, user, handler) as it:
        assert it.run() is ExitReason.HLT
        *top, rsp, ss, cr2 = stored(it, 5)

    assert top == words
    with_error = words[1] != USER_CS
    assert rsp == KERNEL_STACK - (48 if with_error else 40)
    assert ss == 0
    if words[0] == 4:
        assert cr2 == 0x200000


@pytest.mark.usefixtures("path")
def test_an_interrupt_stack_is_taken_from_the_task_state() -> None:
    gate = gate64(HANDLER, dpl=3, stack=1)
    with kernel(TO_RING_3, "cd80", store("rsp", 0) + "f4", gate=gate) as it:
        assert it.run() is ExitReason.HLT
        assert stored(it, 1) == [OTHER_STACK - 40]


@pytest.mark.usefixtures("path")
def test_a_gate_of_the_kernels_protects_against_int() -> None:
    # General protection, with the gate's number in the error code.
    with kernel(TO_RING_3, "cd80", "58" + store("rax", 0) + "f4", gate=gate64(HANDLER)) as it:
        assert it.run() is ExitReason.HLT
        assert stored(it, 1) == [0x80 * 8 + 2]


@pytest.mark.usefixtures("path")
def test_a_stack_that_is_not_there_is_a_triple_fault() -> None:
    # The stack of ring 0 at 1 GiB, where nothing is mapped.
    with kernel(TO_RING_3, "cd80", "f4") as it:
        it.memory.write(TSS + 4, (1 << 30).to_bytes(8, "little"))
        assert it.run() is ExitReason.SHUTDOWN


@pytest.mark.parametrize("replaces", [True, False], ids=["replaced", "hooked"])
def test_the_timer_interrupts_a_loop_and_a_hlt(
    replaces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcg_cpu, "REPLACES", replaces)
    apic = "c70425{}{}"  # mov dword [address], value
    base = 0xFEE0_0000
    # The page of the local APIC is above what is mapped: map the 4th GiB's last 2 MiB.
    code = (
        apic.format(little(0xC0000000 + 0xF0), little(0x1FF))
        + apic.format(little(0xC0000000 + 0x3E0), little(0xB))
        + apic.format(little(0xC0000000 + 0x320), little(0x40))
        + apic.format(little(0xC0000000 + 0x380), little(1_000_000))
        + "fb ebfe"
    )
    # Handler: inc ebx; cmp ebx, 2; je end; start again; EOI; sti; hlt; end: remember; hlt with IF=0
    handler = (
        "ffc3 83fb02 741a"
        + apic.format(little(0xC0000000 + 0x380), little(1_000_000))
        + apic.format(little(0xC0000000 + 0xB0), little(0))
        + "fb f4 ebfd"
        + "e6f4 ebfe"
    )
    code = code.replace("c70425", "67c70425")
    handler = handler.replace("c70425", "67c70425").replace("741a", "741c")
    with kernel(code, "", handler, interrupts=True) as it:
        # 3 to 4 GiB: a directory for the local APIC's 2 MiB at the linear address 0xC0000000.
        directory = TABLES + 0x3000
        it.memory.write(TABLES + 0x1000 + 3 * 8, (directory | 7).to_bytes(8, "little"))
        it.memory.write(directory, (base | 0x87).to_bytes(8, "little"))
        it.on_access = lambda count: False
        assert it.run() is None
        assert it.accesses[-1][:2] == ("port", 0xF4)
        assert it.cpu.get_registers().rbx == 2


def test_code_that_a_device_overwrites_runs_as_overwritten() -> None:
    # call USER; out; call USER; hlt. USER is mov al, n; out 0xe9, al; ret
    code = f"b8{little(USER)} ffd0 e6f0 b8{little(USER)} ffd0 f4"
    with kernel(code, "b001 e6e9 c3") as it:

        def overwrite(count: int) -> bool:
            if it.accesses[-1][1] == 0xF0:
                it.memory.write(USER, b"\xb0\x02")
                it.accelerator.code_written(USER, 2)
            return True

        it.on_access = overwrite
        assert it.run() is ExitReason.HLT

    assert [data for _, port, data in it.accesses if port == 0xE9] == [b"\1", b"\2"]


def pages(memory: GuestMemory, linear: int, physical: int, flags: int) -> None:
    """Map a page at a linear address of the second GiB."""
    directory, table = TABLES + 0x3000, TABLES + 0x4000
    memory.write(TABLES + 0x1000 + 8, (directory | 7).to_bytes(8, "little"))
    memory.write(directory, (table | 7).to_bytes(8, "little"))
    entry = (physical | flags).to_bytes(8, "little")
    memory.write(table + (linear >> 12 & 0x1FF) * 8, entry)


NX = 1 << 63
ALIAS = 1 << 30


def test_code_that_is_overwritten_by_another_mapping_runs_as_overwritten() -> None:
    """As a kernel does: the page is mapped twice, once to be executed and once to be written."""
    # EFER.NXE; call USER; mov byte [ALIAS], 0x90; mov byte [ALIAS + USER + 1], 2; call USER; hlt
    alias = little(ALIAS + (USER & 0xFFF) + 1)
    other = little(ALIAS + 0x10)
    code = wrmsr(0xC0000080, 0xD01) + f"b8{little(USER)} ffd0"
    code += f"c60425{other}90 c60425{alias}02 b8{little(USER)} ffd0"
    # And once more, by the mapping that has been written to already.
    code += f"c60425{alias}03 b8{little(USER)} ffd0 f4"
    with kernel(code, "b001 e6e9 c3") as it:
        pages(it.memory, ALIAS, USER & ~0xFFF, 3 | NX)
        assert it.run() is ExitReason.HLT

    assert [data for _, _, data in it.accesses] == [b"\1", b"\2", b"\3"]


def test_an_access_marks_its_page_accessed_and_a_write_marks_it_dirty() -> None:
    # mov al, [ALIAS]; mov [ALIAS + 0x1000], al; hlt
    code = f"8a0425{little(ALIAS)} 880425{little(ALIAS + 0x1000)} f4"
    with kernel(code) as it:
        pages(it.memory, ALIAS, 0x20000, 3)
        pages(it.memory, ALIAS + 0x1000, 0x21000, 3)
        assert it.run() is ExitReason.HLT
        read, written = (it.memory.read(TABLES + 0x4000 + 8 * n, 1)[0] for n in range(2))

    assert (read & 0x60, written & 0x60) == (0x20, 0x60)


def test_a_page_that_was_read_is_marked_dirty_when_it_is_written() -> None:
    code = f"8a0425{little(ALIAS)} 880425{little(ALIAS)} f4"
    with kernel(code) as it:
        pages(it.memory, ALIAS, 0x20000, 3)
        assert it.run() is ExitReason.HLT
        assert it.memory.read(TABLES + 0x4000, 1)[0] & 0x60 == 0x60


@pytest.mark.parametrize(
    ("flags", "code", "error"),
    [
        pytest.param(1, "880425{}", 3, id="write-protected"),
        pytest.param(3 | NX, "b8{} ffe0", 0x11, id="no-execute"),
        pytest.param(0, "8a0425{}", 0, id="not-present"),
    ],
)
def test_what_a_page_forbids_is_a_fault(flags: int, code: str, error: int) -> None:
    # CR0.WP, EFER.NXE; the access. In the handler: the error code and the address.
    setup = wrmsr(0xC0000080, 0xD01) + "0f20c0 0d00000100 0f22c0"
    handler = "58" + store("rax", 0) + "0f20d0" + store("rax", 1) + "f4"
    with kernel(setup + code.format(little(ALIAS)), "", handler) as it:
        pages(it.memory, ALIAS, 0x20000, flags)
        assert it.run() is ExitReason.HLT
        assert stored(it, 2) == [error, ALIAS]


def test_the_time_stamp_counter_counts_nanoseconds() -> None:
    # rdtsc; remember; out; rdtsc; remember; hlt
    code = "0f31" + store("rax", 0) + store("rdx", 1) + "e6e9 0f31" + store("rax", 2) + "f4"
    with kernel(code) as it:
        assert it.run() is ExitReason.HLT
        first, high, second, _ = stored(it, 4)

    assert high < 60
    assert 0 < second - first < TIMEOUT * 1e9


def test_cpuid_tells_the_frequencies_and_no_way_to_speculate() -> None:
    # mov eax, leaf; xor ecx, ecx; cpuid; remember eax and ecx
    def ask(leaf: int, index: int) -> str:
        return f"b8{little(leaf)} 31c9 0fa2" + store("rax", index) + store("rcx", index + 1)

    with kernel(ask(0x15, 0) + ask(1, 2) + ask(0x80000007, 4) + "f4") as it:
        assert it.run() is ExitReason.HLT
        denominator, crystal, signature, features = stored(it, 4)

    assert (denominator, crystal) == (1, 1_000_000_000)
    assert signature == 0x30669
    assert features >> 31 == 1


def test_native_code_is_called_for_tlb_misses_and_blocks_from_the_first_engine_on() -> None:
    """In a process of its own, whose first engine lies elsewhere in memory than later ones."""
    program = (
        "from virtiopy.accel import select\n"
        "from virtiopy.memory import GuestMemory\n"
        "from virtiopy.accel.tcg import cpu\n"
        "for _ in range(3):\n"
        "    with GuestMemory.allocate(1 << 20) as memory:\n"
        "        accelerator = select('tcg', memory)\n"
        "        made = accelerator.create_cpu()\n"
        "        print(made.native_mmu, made.hooks_blocks)\n"
        "        made.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert done.stdout.splitlines() == ["True False"] * 3

"""The smallest guests: one a CPU mode, each printing a line and halting.

Each writes `Hello, World!` to port 0xE9, stores 42 at guest physical address 0x400, and halts with
42 in the accumulator; the host checks all three.
"""

import enum
import threading
from collections.abc import Callable
from typing import NamedTuple

from virtiopy.accel.base import Accelerator
from virtiopy.boot.elf import GuestImage, LoadSegment
from virtiopy.boot.guests import guest_file
from virtiopy.cpu.exits import Exit, ExitReason, IoExit, MmioExit
from virtiopy.cpu.x86 import (
    Registers,
    SystemRegisters,
    long_mode,
    paged_mode,
    protected_mode,
    real_mode,
    write_page_directory,
    write_page_tables,
)
from virtiopy.errors import GuestError
from virtiopy.memory import GuestMemory
from virtiopy.metrics.exitlog import ExitKind, ExitLog
from virtiopy.vm.ports import CONSOLE_PORT

MEMORY_SIZE = 2 << 20
ANSWER_ADDRESS = 0x400
ANSWER = 42
STACK = 0x8000
PAGE_TABLES = 0x10000
GREETING = "Hello, World!\n"

_HLT = b"\xf4"
_PROBE_ADDRESS = 0x1000


class Mode(enum.StrEnum):
    """The modes, as the manuals name them."""

    REAL = "real"  # 16 bits, no protection
    PROTECTED = "protected"  # 32 bits, flat segments
    PAGED = "paged"  # 32 bits, 32-bit paging
    LONG = "long"  # 64 bits, 4-level paging

    @property
    def accumulator(self) -> tuple[str, int]:
        """Name and mask of the register with the answer."""
        if self is Mode.REAL:
            return "ax", 0xFFFF
        if self is Mode.LONG:
            return "rax", 0xFFFF_FFFF_FFFF_FFFF
        return "eax", 0xFFFF_FFFF


class HelloResult(NamedTuple):
    """What the guest did, and how its CPU came to rest."""

    mode: Mode
    output: str
    stored: int
    accumulator: int
    last_exit: Exit | None
    exits: ExitLog

    @property
    def passed(self) -> bool:
        """Whether it printed, stored and returned what it should."""
        return (
            self.last_exit is not None
            and self.last_exit.reason is ExitReason.HLT
            and (self.output, self.stored, self.accumulator) == (GREETING, ANSWER, ANSWER)
        )

    def explain(self) -> str:
        """Tell a person what is wrong."""
        name, _ = self.mode.accumulator
        end = self.last_exit.describe() if self.last_exit else "no exit in time"
        return (
            f"The {self.mode} mode guest ended with {end}: it printed {self.output!r}, stored "
            f"{self.stored} at {ANSWER_ADDRESS:#x} and left {self.accumulator} in {name}."
        )


#: Makes what executes the guest, without interrupt chips, so that HLT is an exit.
MakeAccelerator = Callable[[GuestMemory], Accelerator]


def run_hello(mode: Mode, make_accelerator: MakeAccelerator, timeout: float) -> HelloResult:
    """Run the guest of `mode` for at most `timeout` seconds."""
    return _run(mode, GuestImage.open(guest_file(f"hello-{mode}")), make_accelerator, timeout)


def mode_works(mode: Mode, make_accelerator: MakeAccelerator, timeout: float) -> bool:
    """Say whether the host can execute anything in `mode`: a lone HLT.

    It tells a host that lacks a mode from a guest that is wrong.
    """
    image = GuestImage(
        "a HLT", _PROBE_ADDRESS, None, (LoadSegment(_PROBE_ADDRESS, _HLT, len(_HLT)),)
    )
    last_exit = _run(mode, image, make_accelerator, timeout).last_exit
    return last_exit is not None and last_exit.reason is ExitReason.HLT


def _start_state(mode: Mode, memory: GuestMemory) -> SystemRegisters:
    match mode:
        case Mode.REAL:
            return real_mode()
        case Mode.PROTECTED:
            return protected_mode()
        case Mode.PAGED:
            write_page_directory(memory, PAGE_TABLES)
            return paged_mode(PAGE_TABLES)
        case Mode.LONG:
            write_page_tables(memory, PAGE_TABLES)
            return long_mode(PAGE_TABLES)


def _run(
    mode: Mode, image: GuestImage, make_accelerator: MakeAccelerator, timeout: float
) -> HelloResult:
    output = bytearray()
    exits = ExitLog()

    def print_(exit_: IoExit | MmioExit) -> bool:
        if not isinstance(exit_, IoExit) or not exit_.is_write or exit_.port != CONSOLE_PORT:
            raise GuestError(f"The hello guest did something else than print: {exit_}.")
        exits.count(ExitKind("IO", "console port", "data", "write"))
        output.extend(exit_.data)
        return True

    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        image.load(memory)
        accelerator = make_accelerator(memory)
        cpu = accelerator.create_cpu()
        watchdog = threading.Timer(timeout, cpu.stop)
        try:
            cpu.set_system_registers(_start_state(mode, memory))
            cpu.set_registers(Registers(rip=image.entry, rsp=STACK))
            watchdog.start()
            if (exit_ := cpu.run(print_)) is not None:
                exits.count(ExitKind(exit_.reason.name))
            _, mask = mode.accumulator
            return HelloResult(
                mode,
                output.decode("ascii", "replace"),
                int.from_bytes(memory.read(ANSWER_ADDRESS, 4), "little"),
                cpu.get_registers().rax & mask,
                exit_,
                exits,
            )
        finally:
            watchdog.cancel()
            if watchdog.is_alive():
                watchdog.join()
            cpu.close()
            accelerator.close()

"""What the tests of KVM share."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Self, TypeVar

import pytest

from tests.patience import PATIENCE
from virtiopy._native import lib
from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.accel.kvm.system import Kvm
from virtiopy.accel.kvm.vcpu import Vcpu
from virtiopy.cpu.exits import Exit
from virtiopy.cpu.x86 import (
    Registers,
    SystemRegisters,
    real_mode,
    write_page_tables,
)
from virtiopy.errors import HostError
from virtiopy.memory import GuestMemory

MEMORY_SIZE = 2 << 20
CODE = 0x1000
STACK = 0x8000
PAGE_TABLES = 0x10000
#: Where page tables lead and no memory is.
NO_MEMORY = 0x3000_0000
#: What the guests below report at, and wait for.
COUNTER = 0x400
QUIT = 0x500
HLT = b"\xf4"
T = TypeVar("T")


def _why_no_kvm() -> str:
    try:
        Kvm().close()
    except HostError as error:
        return str(error)
    return ""


needs_kvm = pytest.mark.skipif(bool(_why_no_kvm()), reason=_why_no_kvm())


class PatchedLib:
    """The native library, with some of its functions answering what a test says."""

    def __init__(self, **results: Callable[..., object]) -> None:
        self._results = results

    def __getattr__(self, name: str) -> object:
        return self._results.get(name) or getattr(lib, name)


@dataclass
class Guest:
    """A vCPU about to execute `code` at 0x1000."""

    memory: GuestMemory
    accelerator: KvmAccelerator
    cpu: Vcpu

    def next_exit(self) -> Exit:
        exit_ = self.cpu.run()
        assert exit_ is not None
        return exit_

    def flag(self, address: int) -> int:
        return self.memory.read(address, 1)[0]


@contextlib.contextmanager
def guest_of(
    code: bytes,
    *,
    state: SystemRegisters | None = None,
    registers: Registers | None = None,
    interrupts: bool = False,
    memory_size: int = MEMORY_SIZE,
) -> Iterator[Guest]:
    """Make a guest, in real mode if `state` does not say otherwise."""
    with GuestMemory.allocate(memory_size) as memory:
        memory.write(CODE, code)
        write_page_tables(memory, PAGE_TABLES)
        accelerator = KvmAccelerator(memory, interrupts=interrupts)
        cpu = accelerator.create_cpu()
        cpu.set_system_registers(state or real_mode())
        cpu.set_registers((registers or Registers()).replace(rip=CODE, rsp=STACK))
        try:
            yield Guest(memory, accelerator, cpu)
        finally:
            cpu.close()
            accelerator.close()


class CpuThread:
    """A thread that does one call after another, as a vCPU's thread does."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._calls.put(None)
        self._thread.join(PATIENCE)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def start(self, call: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()

        def do() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised again by result()
                future.set_exception(error)

        self._calls.put(do)
        return future

    def do(self, call: Callable[[], T]) -> T:
        return self.start(call).result(PATIENCE)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        os.sched_yield()

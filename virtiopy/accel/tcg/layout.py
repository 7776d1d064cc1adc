"""Where in the memory of this process a Unicorn engine keeps its CPU.

Unicorn's API has no word for a segment's hidden part, an exception's error code, or the shadow
that sti throws on the next instruction. QEMU's `CPUX86State` holds them all, and Unicorn copies
it in and out of its contexts as it is. Here it is found where it lives, so that nothing is
copied. These are the fields from target/i386/cpu.h of QEMU 5.0.1, on which all of Unicorn 2 is
based; tcg.h declares them.

They are looked for by values that were written through the API, and a layout that does not look
like this is refused. What is read on the way need not be memory at all: the kernel is asked for
it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from virtiopy._native import CData, ffi, lib
from virtiopy.errors import HostError

#: What is expected in rax, rcx, ... r15: all different, and unlike anything else.
REGISTER_MARKS = tuple(0x5652_5449_4F50_5900 + index for index in range(16))
#: In dr0 to dr3.
DEBUG_MARKS = tuple(0x4445_4255_4700 + index for index in range(4))
#: In LSTAR, CSTAR and FMASK, which stand beside each other.
SYSCALL_MARKS = tuple(0x5359_5343_4100 + index for index in range(3))

#: How much of a CPU is read to find its registers: they come after its TLB.
_REACH = 1 << 18

#: Of `struct uc_struct`: target_page_size and _align, two sizes of the host's pages, the icache's
#: line.
_PAGES = b"".join(
    [
        *((0x1000).to_bytes(4, "little"), (0xFFF).to_bytes(4, "little")),
        *((0x1000).to_bytes(8, "little"), (0x1000).to_bytes(8, "little")),
    ]
)
#: From there to `hook_insert`, after which come `first_tb`, `no_exit_request`, `init_done`.
_TO_FLAGS = len(_PAGES) + 3 * 4 + 4 + 8


@dataclass(slots=True, frozen=True)
class CpuPlaces:
    """Pointers into an engine's CPU; `state` is the address of the whole."""

    state: int
    cpu: CData
    syscall: CData
    exceptions: CData


@dataclass(slots=True, frozen=True)
class _Offsets:
    """Of the pointer to the CPU in the engine, and of the parts in the CPU."""

    pointer: int
    cpu: int
    syscall: int
    exceptions: int


class _Process:
    """The memory of this process, where what is not mapped reads as nothing."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)

    def read(self, address: int, size: int) -> bytes:
        try:
            return os.pread(self._fd, size, address)
        except (OSError, OverflowError):
            return b""

    def close(self) -> None:
        os.close(self._fd)


def _marks(values: tuple[int, ...]) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


def _engine_size(engine: int) -> int:
    return int(lib.malloc_usable_size(ffi.cast("void *", engine)))


def _offsets_in(content: bytes, pointer: int) -> _Offsets | None:
    cpu = content.find(_marks(REGISTER_MARKS))
    syscall = content.find(_marks(SYSCALL_MARKS), cpu)
    exceptions = content.find(_marks(DEBUG_MARKS), cpu)
    if min(cpu, syscall, exceptions) < 0:
        return None
    return _Offsets(
        pointer,
        cpu,
        syscall - ffi.offsetof("struct vp_tcg_syscall", "lstar"),
        exceptions - ffi.offsetof("struct vp_tcg_exceptions", "dr"),
    )


def _candidates(engine: int, process: _Process) -> Iterator[tuple[int, _Offsets]]:
    """Yield the CPUs that the engine's words may point at."""
    words = ffi.cast("uint64_t *", engine)
    for index in range(_engine_size(engine) // 8):
        address = int(words[index])
        if address % 16 or not 0x10000 <= address < 1 << 47:
            continue
        offsets = _offsets_in(process.read(address, _REACH), index * 8)
        if offsets is not None:
            yield address, offsets


#: Found once: the same in every engine of one library.
_known: list[_Offsets] = []


def find_cpu(engine: int) -> CpuPlaces:
    """Find the CPU of the engine at the host's address `engine`, which holds the marks.

    Raises HostError where the layout is another.
    """
    process = _Process()
    try:
        for known in _known:
            address = int(ffi.cast("uint64_t *", engine + known.pointer)[0])
            if _offsets_in(process.read(address, _REACH), known.pointer) == known:
                return _places(address, known)
        # Other words of the engine may point at what lies before the CPU: the nearest is its own.
        found = min(_candidates(engine, process), key=lambda one: one[1].cpu, default=None)
        if found is not None:
            _known.append(found[1])
            return _places(*found)
    finally:
        process.close()
    raise HostError(
        "This Unicorn keeps its CPU state in a layout that virtiopy does not know: "
        "install one that it does with pip install 'unicorn>=2.1,<2.2'."
    )


def _places(address: int, offsets: _Offsets) -> CpuPlaces:
    return CpuPlaces(
        address,
        ffi.cast("struct vp_tcg_cpu *", address + offsets.cpu),
        ffi.cast("struct vp_tcg_syscall *", address + offsets.syscall),
        ffi.cast("struct vp_tcg_exceptions *", address + offsets.exceptions),
    )


def leave_out_exit_checks(engine: int) -> bool:
    """Have no code translated that looks, after each access to memory, whether to stop.

    A stop is then seen at the start of a block alone, which is where ours are asked for; and code
    that reads and writes memory runs twice as fast. The flag is one that Unicorn has for code of
    ARM's that may not be interrupted. Returns whether it was found; without it all is right, and
    slower.
    """
    content = ffi.buffer(ffi.cast("char *", engine), _engine_size(engine))
    start = bytes(content).find(_PAGES)
    if start < 0 or bytes(content).find(_PAGES, start + 1) >= 0:
        return False
    flags = start + _TO_FLAGS
    if bytes(content)[flags] or bytes(content)[flags + 2 : flags + 4] != b"\0\1":
        return False
    content[flags + 2] = b"\1"
    return True

"""What the software CPU says of itself (SDM volume 2, CPUID).

Unicorn's CPU is one that Intel sold, with what the translator lacks left out. What is told of it
here is what a kernel needs besides: the frequencies of the time stamp counter and of the local
APIC's timer, which nothing else here could tell, and that both always run.

It is told to be an Atom of the kind that executes instructions in their order. Kernels know that
such a CPU does not speculate, and a translator does not either: they leave out what they do
against Meltdown and Spectre, and most of all do not change page tables at each system call.
"""

from collections.abc import Callable

#: The time stamp counter, and the local APIC's timer: nanoseconds.
FREQUENCY = 1_000_000_000

Leaf = tuple[int, int, int, int]

#: A subleaf that stands for all of them.
ANY = 0xFFFF_FFFF

_MAX_LEAF = 0x16
_MAX_EXTENDED = 0x8000_0008
_BRAND = b"virtiopy software CPU".ljust(48, b"\0")

#: Family 6, model 0x36, stepping 9: Saltwell, in whose Atoms no instruction overtakes another.
_SIGNATURE = 0x0003_0669

# Leaf 1.
_APIC_ID = 0xFF << 24
_LOGICAL_CPUS = 0xFF << 16
_MONITOR = 1 << 3
_TSC_DEADLINE = 1 << 24
_XSAVE, _OSXSAVE, _AVX = 1 << 26, 1 << 27, 1 << 28
_HYPERVISOR = 1 << 31

# Leaf 7: those that cost more here than they bring.
_TSC_ADJUST = 1 << 1
_LEFT_OUT_7 = 1 << 7 | 1 << 9 | 1 << 14 | 1 << 20  # SMEP, ERMS, MPX, SMAP

_ALWAYS_RUNNING_APIC_TIMER = 1 << 2
_RDTSCP = 1 << 27
_INVARIANT_TSC = 1 << 8


def leaves(ask: Callable[[int, int], Leaf], number: int) -> dict[tuple[int, int], Leaf]:
    """Return what CPU `number` says, by leaf and subleaf; `ask` is the translator's own CPUID."""

    def word(text: bytes) -> int:
        return int.from_bytes(text, "little")

    told: dict[tuple[int, int], Leaf] = {}
    told[0, ANY] = (_MAX_LEAF, word(b"Genu"), word(b"ntel"), word(b"ineI"))
    _, ebx, ecx, edx = ask(1, 0)
    ebx = ebx & ~(_APIC_ID | _LOGICAL_CPUS) | number << 24 | 1 << 16
    ecx = ecx & ~(_MONITOR | _TSC_DEADLINE | _XSAVE | _OSXSAVE | _AVX) | _HYPERVISOR
    told[1, ANY] = (_SIGNATURE, ebx, ecx, edx)
    told[6, ANY] = (_ALWAYS_RUNNING_APIC_TIMER, 0, 0, 0)
    _, ebx, _, _ = ask(7, 0)
    # A counter that can be adjusted is one that a kernel trusts, with nothing to watch it by.
    told[7, ANY] = (0, ebx & ~_LEFT_OUT_7 | _TSC_ADJUST, 0, 0)
    for absent in (5, 0xA, 0xB, 0xD, 0xF, 0x10, 0x12, 0x14):
        told[absent, ANY] = (0, 0, 0, 0)
    # The crystal's frequency, which is the timer's, and its ratio to the counter's (18.7.3).
    told[0x15, ANY] = (1, 1, FREQUENCY, 0)
    told[0x16, ANY] = (FREQUENCY // 1_000_000, FREQUENCY // 1_000_000, 100, 0)
    # No hypervisor's interface.
    told[0x4000_0000, ANY] = (0x4000_0000, 0, 0, 0)
    told[0x8000_0000, ANY] = (_MAX_EXTENDED, 0, 0, 0)
    _, _, ecx, edx = ask(0x8000_0001, 0)
    told[0x8000_0001, ANY] = (0, 0, ecx, edx & ~_RDTSCP)
    for part in range(3):
        text = _BRAND[part * 16 : part * 16 + 16]
        told[0x8000_0002 + part, ANY] = (
            word(text[:4]),
            word(text[4:8]),
            word(text[8:12]),
            word(text[12:]),
        )
    told[0x8000_0007, ANY] = (0, 0, 0, _INVARIANT_TSC)
    return told

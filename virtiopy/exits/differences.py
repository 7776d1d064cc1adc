"""Where the kernel's counters and ours differ, and which counters make up the difference.

The counters are those of KVM_GET_STATS_FD for a vCPU; what each stands for is from the kernel's
arch/x86/kvm and virt/kvm.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from virtiopy.exits.model import Costs


@dataclass(slots=True, frozen=True)
class Part:
    """So many of a difference, by the counter that tells of them ("" for what none does)."""

    counter: str
    count: int
    why: str


@dataclass(slots=True, frozen=True)
class Difference:
    """Two counts of what looks like one thing; the parts add up to `theirs` less `ours`."""

    what: str
    ours_is: str
    ours: int
    theirs_is: str
    theirs: int
    parts: list[Part]


#: Exits that the kernel handles itself, by its counter. No exit is in two of these.
_HANDLED_IN_KERNEL = {
    "halt_exits": "HLT: the vCPU waits for its next interrupt inside of the kernel, which has the "
    "interrupt chips",
    "irq_window_exits": "interrupt windows: an interrupt came when the guest could not take it, "
    "and KVM asked to be told when it can",
    "nmi_window_exits": "NMI windows: the same for a non-maskable interrupt",
    "irq_exits": "interrupts of the host itself (its timer, another CPU): none of the guest's "
    "business, but they end its turn",
    "signal_exits": "signals: KVM_RUN was interrupted, and called again",
}

_UNTOLD = "no counter tells these apart"


def differences(costs: Costs) -> list[Difference]:
    """Explain every difference between the guest's, our and the kernel's counts."""
    found = [] if costs.kicks is None else [_kicks(costs, costs.kicks)]
    if costs.kernel:
        found += [_exits(costs), _mmio(costs), _interrupts(costs)]
    return found


def _kicks(costs: Costs, kicks: int) -> Difference:
    notified = costs.of("QueueNotify")
    parts = []
    if caught := kicks - notified:
        why = "writes to QueueNotify that the kernel turned into an ioeventfd: no exit to userspace"
        parts.append(Part("ioeventfd", caught, why))
    return Difference(
        "kicks", "QueueNotify exits to userspace", notified, "sent by the guest", kicks, parts
    )


def _exits(costs: Costs) -> Difference:
    total = costs.kernel.get("exits", 0)
    left = total - costs.userspace
    parts = []
    if left < 0:
        why = (
            "one exit came to userspace several times, as an instruction with several accesses "
            "does (a string instruction, or an operand across two words)"
        )
        parts.append(Part("", left, why))
    for part in _candidates(costs):
        count = min(left, part.count)
        if count > 0:
            parts.append(Part(part.counter, count, part.why))
            left -= count
    if left > 0:
        why = (
            f"{_UNTOLD}: faults on guest memory that is new, CPUID, MSRs, control registers, or a "
            "guest that was entered and left again at once"
        )
        parts.append(Part("", left, why))
    return Difference(
        "exits", "to userspace", costs.userspace, "counted by the kernel", total, parts
    )


def handled_in_kernel(costs: Costs) -> dict[str, int]:
    """Count the exits that never reached userspace, by counter; "" for what none tells of."""
    counts: Counter[str] = Counter()
    for part in _exits(costs).parts if costs.kernel else ():
        counts[part.counter] += max(0, part.count)
    return dict(counts)


def _candidates(costs: Costs) -> Iterator[Part]:
    """Name what the kernel may have handled by itself; each at most so many."""
    kernel = costs.kernel
    for name, why in _HANDLED_IN_KERNEL.items():
        yield Part(name, kernel.get(name, 0), why)
    yield from _emulated(costs)
    # Preemption goes with an interrupt of the host, where that is counted.
    switches = kernel.get("preemption_reported", 0) + kernel.get("preemption_other", 0)
    yield Part(
        "preemption_other",
        switches - kernel.get("irq_exits", 0),
        "the vCPU's thread lost its CPU to another thread, which ends the guest's turn",
    )


def interprets(costs: Costs) -> bool:
    """Say whether this KVM executes the guest's ring 0 instruction by instruction.

    It emulates more instructions then than there are exits; kicks and EOIs are no exits at all.
    """
    return costs.kernel.get("insn_emulation", 0) > costs.kernel.get("exits", 0)


def _emulated(costs: Costs) -> Iterator[Part]:
    """Name the accesses that the kernel emulated and answered by itself."""
    if interprets(costs):
        return
    left = costs.kernel.get("insn_emulation", 0) - costs.kernel.get("mmio_exits", 0)
    acknowledged = costs.of("InterruptACK")
    known = {
        "kicks that became an ioeventfd": (costs.kicks or 0) - costs.of("QueueNotify"),
        "InterruptACK writes that became an ioeventfd": costs.interrupts - acknowledged,
        "end-of-interrupt writes to the local APIC, which is in the kernel": costs.interrupts,
        "other accesses that the kernel emulated and answered itself": left,
    }
    for why, most in known.items():
        count = max(0, min(left, most))
        yield Part("insn_emulation", count, why)
        left -= count


def _mmio(costs: Costs) -> Difference:
    ours = sum(n for kind, n in costs.measured.exits.items() if kind.reason == "MMIO")
    theirs = costs.kernel.get("mmio_exits", 0)
    parts = []
    if theirs != ours:
        why = (
            "MMIO that the kernel counted and userspace did not see, or an access in several pieces"
        )
        parts.append(Part("mmio_exits", theirs - ours, why))
    return Difference("MMIO exits", "to userspace", ours, "mmio_exits of the kernel", theirs, parts)


def _interrupts(costs: Costs) -> Difference:
    injected = costs.kernel.get("irq_injections", 0)
    parts = []
    if injected != costs.interrupts:
        why = (
            "an injection is counted again when an exit interrupts it, and one under way at the "
            "first or last mark is counted on one side only"
        )
        parts.append(Part("irq_injections", injected - costs.interrupts, why))
    return Difference(
        "interrupts",
        "taken by the guest's handler",
        costs.interrupts,
        "injected by the kernel",
        injected,
        parts,
    )

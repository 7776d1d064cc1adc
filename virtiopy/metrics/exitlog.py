"""What left the guest for userspace, counted by who and what it concerned."""

from collections import Counter
from dataclasses import dataclass


@dataclass(slots=True, frozen=True, order=True)
class ExitKind:
    """Exits that count as one kind.

    `reason` is KVM's name (IO, MMIO, HLT, ...); `device` and `register` say what an IO or MMIO exit
    was about, `direction` is "read" or "write"; they are empty for the others.
    """

    reason: str
    device: str = ""
    register: str = ""
    direction: str = ""


class ExitLog:
    """Counts exits to userspace."""

    def __init__(self) -> None:
        self.counts: Counter[ExitKind] = Counter()

    def count(self, kind: ExitKind) -> None:
        """Count one exit."""
        self.counts[kind] += 1

    @property
    def total(self) -> int:
        """All exits to userspace."""
        return self.counts.total()

    def of(self, device: str, register: str) -> int:
        """Return how many exits concerned one register of one device, in both directions."""
        return sum(
            count
            for kind, count in self.counts.items()
            if (kind.device, kind.register) == (device, register)
        )

"""What left the guest for userspace, counted by who and what it concerned."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Key = TypeVar("Key")


#: What stands for a device in the counts of accesses to none.
UNASSIGNED = "unassigned"


class ExitKind(NamedTuple):
    """Exits that count as one kind.

    `reason` is KVM's name (IO, MMIO, HLT, ...); `device` and `register` say what an IO or MMIO exit
    was about, `direction` is "read" or "write"; they are empty for the others.
    """

    reason: str
    device: str = ""
    register: str = ""
    direction: str = ""


#: Addresses without a device that are counted one by one; the others are counted together.
ADDRESSES_MAX = 256


class ExitLog:
    """Counts the exits of one vCPU to userspace; its thread alone counts."""

    def __init__(self) -> None:
        self.counts: Counter[ExitKind] = Counter()
        self._addresses = 0

    def count(self, kind: ExitKind) -> None:
        """Count one exit."""
        self.counts[kind] += 1

    def count_unassigned(self, reason: str, address: int, direction: str) -> None:
        """Count one exit for an access where no device is; a guest may try every address."""
        kind = ExitKind(reason, UNASSIGNED, f"{address:#x}", direction)
        if kind not in self.counts:
            if self._addresses == ADDRESSES_MAX:
                kind = ExitKind(reason, UNASSIGNED, "other addresses", direction)
            else:
                self._addresses += 1
        self.counts[kind] += 1


class MergedExits:
    """The exits of several vCPUs, added up when they are read; from any thread."""

    def __init__(self, logs: Sequence[ExitLog]) -> None:
        self._logs = logs

    @property
    def counts(self) -> Counter[ExitKind]:
        """How many exits of each kind there were, on all vCPUs."""
        return Counter(add_up(log.counts for log in self._logs))

    @property
    def totals(self) -> list[int]:
        """All exits to userspace of each vCPU, in the order of their numbers."""
        return [sum(dict(log.counts).values()) for log in self._logs]

    @property
    def total(self) -> int:
        """All exits to userspace."""
        return sum(self.totals)

    def of(self, device: str, register: str) -> int:
        """Return how many exits concerned one register of one device, in both directions."""
        return sum(
            count
            for kind, count in self.counts.items()
            if (kind.device, kind.register) == (device, register)
        )


def add_up(counts: Iterable[Mapping[Key, int]]) -> dict[Key, int]:
    """Add the counts of several vCPUs, which may count meanwhile."""
    total: dict[Key, int] = {}
    for each in counts:
        # A copy, which the thread that counts cannot change in the middle of the loop.
        for key, count in dict(each).items():
            total[key] = total.get(key, 0) + count
    return total

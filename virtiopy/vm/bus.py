"""Address ranges and who answers in them: one bus for MMIO, one for port I/O."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

from virtiopy.errors import GuestError

#: How many devices a message names.
_NAMED = 4


class BusDevice(Protocol):
    """Answers accesses at offsets from the start of its range."""

    def read(self, offset: int, size: int) -> bytes:
        """Return the `size` bytes that the guest reads at `offset`."""

    def write(self, offset: int, data: bytes) -> None:
        """Take what the guest writes at `offset`."""

    def register_name(self, offset: int) -> str:
        """Name the register at `offset`, for the exit report."""


@dataclass(slots=True, frozen=True)
class Place:
    """A device's range on a bus: [start, start + size).

    `at` says where it is, for messages about accesses to where no device is; "" leaves it out.
    """

    start: int
    size: int
    name: str
    device: BusDevice
    at: str = ""


class UnassignedAccessError(GuestError):
    """The guest accessed an address where nothing is."""


class Bus:
    """Finds the device that an address belongs to.

    `kind` is what an address of the bus is called, for messages: "guest physical address", "port".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._places: list[Place] = []
        self._starts: list[int] = []

    def add(self, place: Place) -> None:
        """Put a device on the bus; raises ValueError where another is."""
        index = bisect_right(self._starts, place.start)
        if index and self._end(index - 1) > place.start:
            raise ValueError(f"{place.name} overlaps {self._places[index - 1].name}")
        if index < len(self._places) and place.start + place.size > self._starts[index]:
            raise ValueError(f"{place.name} overlaps {self._places[index].name}")
        self._places.insert(index, place)
        self._starts.insert(index, place.start)

    def _end(self, index: int) -> int:
        return self._places[index].start + self._places[index].size

    def find(self, address: int) -> Place | None:
        """Return whose range `address` is in."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._end(index):
            return None
        return self._places[index]

    def refuse(self, address: int, size: int, is_write: bool) -> UnassignedAccessError:
        """Word the complaint about an access to an `address` that no device answers at."""
        done = "wrote" if is_write else "read"
        plural = "s" if size > 1 else ""
        return UnassignedAccessError(
            f"The guest {done} {size} byte{plural} at {self.kind} {address:#x}, where no device "
            f"is: mend the guest{self._directions()}, or let such accesses pass with --unassigned "
            "ignore."
        )

    def _directions(self) -> str:
        """Say where devices are."""
        places = [f"{place.name} is at {place.at}" for place in self._places if place.at]
        if len(places) > _NAMED:
            places = [*places[: _NAMED - 1], f"..., {places[-1]}"]
        return f" ({', '.join(places)})" if places else ""

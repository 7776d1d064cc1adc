"""The suite's vhost-user frontend: it can do what a VMM does but seldom."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from virtiopy.memory import GuestMemory, Region
from virtiopy.vhost.user.connection import Connection
from virtiopy.vhost.user.frontend import VhostUserFrontend
from virtiopy.vhost.user.messages import (
    VHOST_VRING_F_LOG,
    LogArea,
    MemoryRegion,
    Request,
    RingAddresses,
    u64,
)
from virtiopy.vhost.vring import Vring


def own_address(region: Region) -> int:
    """Return where a region is in this process."""
    return region.host_address


class SuiteFrontend(VhostUserFrontend):
    """A frontend that moves memory, logs what is written, and says any feature bits."""

    def __init__(
        self, connection: Connection, *, wanted: int, knows_protocol_features: bool = True
    ) -> None:
        #: The user address that the backend is told of a region, whatever it is here.
        self.user_address: Callable[[Region], int] = own_address
        #: Other files of regions, by the region's guest address: each is one whole.
        self.replaced: Mapping[int, int] = {}
        #: The guest address by which every used ring is logged, and the rings of which it is.
        self.used_log = 0
        self.logged: set[int] = set()
        super().__init__(connection, wanted=wanted, knows_protocol_features=knows_protocol_features)

    def described(self, region: Region) -> MemoryRegion:
        """Return what the backend is told of a region."""
        found = super().described(region)
        offset = 0 if region.guest_address in self.replaced else found.mmap_offset
        return dataclasses.replace(
            found, user_address=self.user_address(region), mmap_offset=offset
        )

    def file_of(self, region: Region) -> int:
        """Return the file that the backend is given of a region."""
        return self.replaced.get(region.guest_address, region.fd)

    def ring_addresses(self, index: int, ring: Vring, memory: GuestMemory) -> RingAddresses:
        """Return what the backend is told of where a ring is."""
        here = super().ring_addresses(index, ring, memory)
        return dataclasses.replace(
            here,
            flags=1 << VHOST_VRING_F_LOG if index in self.logged else 0,
            log=self.used_log,
            descriptor_table=self._user(here.descriptor_table, memory),
            used_ring=self._user(here.used_ring, memory),
            available_ring=self._user(here.available_ring, memory),
        )

    def _user(self, pointer: int, memory: GuestMemory) -> int:
        [region] = [
            region
            for region in memory.regions
            if region.host_address <= pointer < region.host_address + region.size
        ]
        return self.user_address(region) + pointer - region.host_address

    def set_addresses(self, index: int, ring: Vring, memory: GuestMemory) -> None:
        """Say again where a ring is, and whether its used ring is logged."""
        addresses = self.ring_addresses(index, ring, memory)
        self._tell(Request.SET_VRING_ADDR, addresses.encode())

    # Memory, region by region (CONFIGURE_MEM_SLOTS)

    def max_slots(self) -> int:
        """Return how many regions the backend takes."""
        return self._ask_u64(Request.GET_MAX_MEM_SLOTS)

    def add_region(self, region: Region) -> None:
        """Add a region to the memory that the backend has."""
        self._tell(Request.ADD_MEM_REG, self.described(region).encode(), [region.fd])

    def remove_region(
        self, region: Region, *, offset: int | None = None, fds: Sequence[int] = ()
    ) -> None:
        """Take a region away; `offset` is what is said of where it is in its file."""
        found = self.described(region)
        if offset is not None:
            found = dataclasses.replace(found, mmap_offset=offset)
        self._tell(Request.REM_MEM_REG, found.encode(), list(fds))

    # The dirty log

    def set_log(self, area: LogArea, fd: int) -> None:
        """Give the backend a log, and wait until it has it."""
        self._ask(Request.SET_LOG_BASE, area.encode(), files=[fd])

    def set_all_features(self, features: int) -> None:
        """Set feature bits, those of the protocol among them, as they are."""
        self._tell(Request.SET_FEATURES, u64(features))

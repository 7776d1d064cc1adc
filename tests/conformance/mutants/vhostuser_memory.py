"""Backends with a fault in what they share: guest memory, requests in flight, the log of writes."""

import dataclasses
import os

from tests.conformance.mutants.vhostuser import Faulty, served
from virtiopy._native import ffi
from virtiopy.conformance.targets.builders import build_blk
from virtiopy.errors import PeerError
from virtiopy.vhost.user.messages import (
    VHOST_F_LOG_ALL,
    InflightArea,
    LogArea,
    MemoryRegion,
    Message,
    Request,
    RingAddresses,
    RingState,
    to_memory_table,
    to_u64,
    u64,
)

# Memory


class KeepsTheFirstTable(Faulty):
    has_one = False

    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_OWNER:
            self.has_one = False
        if message.request == Request.SET_MEM_TABLE:
            if self.has_one:
                if message.needs_reply:
                    self._reply(Message(message.request, u64(0)))
                return True
            self.has_one = True
        return False


class TakesNoHeedOfTheFilesOffset(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request != Request.SET_MEM_TABLE:
            return False
        head = message.payload[:8]
        regions = [
            MemoryRegion(one.guest_address, one.size, one.user_address, 0).encode()[8:]
            for one in to_memory_table(message)
        ]
        return self.again(message, head + b"".join(regions))


class TakesNoRegion(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.GET_MAX_MEM_SLOTS:
            self._reply(Message(message.request, u64(0)))
            return True
        return False


class AddsRegionsToTheFirstTwo(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.ADD_MEM_REG and MemoryRegion.decode(message).guest_address:
            region = MemoryRegion.decode(message)
            moved = dataclasses.replace(region, guest_address=region.guest_address + (1 << 40))
            return self.again(message, moved.encode())
        if message.request == Request.REM_MEM_REG and MemoryRegion.decode(message).guest_address:
            region = MemoryRegion.decode(message)
            moved = dataclasses.replace(region, guest_address=region.guest_address + (1 << 40))
            return self.again(message, moved.encode())
        return False


class RemovesNoRegion(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.REM_MEM_REG:
            if message.needs_reply:
                self._reply(Message(message.request, u64(0)))
            return True
        return False


class FindsRegionsByTheirOffset(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.REM_MEM_REG:
            offset = MemoryRegion.decode(message).mmap_offset
            if offset not in {0, 32 << 20, 48 << 20}:
                raise PeerError("there is no such region")
        return False


class KeepsTheFileOfARemoval(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.REM_MEM_REG and message.fds:
            self.kept = os.dup(message.fds[0])
        return False

    def close(self) -> None:
        super().close()
        if (kept := self.__dict__.pop("kept", None)) is not None:
            os.close(kept)


# In flight


class HasAnotherVersion(Faulty):
    def seen(self, message: Message) -> bool:
        self.sound(message)
        inflight = self._rings.inflight
        if message.request == Request.SET_VRING_ENABLE and inflight is not None:
            index = RingState.decode(message).index
            region = (
                inflight.file.address + index * inflight.area.mmap_size // inflight.area.num_queues
            )
            ffi.cast("struct vhost_user_queue_region *", region).version = 2
        return True


class ForgetsWhatWasInFlight(Faulty):
    """Goes on with an area of its own, and not with that which it is given."""

    def seen(self, message: Message) -> bool:
        if message.request != Request.SET_INFLIGHT_FD:
            return False
        os.close(message.fds.pop())
        area = InflightArea.decode(message)
        message.fds.append(os.memfd_create("other", os.MFD_CLOEXEC))
        os.ftruncate(message.fds[0], area.mmap_size)
        return self.again(message, dataclasses.replace(area, mmap_offset=0).encode())


class HasRoomForLess(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request != Request.GET_INFLIGHT_FD:
            return False
        area = InflightArea.decode(message)
        return self.again(
            message, dataclasses.replace(area, queue_size=area.queue_size // 2).encode()
        )


# The log


class LogsNothing(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_FEATURES:
            return self.again(message, u64(to_u64(message) & ~(1 << VHOST_F_LOG_ALL)))
        return False


class LogsForEver(Faulty):
    logs = 0

    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_FEATURES:
            features = to_u64(message)
            self.logs = self.logs if self._rings.are_worked else 0
            self.logs |= features & 1 << VHOST_F_LOG_ALL
            return self.again(message, u64(features | self.logs))
        return False


class LogsNoUsedRing(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_VRING_ADDR:
            addresses = RingAddresses.decode(message)
            return self.again(message, dataclasses.replace(addresses, flags=0).encode())
        return False


class LogsAtAnotherOffset(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_LOG_BASE:
            return self.again(message, LogArea(LogArea.decode(message).size, 0).encode())
        return False


MUTANTS = [
    *served(
        build_blk,
        [
            ("SET_MEM_TABLE:1", KeepsTheFirstTable),
            ("memory-access:2", TakesNoHeedOfTheFilesOffset),
            ("GET_MAX_MEM_SLOTS:1", TakesNoRegion),
            ("ADD_MEM_REG:1", AddsRegionsToTheFirstTwo),
            ("REM_MEM_REG:1", RemovesNoRegion),
            ("REM_MEM_REG:2", FindsRegionsByTheirOffset),
            ("REM_MEM_REG:3", KeepsTheFileOfARemoval),
            ("inflight:1", HasAnotherVersion),
            ("inflight:5", ForgetsWhatWasInFlight),
            ("GET_INFLIGHT_FD:1", HasRoomForLess),
            ("migration:1", LogsNothing),
            ("migration:2", LogsNoUsedRing),
            ("migration:3", LogsAtAnotherOffset),
            ("migration:5", LogsForEver),
        ],
    ),
]

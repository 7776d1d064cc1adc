"""File system devices with a fault."""

import errno

from tests.conformance.mutants import mutants
from tests.conformance.ramfs import FuseError, RamFs
from virtiopy.conformance.drivers.fs import HIPRIO, REQUESTQ
from virtiopy.conformance.targets.builders import Rig
from virtiopy.virtqueue.queue import Virtqueue


def build_fs(kind: type[RamFs] = RamFs) -> Rig:
    """Make a file system in memory."""
    return Rig(kind())


class HasNoRequestQueue(RamFs):
    """Says that it has none."""

    request_queues = 0


class PausesTheHighPriorityQueue(RamFs):
    """Works it only while no request waits."""

    def handle(self, queue: Virtqueue) -> None:
        if queue.index == HIPRIO:
            requests = self.queues[REQUESTQ]
            chain = requests.pop()
            if chain is not None:
                requests.unpop(1)
                return
        super().handle(queue)


class WritesNothing(RamFs):
    """Says that it wrote."""

    def write(self, offset: int, data: bytes) -> int:
        return len(data)


class CannotRead(RamFs):
    """Wants its files to be mapped."""

    def read(self, offset: int, size: int) -> bytes:
        raise FuseError(errno.ENOSYS)


class ReadsOn(RamFs):
    """Goes on behind the end of the file."""

    def read(self, offset: int, size: int) -> bytes:
        return super().read(offset, size).ljust(size, b"\0")


class MapsAnything(RamFs):
    """Makes each mapping that it is asked for."""

    def map(self, handle: int, offset: int, size: int, flags: int, at: int) -> bytes:
        return b""


MUTANTS = [
    *mutants(
        build_fs,
        [
            ("5.11.4.2:1", HasNoRequestQueue),
            ("5.11.6.2.1:1", PausesTheHighPriorityQueue),
            ("5.11.6.4.1:3", WritesNothing),
            ("5.11.6.4.1:3", CannotRead),
            ("5.11.6.4.1:3", ReadsOn),
            ("5.11.6.4.1:5", MapsAnything),
        ],
    ),
]

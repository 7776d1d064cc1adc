"""Entropy devices with a fault."""

from tests.conformance.mutants import mutants
from virtiopy.conformance.builders import build_rng
from virtiopy.devices.rng import Rng
from virtiopy.virtqueue.buffers import scatter, total
from virtiopy.virtqueue.split import Chain, SplitQueue


class GivesNothing(Rng):
    """Uses buffers with nothing in them."""

    def serve(self, queue: SplitQueue, chain: Chain) -> int:
        return 0


class SaysMoreThanThereIsRoom(Rng):
    """Has the length of what it would have liked to write."""

    def serve(self, queue: SplitQueue, chain: Chain) -> int:
        return super().serve(queue, chain) + 1


class RepeatsItself(Rng):
    """Has the same bytes for everybody."""

    def serve(self, queue: SplitQueue, chain: Chain) -> int:
        return scatter(chain.writable, bytes(range(256)))


class LeavesTheBufferAsItWas(Rng):
    """Says that it has written, and has not."""

    def serve(self, queue: SplitQueue, chain: Chain) -> int:
        return total(chain.writable)


MUTANTS = [
    *mutants(
        build_rng,
        [
            ("5.4.6.2:1", GivesNothing),
            ("5.4.6.2:1", RepeatsItself),
            ("5.4.6.2:1", LeavesTheBufferAsItWas),
            ("5.4.6.2:2", SaysMoreThanThereIsRoom),
        ],
    ),
]

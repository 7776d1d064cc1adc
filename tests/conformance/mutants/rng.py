"""Entropy devices with a fault."""

from tests.conformance.mutants import mutants
from virtiopy.conformance.targets.builders import build_rng
from virtiopy.devices.rng import Rng
from virtiopy.virtqueue.buffers import scatter, total
from virtiopy.virtqueue.queue import Chain, Virtqueue


class GivesNothing(Rng):
    """Uses buffers with nothing in them."""

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        return 0


class WritesPastTheEnd(Rng):
    """Fills a byte more than there is room for."""

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        written = super().serve(queue, chain)
        memory = self.host.memory
        last = chain.writable[-1]
        memory.write(memory.address_of(last) + len(last), b"\x55")
        return written


class RepeatsItself(Rng):
    """Has the same bytes for everybody."""

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        return scatter(chain.writable, bytes(range(256)))


class LeavesTheBufferAsItWas(Rng):
    """Says that it has written, and has not."""

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        return total(chain.writable)


class SaysMoreThanItGives(Rng):
    """Says that it has filled a buffer that is longer than what it gives at once."""

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        super().serve(queue, chain)
        return total(chain.writable)


MUTANTS = [
    *mutants(
        build_rng,
        [
            ("5.4.6.2:1", GivesNothing),
            ("5.4.6.2:1", RepeatsItself),
            ("2.7.8.2:2", LeavesTheBufferAsItWas),
            ("5.4.6.2:2", WritesPastTheEnd),
            ("2.7.8.2:2", SaysMoreThanItGives),
        ],
    ),
]

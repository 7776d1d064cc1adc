"""Entropy devices with a fault."""

import itertools
import os

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


class RepeatsBlocks(Rng):
    """Gives each 16 bytes twice."""

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        blocks = (os.getrandom(16) * 2 for _ in range(total(chain.writable) // 32 + 1))
        return scatter(chain.writable, b"".join(blocks)[: total(chain.writable)])


class RunsDry(Rng):
    """Has 512 random bytes for a buffer, and zeroes after that."""

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        return scatter(chain.writable, os.getrandom(512).ljust(total(chain.writable), b"\0"))


class GoesThroughItsPool(Rng):
    """Has made its random bytes when it was made, and begins again at their end."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = itertools.cycle(os.getrandom(1 << 14))

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        return scatter(chain.writable, bytes(itertools.islice(self.pool, total(chain.writable))))


class GivesAscii(Rng):
    """Has bytes of seven bits."""

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        data = os.getrandom(total(chain.writable))
        return scatter(chain.writable, bytes(byte & 0x7F for byte in data))


MUTANTS = [
    *mutants(
        build_rng,
        [
            ("5.4.6.2:1", GivesNothing),
            ("5.4.6.2:1", RepeatsItself),
            ("2.7.8.2:2", LeavesTheBufferAsItWas),
            ("5.4.6.2:1", RepeatsBlocks),
            ("5.4.6.2:1", RunsDry),
            ("5.4.6.2:1", GoesThroughItsPool),
            ("5.4.6.2:1", GivesAscii),
            ("5.4.6.2:2", WritesPastTheEnd),
            ("2.7.8.2:2", SaysMoreThanItGives),
        ],
    ),
]

"""Console devices: every byte comes, once, and in its order, both ways and by each port (5.3.6)."""

import pytest

from virtiopy.conformance.drivers.base import Framing
from virtiopy.conformance.drivers.console import ConsoleDriver
from virtiopy.conformance.effort import Effort
from virtiopy.conformance.models.portwork import LENGTHS, PortWork, some

#: Buffers for what is typed: of a byte, and of more than is typed at once.
ROOMS = [1, 2, 64, 5000, 3, 256, 1000, 17] * 2


def works(console: ConsoleDriver) -> list[PortWork]:
    """Start the device; returns the work of each port whose other end the suite has."""
    console.start()
    ports = sorted(console.ports) if console.multiport else [0]
    return [PortWork(console, port) for port in ports if console.is_at(port)]


@pytest.mark.clause("5.3.6:1")
def test_bytes_that_are_written_come_out_in_their_order(console: ConsoleDriver) -> None:
    for work in works(console):
        work.write(LENGTHS)
        work.nothing_more()


@pytest.mark.clause("5.3.6:1")
def test_bytes_in_several_descriptors_come_out_in_their_order(console: ConsoleDriver) -> None:
    for work in works(console):
        for cuts in ((1,), (1, 2, 3, 64), range(7, 200, 13)):
            work.write((2, 64, 65, 300), Framing(cuts, None))


@pytest.mark.clause("5.3.6:2")
def test_bytes_that_are_typed_come_in_in_their_order(console: ConsoleDriver) -> None:
    for work in works(console):
        work.supply(ROOMS)
        work.type(LENGTHS)


@pytest.mark.clause("5.3.6:1", "5.3.6:2")
def test_random_bytes_go_both_ways_by_every_port(console: ConsoleDriver, effort: Effort) -> None:
    ports = works(console)
    for work in ports:
        work.supply(ROOMS)
    for random in effort.rounds():
        for _ in range(30):
            work = random.choice(ports)
            work.write(some(random, random.randint(1, 6)))
            random.choice(ports).type(some(random, random.randint(1, 4)))
    for work in ports:
        work.nothing_more()

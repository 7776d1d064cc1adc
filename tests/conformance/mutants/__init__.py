"""Devices with one fault each, which the suite has to find: it shows that its tests can fail.

Each module here has a list MUTANTS, and test_mutants.py puts what is in it to the tests of the
statement that it breaks. To add one, write what the sound device does wrong as a subclass, and add
an entry with the statement:

    class FlushesNothing(Blk):
        def execute(self, request: Request) -> int:
            return 0 if request.type == RequestType.FLUSH else super().execute(request)

    MUTANTS = [
        *mutants(build_blk, [("5.2.6.2:13", FlushesNothing)]),
    ]

A subclass overrides public methods alone, and tests/conformance/faults.py has proxies for what a
device works with, its queues among them: a mutant is to outlive changes inside the device.

`build_readonly_blk` makes the device of a class that it is given, and the sound one of none. At
least one test of the statement has to fail on the mutant; on the sound device at least one has to
pass, and none to fail. A fault may as well be the transport's: give Mutant a `transport`,
or a `backend` where it is the vhost-user protocol's.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tests.conformance.faults import QueueProxy, over
from virtiopy.conformance.targets.builders import Factory, Rig
from virtiopy.conformance.targets.target import InprocTarget, inproc
from virtiopy.devices.base import VirtioDevice
from virtiopy.transport.mmio import MmioTransport
from virtiopy.vhost.user.backend import Backend

_Device = TypeVar("_Device", bound=VirtioDevice)


@dataclass(slots=True, frozen=True)
class Mutant:
    """A device that does not keep to a statement, by its ID, and a sound one that does."""

    name: str
    clause: str
    broken: Factory
    sound: Factory
    transport: type[MmioTransport] = MmioTransport
    served: bool = False  # over vhost-user, and not MMIO
    backend: type[Backend] = Backend  # what serves it then

    @property
    def target(self) -> InprocTarget:
        """The broken device, for the suite."""
        return inproc(
            self.broken,
            name=f"{self.name} {self.clause}",
            transport=self.transport,
            served=self.served,
            backend=self.backend,
        )


def over_queue(
    index: int, build: Factory, broken: Iterable[tuple[str, type[QueueProxy]]]
) -> Iterator[Mutant]:
    """Yield a mutant for each statement and proxy that breaks it, in the place of a queue."""
    for clause, kind in broken:
        yield Mutant(kind.__name__, clause, build, build, over(index, kind))


def mutants(
    build: Callable[[type[_Device]], Rig],
    broken: Iterable[tuple[str, type[_Device]]],
    sound: type[_Device] | None = None,
) -> Iterator[Mutant]:
    """Yield a mutant for each statement and class that breaks it.

    `sound` is what the classes are subclasses of, where it is not what `build` makes by itself.
    """
    default: Factory = build if sound is None else partial(build, sound)  # type: ignore[assignment]
    for clause, kind in broken:
        yield Mutant(kind.__name__, clause, partial(build, kind), default)

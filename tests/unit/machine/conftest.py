"""Fixtures of the tests of the machine."""

from collections.abc import Iterator

import pytest

from tests.unit.machine.bench import Bench, bench_of
from virtiopy.memory import GuestMemory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(2 << 20) as memory:
        yield memory


@pytest.fixture
def bench(memory: GuestMemory) -> Bench:
    return bench_of(memory)


@pytest.fixture
def lenient(memory: GuestMemory) -> Bench:
    return bench_of(memory, ignore_unassigned=True)

"""Fixtures of the tests of split virtqueues."""

from collections.abc import Iterator
from os import close, ftruncate, memfd_create

import pytest

from tests.unit.split_queue.rig import MEMORY_SIZE, PAGE, Rig, build
from virtiopy.memory import GuestMemory, Region


@pytest.fixture(autouse=True, params=["off", "on"], ids=["python", "native"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VIRTIOPY_NATIVE", request.param)
    return str(request.param)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        yield memory


@pytest.fixture
def rig(memory: GuestMemory) -> Rig:
    return build(memory)


@pytest.fixture
def two_regions() -> Iterator[GuestMemory]:
    # Neighbours in guest memory that are in the opposite order in host memory.
    fd = memfd_create("two-regions")
    ftruncate(fd, 32 * PAGE)
    regions = [
        Region.map(0, 16 * PAGE, fd, 16 * PAGE),
        Region.map(16 * PAGE, 16 * PAGE, fd, 0),
    ]
    close(fd)
    with GuestMemory(regions) as memory:
        yield memory

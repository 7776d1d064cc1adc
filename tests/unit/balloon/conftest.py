"""Fixtures of the tests of the balloon."""

from collections.abc import Iterator

import pytest

from tests.unit.balloon.bench import Bench, WatchedMemory, watched_memory
from virtiopy.devices.balloon import (
    Balloon,
)
from virtiopy.eventloop import EventLoop


@pytest.fixture
def memory() -> Iterator[WatchedMemory]:
    with watched_memory() as memory:
        yield memory


@pytest.fixture
def bench(memory: WatchedMemory) -> Bench:
    bench = Bench(memory, Balloon())
    bench.driver.start()
    return bench


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    with EventLoop() as loop:
        loop.start()
        yield loop

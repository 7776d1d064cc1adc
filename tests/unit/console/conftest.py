"""Fixtures of the tests of the console device."""

from collections.abc import Iterator

import pytest

from tests.unit.console.bench import Bench, FakeStream, bench_of
from virtiopy.devices.streams import Size


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A console with one port, started."""
    with bench_of(FakeStream()) as bench:
        bench.driver.start([])
        yield bench


@pytest.fixture
def multiport() -> Iterator[Bench]:
    """A console with three ports, of which the last has nobody at it yet; not started."""
    streams = FakeStream(size=Size(80, 25)), FakeStream(), FakeStream(connected=False)
    with bench_of(*streams, names=("org.example.one", "größe.2")) as bench:
        yield bench

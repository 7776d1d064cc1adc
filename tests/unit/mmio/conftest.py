"""Fixtures of the tests of virtio over MMIO."""

from collections.abc import Iterator

import pytest

from tests.unit.mmio.bench import Bench, bench_of


@pytest.fixture
def bench() -> Iterator[Bench]:
    with bench_of() as bench:
        yield bench


@pytest.fixture
def running(bench: Bench) -> Bench:
    bench.driver.start()
    bench.take_calls()
    return bench

"""Fixtures of the tests of the block device."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.blk.bench import Bench, FakeDisk, bench_of, make_image
from virtiopy.host.disk import DiskImage


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.img")


@pytest.fixture
def bench(image: Path) -> Iterator[Bench]:
    with DiskImage(image) as disk, bench_of(disk) as bench:
        bench.driver.start()
        yield bench


@pytest.fixture
def disk() -> FakeDisk:
    return FakeDisk()


@pytest.fixture
def faked(disk: FakeDisk) -> Iterator[Bench]:
    """A device on `disk`, which is not started."""
    with bench_of(disk) as bench:
        yield bench

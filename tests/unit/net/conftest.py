"""Fixtures of the tests of the network device."""

from collections.abc import Iterator

import pytest

from tests.unit.net.rig import RIGS


@pytest.fixture(autouse=True)
def _closed_rigs() -> Iterator[None]:
    yield
    while RIGS:
        RIGS.pop().memory.close()

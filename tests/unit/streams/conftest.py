"""Fixtures of the tests of consoles' streams."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.streams.bench import Terminal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "console.sock"


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    os.close(terminal.user)
    os.close(terminal.fd)

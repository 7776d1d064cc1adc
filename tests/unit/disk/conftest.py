"""Fixtures of the tests of disk images."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.disk.bench import PatchedLib, pattern
from virtiopy.host import disk as disk_module


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern())
    return path


@pytest.fixture
def patch_lib(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def patch(**results: Callable[..., int]) -> None:
        monkeypatch.setattr(disk_module, "lib", PatchedLib(**results))

    return patch

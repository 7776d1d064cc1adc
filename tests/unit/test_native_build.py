"""The compiled part is the one that Python's side goes by, or it is said in a sentence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import virtiopy


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the package, in a folder of its own."""
    source = Path(virtiopy.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__", "*.c", "conformance")
    shutil.copytree(source, tmp_path / "virtiopy", ignore=ignored)
    return tmp_path


def _hello(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "virtiopy", "hello", "--mode", "real", "--accel", "tcg"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_compiled_part_from_before_a_change_is_told(copy: Path) -> None:
    with (copy / "virtiopy/_native/cdef.h").open("a") as declarations:
        declarations.write("#define VP_NEW ...\n")

    done = _hello(copy)

    assert done.returncode == 2, done.stderr
    assert "is of another version: build it with scripts/setup" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_compiled_part_that_is_missing_is_told(copy: Path) -> None:
    [library] = (copy / "virtiopy/_native").glob("_lib*.so")
    library.unlink()

    done = _hello(copy)

    assert done.returncode == 2, done.stderr
    assert "is missing: build it with scripts/setup" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_one_that_was_built_is_taken(copy: Path) -> None:
    assert _hello(copy).returncode == 0

"""How the suite tells two strings of bytes apart."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.patience import PATIENCE
from virtiopy.conformance.report.difference import difference


@given(st.binary(), st.binary())
def test_it_is_empty_only_for_what_is_the_same(found: bytes, expected: bytes) -> None:
    assert (difference(found, expected) == "") == (found == expected)
    assert difference(found, found) == ""


@pytest.mark.parametrize(
    ("found", "expected", "told"),
    [
        (b"abcd", b"abxd", "at offset 2: found 6364, expected 7864"),
        (b"ab", b"abc", "at offset 2 of 2 and 3 bytes: found the end, expected 63"),
        (bytes(5000), bytes(4096), "at offset 4096 of 5000 and 4096 bytes: found 00000000"),
    ],
)
def test_it_tells_the_first_place(found: bytes, expected: bytes, told: str) -> None:
    assert difference(found, expected).startswith(told)


def test_a_page_that_is_another_is_explained_at_once_in_ci_too(tmp_path: Path) -> None:
    test = tmp_path / "test_pages.py"
    test.write_text(
        "import random\n"
        "from virtiopy.conformance.report.difference import difference\n"
        "def test():\n"
        "    pages = [random.Random(seed).randbytes(4096) for seed in (1, 2)]\n"
        "    assert not difference(*pages)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, str(test)]
    # The comparison of the two took minutes.
    done = subprocess.run(
        command,
        env=os.environ | {"CI": "true"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert "expected " in done.stdout
    assert done.returncode == 1

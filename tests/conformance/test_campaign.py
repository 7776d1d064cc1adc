"""Campaigns: what a file comes to, what its runs come to, and that what is done stays done."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.conformance.runs import REPOSITORY, run_command
from virtiopy.conformance.campaign.matrix import evidence
from virtiopy.conformance.campaign.plan import load
from virtiopy.errors import ConfigError

TOY = """
[[backend]]
name = "{name}"
devices = ["rng"]
target = "inproc:rng"

[backend.versions]
A = "1"
B = "2"

[[variant]]
options = ["-k", "test_version_1"]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "toy.toml"
    path.write_text(text)
    return path


def test_every_combination_is_a_cell_with_a_key_of_its_own(tmp_path: Path) -> None:
    cells = load(
        write(
            tmp_path,
            """
seeds = [1, 2, 3]
[[backend]]
name = "one"
devices = ["blk", "net"]
spawn = "{version} {device} {socket}"
[backend.versions]
old = "a"
new = "b"
[[variant]]
name = "x"
[[variant]]
name = "y"
""",
        )
    )
    assert len(cells) == len({cell.key for cell in cells}) == 2 * 2 * 2 * 3
    assert cells[0].options[:2] == ["--spawn=a blk {socket}", "--device=blk"]


def test_a_cell_with_other_options_is_another_cell(tmp_path: Path) -> None:
    before = load(write(tmp_path, TOY.format(name="toy")))
    after = load(write(tmp_path, "patience = 9\n" + TOY.format(name="toy")))
    assert {cell.key for cell in before} & {cell.key for cell in after} == set()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no backend"),
        ("x = [", "no TOML"),
        ("hum = 1", "hum, which means nothing"),
        ("[[backend]]\nname = 'x'", "lacks its name or its devices"),
        ("[[backend]]\nname = 'x'\ndevices = ['rng']", "a target, or a command to spawn"),
    ],
)
def test_a_file_that_says_nothing_is_refused_in_a_sentence(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load(write(tmp_path, text))


def test_evidence_is_the_same_whatever_numbers_are_in_it() -> None:
    one, other = "head 3 of queue 0: 0x12 bytes", "head 14 of queue 1: 0xff bytes"
    assert evidence(one) == evidence(other)
    assert evidence(one) != evidence("queue 0: no answer")


def test_the_evidence_of_a_walk_is_its_steps() -> None:
    walk = "no random byte\n\n    reset-queue queue=0 size=4\n\n    The same again: --replay=/tmp/a"
    assert evidence(walk) == "reset-queue queue=0 size=4"


@pytest.mark.thorough
def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    path = write(tmp_path, TOY.format(name="toy"))
    first = run_command("campaign", str(path), folder=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    found = json.loads((tmp_path / "toy" / "matrix.json").read_text())
    assert found["columns"] == ["toy A", "toy B"]
    assert (found["failures"], found["errors"]) == ([], {})
    [row] = [row for row in found["rows"] if row["statement"] == "6.2:1"]
    assert row["outcomes"] == {"toy A": "passed", "toy B": "passed"}
    assert "toy A" in (tmp_path / "toy" / "matrix.html").read_text()
    again = run_command("campaign", str(path), folder=tmp_path)
    assert "2 of 2 runs are done already" in again.stdout


@pytest.mark.nightly
def test_four_backends_beside_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaign of the page: what it comes to is what is known of each backend."""
    pytest.importorskip("distributed")
    for program in ("qemu-storage-daemon", "dpdk-testpmd"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    page = (REPOSITORY / "docs" / "campaign.md").read_text()
    _, text = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "four.toml"
    path.write_text(text.replace("patience = 2", "patience = 30"))
    run_command("campaign", str(path), folder=tmp_path)
    found = json.loads((tmp_path / "four" / "matrix.json").read_text())
    assert found["errors"] == {}
    assert len(found["columns"]) == 4
    assert len(list((tmp_path / "four").glob("*.json"))) == 10 + 1
    failed = {
        (column, one["statement"])
        for one in found["failures"]
        if one["outcome"] == "failed"
        for column in one["columns"]
    }
    qemu = {("qemu-storage-daemon 7.2", one) for one in ("ring-states:5", "SET_VRING_CALL:2")}
    # What is in flight when a ring stops is a matter of time.
    assert failed - {("qemu-storage-daemon 7.2", "GET_VRING_BASE:2")} == qemu

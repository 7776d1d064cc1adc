import subprocess
import tomllib
from pathlib import Path

import pytest

from virtiopy.conformance.clauses.catalogue import OF_VIRTIO, Area, Transport, load
from virtiopy.devices.balloon import BalloonFeature
from virtiopy.devices.blk import BlkFeature
from virtiopy.devices.console import ConsoleFeature
from virtiopy.devices.net.features import NetFeature
from virtiopy.spec import Feature, feature_mask
from virtiopy.statements import index
from virtiopy.statements.latex import Requirements
from virtiopy.statements.terms import Condition, Keyword

CLAUSES = load()

# A document of our own, of the specification's shape.
MAIN = r"""
\begin{document}
\chapter{Introduction}
\input{content.tex}
\appendix
\chapter{Header File}
\end{document}
"""
CONTENT = r"""
\chapter{Basic Facilities}
\section{Feature Bits}
\begin{description}
\item[VIRTIO_F_HUMMING (28)] The device hums.
\end{description}
\devicenormative{\subsection}{Humming}{Basic Facilities / Humming}
The device MUST hum. It SHOULD NOT sing, but MAY whistle.
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "virtio-spec"
    folder.mkdir()
    (folder / "main.tex").write_text(MAIN)
    (folder / "content.tex").write_text(CONTENT)
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "1"],
        ["tag", "v9"],
    ):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


def make(clone: Path, *options: str) -> int:
    """Run the command on a clone, for the list in the folder that the clone is in."""
    return index.main([str(clone), "--revision", "v9", *options], clone.parent)


def test_the_command_lists_the_statements_of_a_revision(clone: Path) -> None:
    assert make(clone) == 0
    made = index.load_index(clone.parent)
    assert [(identity, entry.keyword) for identity, entry in made.statements.items()] == [
        ("2.1.1:1", "MUST"),
        ("2.1.1:2", "SHOULD NOT"),
        ("2.1.1:3", "MAY"),
    ]
    assert made.titles == {"2.1.1": "Device Requirements: Humming"}
    assert made.features == {"VIRTIO_F_HUMMING": 28}


def test_the_list_holds_none_of_the_sentences(clone: Path) -> None:
    make(clone)
    assert "hum." not in (clone.parent / "index.toml").read_text()


def test_a_list_just_made_passes_its_check(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(clone)
    capsys.readouterr()
    assert make(clone, "--check") == 0
    assert capsys.readouterr().out == "3 statements in v9\n"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("MUST hum", "MUST hum softly", "2.1.1:1 reads otherwise in the sources"),
        ("It SHOULD NOT sing, but MAY whistle.", "", "2.1.1:2 is not in the sources"),
        ("MUST hum.", "MUST hum. It MUST stop.", "2.1.1:4 is missing"),
        ("MUST hum.", "MUST hum. It MUST stop.", "3 statements, the sources have 4"),
        ("(28)", "(29)", "the feature bits are others"),
        ("{Humming}", "{Buzzing}", "the titles of the sections are others"),
    ],
)
def test_the_check_tells_what_the_sources_have_otherwise(
    clone: Path,
    capsys: pytest.CaptureFixture[str],
    before: str,
    after: str,
    message: str,
) -> None:
    make(clone)
    (clone / "content.tex").write_text(CONTENT.replace(before, after))
    subprocess.run(
        ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qam", "2"],
        cwd=clone,
        check=True,
    )
    assert make(clone, "--revision", "HEAD", "--check") == 1
    assert message in capsys.readouterr().out


def test_a_folder_without_the_sources_is_told_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert index.main([str(tmp_path)]) == 2
    assert "give a clone of https://github.com/oasis-tcs/virtio-spec" in capsys.readouterr().err


def test_the_list_has_as_many_statements_as_it_says() -> None:
    data = tomllib.loads((index.FOLDERS[Requirements.DEVICE] / "index.toml").read_text())
    assert data["count"] == len(data["statements"]) == len(CLAUSES)
    assert data["revision"] == index.REVISION


NUMBERS = [*Feature, *NetFeature, *BlkFeature, *ConsoleFeature, *BalloonFeature]


def test_features_have_the_numbers_that_the_devices_use() -> None:
    used = {feature.name: feature.value for feature in NUMBERS}
    listed = index.load_index().features
    assert {name: listed.get(name) for name in used} == used


def test_a_clause_is_told_in_one_short_sentence() -> None:
    told = {identity: clause.paraphrase for identity, clause in CLAUSES.items()}
    assert {
        identity: text
        for identity, text in told.items()
        if len(text) > 200 or text.index(".") != len(text) - 1
    } == {}


@pytest.mark.parametrize("area", OF_VIRTIO)
def test_an_area_keeps_its_clauses_in_the_specifications_order(area: Area) -> None:
    written = tomllib.loads((index.FOLDERS[Requirements.DEVICE] / f"{area.value}.toml").read_text())
    assert list(written) == [one.id for one in CLAUSES.values() if one.area is area]


def test_a_clause_of_the_registers_is_not_for_vhost_user() -> None:
    assert CLAUSES["4.2.2.1:1"].transports == {Transport.MMIO}
    assert CLAUSES["2.7.5.1:4"].transports == set(Transport)


def test_a_clause_carries_what_the_list_says_of_it() -> None:
    clause = CLAUSES["5.2.6.2:3"]
    assert (clause.section, clause.keyword) == ("5.2.6.2", Keyword.MUST)
    assert clause.title == "Device Requirements: Device Operation"


def test_a_clause_applies_to_a_device_that_offers_its_feature() -> None:
    clause = CLAUSES["5.2.6.2:3"]
    assert clause.feature == "VIRTIO_BLK_F_RO"
    assert clause.applies(feature_mask([BlkFeature.VIRTIO_BLK_F_RO]))
    assert not clause.applies(feature_mask([BlkFeature.VIRTIO_BLK_F_FLUSH]))


def test_a_clause_without_a_feature_applies_to_any_device() -> None:
    assert CLAUSES["2.7.5.1:4"].applies(0)


@pytest.mark.parametrize(
    ("text", "offered", "holds"),
    [
        ("A and B", [1, 2], True),
        ("A and B", [1], False),
        ("A or C", [3], True),
        ("A or C", [2], False),
        ("A and B or C", [3], True),
        ("A and B or C", [2], False),
    ],
)
def test_a_condition_joins_features(text: str, offered: list[int], holds: bool) -> None:
    condition = Condition.parse(text, {"A": 1, "B": 2, "C": 3})
    assert condition.holds(feature_mask(offered)) is holds


def test_a_feature_that_nobody_knows_is_refused() -> None:
    with pytest.raises(KeyError):
        Condition.parse("VIRTIO_F_HUMMING", index.load_index().features)


def _write(folder: Path, statements: str, said: str) -> None:
    (folder / "index.toml").write_text(
        f'revision = "v9"\n[features]\n[titles]\n"2.1" = "T"\n[statements]\n{statements}\n'
    )
    for area in OF_VIRTIO:
        (folder / f"{area.value}.toml").write_text("")
    (folder / "basic.toml").write_text(said)


STATEMENT = '"2.1:1" = { keyword = "MUST", sha256 = "0" }'
SAID = '["2.1:1"]\nparaphrase = "The device hums."\n'


def test_a_statement_of_which_nothing_is_said_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, STATEMENT, "")
    with pytest.raises(ValueError, match=r"nothing is said of 2\.1:1"):
        load(tmp_path)


def test_what_is_said_of_no_statement_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, "", SAID)
    with pytest.raises(ValueError, match="in no index"):
        load(tmp_path)


def test_what_is_said_twice_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, STATEMENT, SAID)
    (tmp_path / "split.toml").write_text(SAID)
    with pytest.raises(ValueError, match="there twice"):
        load(tmp_path)

"""Reports of a run: their names, what other programs make of them, and two of them compared."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints
from xml.etree import ElementTree

import pytest

from tests.browser import needs_chromium, visit
from tests.conformance.runs import run_command, run_pytest
from virtiopy.conformance.report.comparison import differences, rows, sides
from virtiopy.conformance.report.document import (
    ClauseRecord,
    Document,
    ResultRecord,
    SubjectRecord,
    read,
)
from virtiopy.conformance.report.results import Outcome
from virtiopy.conformance.report.summary import compared
from virtiopy.conformance.report.verdict import Verdict
from virtiopy.conformance.targets.builders import BUILDERS
from virtiopy.errors import ConfigError

#: Notifies for every buffer, whatever the driver says; its description is no friend of HTML's.
NOISY = """\
from virtiopy.conformance.targets.target import inproc
from virtiopy.devices.rng import Rng

class Noisy(Rng):
    def handle(self, queue):
        queue.should_interrupt = lambda: True
        super().handle(queue)

virtio_target = inproc(Noisy, name="<Noisy & \\x07 co>")
"""

QUIET = """\
from virtiopy.conformance.targets.target import inproc
from virtiopy.devices.rng import Rng

virtio_target = inproc(Rng)
"""

#: What of the suite is run: tests of every outcome, and a hostile act.
SOME = "notification or in_order or version_1 or broken_ring"

#: A statement that Noisy does not meet.
CLAUSE = "2.7.7.2:2"


@dataclass(slots=True, frozen=True)
class Reports:
    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name

    def document(self, name: str) -> Document:
        return read(self.path(name))


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    folder = tmp_path_factory.mktemp("reports")
    for name, source in (("noisy", NOISY), ("quiet", QUIET)):
        (folder / f"test_{name}.py").write_text(source)
        options = [f"--virtio-report={name}.{kind}" for kind in ("html", "json", "xml")]
        # What Noisy breaks is a SHOULD NOT.
        run = run_pytest(f"test_{name}.py", "-k", SOME, "--virtio-strict", *options, folder=folder)
        assert run.returncode == (name == "noisy"), run.stdout
    return Reports(folder)


# JSON


def _names(kind: type) -> set[str]:
    return set(get_type_hints(kind))


def test_the_names_in_json_are_those_of_the_schema(reports: Reports) -> None:
    document = json.loads(reports.path("noisy.json").read_text())
    [subject] = document["subjects"]
    assert document["schema"] == 1
    assert set(document) == _names(Document)
    assert set(subject) == _names(SubjectRecord)
    assert {name for clause in subject["clauses"] for name in clause} == _names(ClauseRecord)
    assert {name for test in document["tests"] for name in test} == _names(ResultRecord)
    assert set(subject["outcomes"]) == {outcome.value for outcome in Outcome}
    assert set(subject["verdicts"]) == {verdict.value for verdict in Verdict}


def test_the_reference_has_every_name_in_json_every_outcome_and_every_verdict() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    named = set(re.findall(r"`(?:\w+\[\]\.)?([a-z_ ]+)`", reference))
    kinds = (Document, SubjectRecord, ClauseRecord, ResultRecord)
    names = {name for kind in kinds for name in _names(kind)}
    values = {item.value for kind in (Outcome, Verdict) for item in kind}
    assert (names | values) - named == set()


def test_the_reference_has_every_device_in_process() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    [line] = [line for line in reference.splitlines() if line.startswith("| `inproc:NAME`")]
    assert set(re.findall("`([a-z-]+)`", line)) == set(BUILDERS)


def test_verdicts_of_hostile_acts_are_counted(reports: Reports) -> None:
    document = reports.document("quiet.json")
    [subject] = document["subjects"]
    assert subject["verdicts"]["needs reset"] == 1
    [test] = [test for test in document["tests"] if test["verdicts"]]
    assert test["test"] == "test_basic.py::test_a_broken_ring_ends_in_device_needs_reset"


def test_a_failure_says_what_where_and_what_came_before(reports: Reports) -> None:
    document = reports.document("noisy.json")
    [test] = [test for test in document["tests"] if CLAUSE in test["clauses"]]
    assert test["reason"] == "a notification came although flags is 1"
    assert "def test_without_event_idx_no_interrupt" in test["details"]
    assert any("write QueueNotify" in line for line in test["trace"])


def test_outcomes_count_every_statement(reports: Reports) -> None:
    [subject] = reports.document("noisy.json")["subjects"]
    assert sum(subject["outcomes"].values()) == len(subject["clauses"])
    assert subject["outcomes"]["failed"] == len(_failed(reports.document("noisy.json")))


def _failed(document: Document) -> set[str]:
    return {
        clause["id"]
        for subject in document["subjects"]
        for clause in subject["clauses"]
        if clause["outcome"] == "failed"
    }


def test_a_statement_whose_tests_were_left_out_is_told_from_one_without(reports: Reports) -> None:
    [subject] = reports.document("quiet.json")["subjects"]
    reasons = {clause["id"]: clause["reason"] for clause in subject["clauses"]}
    assert reasons["2.7.4.1:1"] == "its tests were not run"


# XML


def test_the_xml_has_a_case_a_test_with_its_statements(reports: Reports) -> None:
    [suite] = ElementTree.parse(reports.path("noisy.xml")).getroot()
    cases = {case.attrib["name"]: case for case in suite.iter("testcase")}
    assert int(suite.attrib["tests"]) == len(cases)
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure"))
    case = cases["test_without_event_idx_no_interrupt_leaves_notifications_out"]
    assert list(_clauses(case)) == [CLAUSE]
    failure = case.find("failure")
    assert failure is not None
    assert "although flags is 1" in failure.attrib["message"]
    assert "write QueueNotify" in case.findtext("system-out", "")
    skipped = cases["test_in_order_uses_buffers_in_the_order_they_came"].find("skipped")
    assert skipped is not None
    message = "not applicable: VIRTIO_F_IN_ORDER was not offered"
    assert skipped.attrib["message"].startswith(message)


def _clauses(case: ElementTree.Element) -> Iterator[str]:
    for item in case.iter("property"):
        if item.attrib["name"] == "clause":
            yield item.attrib["value"]


# HTML


@needs_chromium
def test_the_page_shows_statements_outcomes_and_evidence(reports: Reports, tmp_path: Path) -> None:
    seen = visit(reports.path("noisy.html"), tmp_path)
    assert seen.requests == []
    assert "python:&lt;Noisy &amp;" in seen.dom
    assert f'id="s{CLAUSE}"' in seen.dom
    assert "a notification came although flags is 1" in seen.dom
    assert "write QueueNotify = 0x0" in seen.dom
    assert "VIRTIO_F_IN_ORDER was not offered" in seen.dom


@needs_chromium
def test_the_page_hides_and_shows_by_outcome(reports: Reports, tmp_path: Path) -> None:
    # Headless Chromium clicks on nothing; a page that is printed without a row's outcome has the
    # colour of that outcome's pills nowhere but in the bar on top.
    image = pytest.importorskip("PIL.Image", reason="Pillow, which matplotlib needs, is missing")
    page = reports.path("quiet.html")
    without = tmp_path / "without.html"
    text = page.read_text()
    assert 'id="show-passed" checked' in text
    without.write_text(text.replace('id="show-passed" checked', 'id="show-passed"'))
    passed = (0x00, 0x9E, 0x73)
    counts = []
    for path in (page, without):
        screenshot = tmp_path / "page.png"
        visit(path, tmp_path, f"--screenshot={screenshot}", "--window-size=1100,8000")
        with image.open(screenshot) as shown:
            colors = {color: count for count, color in shown.convert("RGB").getcolors(1 << 24)}
        counts.append(colors.get(passed, 0))
    assert counts[0] > 2 * counts[1]


# Two reports


def test_two_reports_differ_first_in_what_one_fails(reports: Reports) -> None:
    found = sides([(name, reports.document(f"{name}.json")) for name in ("quiet", "noisy")])
    different = differences(rows(found))
    assert {row.clause["id"] for row in different} == _failed(reports.document("noisy.json"))
    assert different[0].outcomes == ["passed", "failed"]


def test_the_same_report_twice_does_not_differ(reports: Reports) -> None:
    found = sides([(name, reports.document("noisy.json")) for name in "AB"])
    assert list(compared(found, rows(found)))[-1].startswith("No difference in")


def test_the_command_compares_and_makes_a_page(reports: Reports) -> None:
    arguments = ["compare", "quiet.json", "noisy.json", "--html", "both.html"]
    run = run_command(*arguments, folder=reports.folder)
    assert run.returncode == 1, run.stderr
    [line] = [line for line in run.stdout.splitlines() if line.startswith(CLAUSE)]
    assert line.split()[1:3] == ["passed", "failed"]
    page = reports.path("both.html").read_text()
    assert page.index("Where they differ") < page.index("not met by A") < page.index("not met by B")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(None, "cannot be read"), ("no JSON", "is no JSON"), ("{}", "is none that this virtiopy")],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read(path)


def test_a_report_of_no_kind_is_refused_before_the_run(tmp_path: Path) -> None:
    run = run_command("inproc:rng", "--report", "report.pdf", folder=tmp_path)
    assert run.returncode == 2
    assert "give a name that ends in .html, .json, .xml" in run.stderr

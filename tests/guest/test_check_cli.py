"""The option that has a run's drivers judged, and the list of what they are held against."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.guest.accelerators import needs_unicorn
from tests.guest.support import VIRTIOPY, assert_one_sentence, make_image, virtiopy
from tests.guest.vhost_user import Backend

pytestmark = needs_unicorn


def judged(folder: Path, mistake: str, report: str = "") -> tuple[int, str, str]:
    image = make_image(folder / "disk.img")
    option = f"--check-driver={folder / report}" if report else "--check-driver"
    outcome = virtiopy(
        *("run", "--accel", "tcg", "--mode", "trapped", "--disk", image),
        *("--guest", "mistakes", "--append", f"mistake={mistake}", option),
    )
    return outcome.status, outcome.output, outcome.errors


def test_a_run_says_which_statement_its_driver_broke(tmp_path: Path) -> None:
    status, output, errors = judged(tmp_path, "blk-beyond")
    assert status == 1, errors
    assert "blk0: VIRTIO_BLK_T_IN of 8 sectors at" in output
    assert "5.2.6.1:2 MUST NOT: No request of the driver reads or writes beyond capacity." in output
    assert "Drivers: 1 MUST broken, 0 SHOULD broken" in output


def test_a_run_of_a_sound_driver_passes(tmp_path: Path) -> None:
    status, output, errors = judged(tmp_path, "none")
    assert status == 0, errors
    assert "Drivers: 0 MUST broken, 0 SHOULD broken" in output


def test_a_broken_should_leaves_the_status_alone(tmp_path: Path) -> None:
    status, output, errors = judged(tmp_path, "blk-flush-data")
    assert status == 0, errors
    assert "Drivers: 0 MUST broken, 1 SHOULD broken" in output


def test_the_report_for_programs_has_every_statement(tmp_path: Path) -> None:
    judged(tmp_path, "blk-beyond", "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [finding["statement"] for finding in report["findings"]] == ["5.2.6.1:2"]
    assert report["findings"][0]["trace"]
    assert len(report["statements"]) == 357
    assert {one["outcome"] for one in report["statements"]} == {"kept", "broken", "not exercised"}


def test_the_report_for_continuous_integration_fails_one_case(tmp_path: Path) -> None:
    judged(tmp_path, "blk-beyond", "report.xml")
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == ["5.2.6.1:2 No request of the driver reads or writes beyond capacity."]


def test_the_page_shows_the_finding_first(tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="the extra `conformance` is not installed")
    judged(tmp_path, "blk-beyond", "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.index("VIRTIO_BLK_T_IN of 8 sectors") < page.index("<h2>Statements</h2>")


def test_a_report_of_no_form_is_refused_before_the_run(tmp_path: Path) -> None:
    outcome = virtiopy("run", "--accel", "tcg", f"--check-driver={tmp_path / 'report.txt'}")
    assert_one_sentence(outcome, ".html, .json, .xml")


def test_a_report_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    outcome = virtiopy("run", "--accel", "tcg", f"--check-driver={tmp_path / 'no' / 'r.json'}")
    assert_one_sentence(outcome, "cannot be written")


@pytest.mark.parametrize(("mistake", "status"), [("blk-beyond", 1), ("none", 0)])
def test_a_served_device_judges_the_driver_of_its_frontend(
    tmp_path: Path, mistake: str, status: int
) -> None:
    image, path = make_image(tmp_path / "disk.img"), tmp_path / "blk.sock"
    command = [*VIRTIOPY, "serve", "blk", str(image), "--socket", str(path), "--check-driver"]
    with Backend(command, path) as backend:
        outcome = virtiopy(
            *("run", "--accel", "tcg", "--disk", f"vhost-user={path}"),
            *("--guest", "mistakes", "--append", f"mistake={mistake}"),
        )
        assert outcome.status == 0, outcome.errors
    assert backend.process.returncode == status, backend.output
    assert ("5.2.6.1:2 MUST NOT" in backend.output) == bool(status)


def test_the_statements_are_listed() -> None:
    outcome = virtiopy("check", "--statements")
    assert outcome.status == 0
    assert outcome.output.startswith("virtio 1.4: 357 statements to drivers")


def test_a_part_that_there_is_not_is_refused() -> None:
    assert_one_sentence(virtiopy("check", "--statements", "9"), "name a section")


# Each device in turn


def test_a_guest_meets_each_device_in_turn(tmp_path: Path) -> None:
    image, whole = make_image(tmp_path / "disk.img"), tmp_path / "whole.json"
    outcome = virtiopy(
        *("run", "--accel", "tcg", "--mode", "trapped", "--disk", image, "--guest", "mistakes"),
        *("--append", "mistake=queue-too-large", "--check-driver", "--json", whole),
        *("--device-variant", "queue-of-2,no-device", "--hostile", "queue-size-0"),
    )
    assert outcome.status == 1, outcome.errors
    assert "2 of 4 runs are right" in outcome.output
    assert "[with as-it-is, queue-of-2]" in outcome.output
    report = json.loads(whole.read_text())
    assert report["status"] == 1
    assert [(run["case"], run["outcome"], run["right"]) for run in report["runs"]] == [
        ("as-it-is", "passes", False),
        ("queue-of-2", "passes", False),
        ("no-device", "passes", True),
        ("queue-size-0", "passes", True),
    ]
    assert [one["statement"] for one in report["drivers"]["findings"]] == ["4.2.2.2:14"]


def test_what_keeps_the_first_run_from_running_is_said_once(tmp_path: Path) -> None:
    outcome = virtiopy(
        *("run", "--accel", "tcg", "--disk", tmp_path / "none.img", "--hostile", "all")
    )
    assert_one_sentence(outcome, "none.img does not exist")


def test_a_shell_has_no_turns() -> None:
    outcome = virtiopy("linux", "--device-variant", "all")
    assert_one_sentence(outcome, "give one after --")


def test_a_name_among_several_that_is_none_is_refused() -> None:
    outcome = virtiopy("run", "--accel", "tcg", "--device-variant", "late,laet")
    assert_one_sentence(outcome, "There is no device variant 'laet'")


@pytest.mark.parametrize(
    ("variant", "outcome"), [("many-features", "kept"), ("needs-reset", "not exercised")]
)
def test_a_variant_that_did_nothing_put_no_driver_to_the_test(
    tmp_path: Path, variant: str, outcome: str
) -> None:
    # The guest has one buffer of random bytes: too few for a device that needs a reset later.
    path = tmp_path / "report.json"
    done = virtiopy(
        *("run", "--accel", "tcg", "--mode", "trapped", "--rng", "--guest", "mistakes"),
        *("--device-variant", variant, f"--check-driver={path}"),
    )
    assert done.status == 0, done.errors
    provoked = [
        one["outcome"]
        for one in json.loads(path.read_text())["statements"]
        if one.get("variant") == variant
    ]
    assert set(provoked) == {outcome}

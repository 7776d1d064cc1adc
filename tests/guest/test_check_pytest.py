"""The fixture for authors of operating systems, on a guest of ours with a mistake and without."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.guest.accelerators import needs_unicorn

pytest_plugins = ["pytester"]
pytestmark = needs_unicorn

CONFTEST = """
import pytest
from virtiopy.check.pytest import Guest

pytest_plugins = ["virtiopy.check.pytest"]

@pytest.fixture
def virtio_guest():
    return Guest(
        "mistakes",
        [*"--accel tcg --mode trapped --rng".split(), "--append", "mistake={mistake}"],
        marker="ok 1",
        marker_of_failure="not ok",
        kernel=False,
        timeout={timeout},
    )
"""

TEST = """
def test_driver(virtio_case):
    virtio_case.check()
"""

#: A few cases stand for all: each is a VM.
SOME = "as-it-is or variant-queue-of-1 or hostile-index-jump"


def run(
    pytester: pytest.Pytester, mistake: str, *arguments: str, timeout: float = 30
) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST.format(mistake=mistake, timeout=timeout))
    pytester.makepyfile(TEST)
    return pytester.runpytest("-p", "no:cacheprovider", *arguments)


def statements(path: Path) -> Sequence[str]:
    return [finding["statement"] for finding in json.loads(path.read_text())["findings"]]


def test_each_unusual_and_each_hostile_device_is_a_test(pytester: pytest.Pytester) -> None:
    result = run(pytester, "none", "--collect-only", "-q")
    lines = [line for line in result.outlines if "test_driver[" in line]
    assert len(lines) >= 36
    for name in ("as-it-is", "variant-late", "hostile-silence"):
        assert any(f"[{name}]" in line for line in lines)


def test_each_feature_that_is_named_is_withheld_in_a_test(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nvirtio_withhold = VIRTIO_F_EVENT_IDX VIRTIO_F_INDIRECT_DESC")
    result = run(pytester, "none", "-k", "without-VIRTIO_F_EVENT_IDX")
    result.assert_outcomes(passed=1)


def test_a_feature_that_is_none_is_refused_before_the_runs(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nvirtio_withhold = EVENT_IDX")
    result = run(pytester, "none")
    result.stdout.fnmatch_lines(["*virtio_withhold: There is no device variant*"])
    assert result.ret != pytest.ExitCode.OK


def test_a_sound_driver_is_all_green(pytester: pytest.Pytester) -> None:
    result = run(pytester, "none", "-k", SOME, "--driver-report=report.json")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["Drivers: 0 MUST broken*", "3 of 3 runs are right."])
    assert statements(pytester.path / "report.json") == []


def test_a_mistake_fails_each_test_and_is_one_finding_of_the_report_of_several_processes(
    pytester: pytest.Pytester,
) -> None:
    pytest.importorskip("xdist", reason="pytest-xdist is missing")
    result = run(pytester, "early-kick", "-k", SOME, "--driver-report=report.json", "-n", "2")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*(3.1.1:7 MUST NOT: *", "1 of 3 runs are right."])
    assert statements(pytester.path / "report.json") == ["3.1.1:7"]


def test_a_guest_that_hangs_fails_and_the_test_says_where_it_stands(
    pytester: pytest.Pytester,
) -> None:
    result = run(pytester, "none", "-k", "hostile-silence", timeout=2)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["silence: the device uses no buffer; the guest hangs"])


def test_a_report_of_no_form_is_refused_before_the_runs(pytester: pytest.Pytester) -> None:
    result = run(pytester, "none", "--driver-report=report.txt")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*report.txt*.html, .json, .xml.*"])


def test_a_report_that_cannot_be_written_is_refused_before_the_runs(
    pytester: pytest.Pytester,
) -> None:
    result = run(pytester, "none", "--driver-report=no/report.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*The report no/report.json cannot be written*"])


def test_a_suite_without_a_guest_is_told_to_have_one(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["virtiopy.check.pytest"]')
    pytester.makepyfile(TEST)
    result = pytester.runpytest("-p", "no:cacheprovider", "-k", "as-it-is")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*define a fixture virtio_guest*"])

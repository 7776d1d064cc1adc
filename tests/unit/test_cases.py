"""What a run with an unusual or a hostile device came to, read from what it wrote."""

import json
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from virtiopy.check import report
from virtiopy.check.cases import (
    AS_IT_IS,
    Case,
    CaseKind,
    CaseResult,
    Files,
    Outcome,
    cases,
    document,
    merge,
    read_result,
    rows,
    withheld,
    worst,
)
from virtiopy.check.hostile import HOSTILE
from virtiopy.check.judge import DeviceJudge, Verdict
from virtiopy.check.variants import VARIANTS
from virtiopy.cli import inturn
from virtiopy.errors import ConfigError

LATE = Case(CaseKind.VARIANT, "late", "uses buffers late")
NO_DEVICE = Case(CaseKind.VARIANT, "no-device", "has DeviceID 0", usable=False)
SILENCE = Case(CaseKind.HOSTILE, "silence", "uses no buffer")

OFFERED = ["VIRTIO_F_EVENT_IDX", "VIRTIO_BLK_F_FLUSH", "feature bit 60"]

#: A MUST and a SHOULD.
MUST, SHOULD = "2.1.1:2", "2.4.2:1"


def judged(*broken: str) -> Verdict:
    judge = DeviceJudge("blk0")
    judge.kept("2.2.1:1")
    for statement in broken:
        judge.broke(statement, f"the driver breaks {statement}")
    return Verdict([judge])


def result(
    folder: Path,
    case: Case,
    reason: str = "exit",
    *,
    passed: bool = True,
    output: str = "",
    verdict: Verdict | None = None,
    status: int = 0,
    tests: Sequence[str] = (),
) -> CaseResult:
    """Read the result of a run that wrote this."""
    files = Files.make(folder / f"{case.name}-{len(list(folder.iterdir()))}")
    files.output.write_text(output)
    run = {
        "devices": [{"name": "blk0", "offered": ["VIRTIO_F_VERSION_1", *OFFERED]}],
        "reason": reason,
        "passed": passed,
        "status": status,
        "seconds": 1.25,
        "complaint": "it took too long" if reason != "exit" else None,
        "standing": {"devices": [{"name": "blk0", "facts": ["queue 0 was never kicked"]}]},
        "tests": [{"description": name, "outcome": "failed"} for name in tests],
    }
    files.run.write_text(json.dumps(run))
    if verdict is not None:
        report.write(verdict, files.judged)
    return read_result(case, files, status)


def test_every_device_has_its_turn_and_the_one_as_it_is_comes_first() -> None:
    names = [case.name for case in cases()]
    assert names == ["as-it-is", *VARIANTS, *HOSTILE]
    assert [case.name for case in cases("late,queue-of-1", None)][1:] == ["late", "queue-of-1"]
    assert [case.options for case in cases(None, "silence")] == [[], ["--hostile", "silence"]]


@pytest.mark.parametrize(("variants", "hostile"), [("late,lat", None), (None, "silence,")])
def test_a_name_that_is_none_is_refused(variants: str | None, hostile: str | None) -> None:
    with pytest.raises(ConfigError, match="There is no"):
        cases(variants, hostile)


def test_each_feature_that_a_device_can_withhold_is_withheld(tmp_path: Path) -> None:
    first = result(tmp_path, AS_IT_IS)
    assert [case.name for case in withheld(first.offered)] == [
        "without-VIRTIO_F_EVENT_IDX",
        "without-VIRTIO_BLK_F_FLUSH",
    ]
    assert [case.name for case in cases("late,without-VIRTIO_NET_F_MAC", None)][1:] == [
        "late",
        "without-VIRTIO_NET_F_MAC",
    ]


def test_all_withholds_what_the_first_run_has_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []

    def run(_: object, case: Case, *rest: object, **keywords: object) -> CaseResult:
        names.append(case.name)
        return result(tmp_path, case)

    monkeypatch.setattr(inturn, "_run", run)
    context = click.Context(click.Command("run"))
    context.params = {
        "device_variant": "all",
        "hostile": "silence",
        "check_driver": None,
        "json_path": None,
    }
    assert inturn.run_in_turn(context, with_console=False) == 0
    assert names == [
        "as-it-is",
        *VARIANTS,
        "without-VIRTIO_F_EVENT_IDX",
        "without-VIRTIO_BLK_F_FLUSH",
        "silence",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("without-", "give a feature by the specification's name"),
        ("without-VIRTIO_BLK_F_NONE", "give a feature by the specification's name"),
        ("without-VIRTIO_F_VERSION_1", "no legacy device offers it"),
    ],
)
def test_a_feature_that_cannot_be_withheld_is_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cases(name, None)


def test_a_guest_that_passes(tmp_path: Path) -> None:
    found = result(tmp_path, LATE, verdict=judged())
    assert (found.outcome, found.is_right, worst([found])) == (Outcome.PASSES, True, 0)


def test_a_guest_that_reports_failure_says_which_test(tmp_path: Path) -> None:
    found = result(tmp_path, LATE, passed=False, tests=["reads a sector"])
    assert (found.outcome, found.why, worst([found])) == (Outcome.REPORTS, "reads a sector", 1)


def test_a_guest_that_hangs_says_where_its_devices_stand(tmp_path: Path) -> None:
    found = result(tmp_path, LATE, "timeout", passed=False)
    assert found.outcome is Outcome.HANGS
    assert found.why == "blk0: queue 0 was never kicked"


@pytest.mark.parametrize(
    "line",
    [
        "[    4.1] Kernel panic - not syncing: Attempted to kill init!",
        "[    4.1] BUG: unable to handle page fault for address: ffff888000000000",
        "[    4.1] WARNING: CPU: 0 PID: 1 at drivers/virtio/virtio_ring.c:2211",
        "[  122.0] INFO: task dd:71 blocked for more than 120 seconds.",
    ],
)
def test_a_kernel_in_trouble_crashes_though_it_ends_well(tmp_path: Path, line: str) -> None:
    found = result(tmp_path, SILENCE, output=f"hello\n{line}\nbye\n")
    assert (found.outcome, found.why) == (Outcome.CRASHES, line)
    assert not found.is_right


def test_a_fault_of_the_guest_is_a_crash(tmp_path: Path) -> None:
    assert result(tmp_path, LATE, "guest-fault").outcome is Outcome.CRASHES


def test_a_run_that_wrote_nothing_was_not_run(tmp_path: Path) -> None:
    files = Files.make(tmp_path / "case")
    files.output.write_text("virtiopy: There is no image.\n")
    found = read_result(AS_IT_IS, files, 2)
    assert (found.outcome, found.why) == (Outcome.NOT_RUN, "virtiopy: There is no image.")
    assert worst([found, result(tmp_path, LATE, passed=False)]) == 2


def test_a_guest_that_reports_failure_lives_with_a_hostile_device(tmp_path: Path) -> None:
    assert result(tmp_path, SILENCE, passed=False, verdict=judged(MUST)).is_right
    assert not result(tmp_path, SILENCE, "timeout").is_right


def test_a_guest_that_leaves_a_device_alone_need_not_pass(tmp_path: Path) -> None:
    assert result(tmp_path, NO_DEVICE, passed=False, verdict=judged()).is_right
    assert not result(tmp_path, NO_DEVICE, passed=False, verdict=judged(MUST)).is_right


def test_a_must_makes_a_run_wrong_and_a_should_does_not(tmp_path: Path) -> None:
    wrong = result(tmp_path, LATE, verdict=judged(MUST))
    warned = result(tmp_path, LATE, verdict=judged(SHOULD))
    assert (worst([wrong]), worst([warned])) == (1, 0)
    assert [row[1:4] for row in rows([wrong, warned])] == [
        ("passes", "1", "0"),
        ("passes", "0", "1"),
    ]
    assert [one["right"] for one in document([wrong, warned])] == [False, True]


def test_a_finding_of_several_runs_is_one_and_says_of_which(tmp_path: Path) -> None:
    found = [
        result(tmp_path, AS_IT_IS, verdict=judged(SHOULD)),
        result(tmp_path, LATE, verdict=judged(MUST, SHOULD)),
        # No statement holds for the driver of a hostile device.
        result(tmp_path, SILENCE, verdict=judged("2.2.1:2")),
    ]
    verdict = merge(found)
    assert [(one.statement.id, one.count, one.evidence) for one in verdict.findings] == [
        (MUST, 1, [f"the driver breaks {MUST} [with late]"]),
        (SHOULD, 2, [f"the driver breaks {SHOULD} [in every run]"]),
    ]
    outcomes = {one.id: (outcome, count) for one, outcome, count in verdict.outcomes()}
    assert outcomes["2.2.1:1"] == ("kept", 2)

"""A guest run with each unusual and each hostile device in turn, and what each run came to.

A run is a `virtiopy run` or `virtiopy linux` that writes its reports, started by the caller; what
is here reads them. So the command line and a test of a user's own say the same of a run.
"""

import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtiopy.check import recorded, report
from virtiopy.check.hostile import HOSTILE
from virtiopy.check.hostile import find as find_hostile
from virtiopy.check.judge import Finding, Verdict
from virtiopy.check.variants import VARIANTS
from virtiopy.check.variants import find as find_variant
from virtiopy.check.withheld import PREFIX, variants_of

#: What names every case of a kind.
ALL = "all"

#: How much longer than with the device as it is a run may take before it hangs, where the user
#: does not say: a number of times, and at least so many seconds.
PATIENCE_TIMES = 10
PATIENCE_LEAST = 30.0

#: What a kernel says when it is in trouble and goes on, or does not.
_TROUBLE = re.compile(
    r"Kernel panic - not syncing|\bOops\b|\bBUG:|kernel BUG at|general protection fault|"
    r"\bWARNING: CPU:|INFO: task .* blocked for more than|KASAN:"
)

#: What the lines of tables begin with: they are not what the guest says.
_TABLE_EDGES = "┏┃┡│├└"

#: How much of a run's output is kept: its end.
_OUTPUT_KEPT = 1 << 16


class CaseKind(enum.Enum):
    """Whether the devices of a case are as ever, legal but unusual, or break the specification."""

    AS_IT_IS = "as it is"
    VARIANT = "variant"
    HOSTILE = "hostile"


@dataclass(slots=True, frozen=True)
class Case:
    """What is done to the devices of a run; `text` says what they do.

    `usable` says whether a right driver makes use of such a device: else it may leave it alone.
    """

    kind: CaseKind
    name: str
    text: str
    usable: bool = True

    @property
    def options(self) -> list[str]:
        """The options of `virtiopy run` for it."""
        match self.kind:
            case CaseKind.VARIANT:
                return ["--device-variant", self.name]
            case CaseKind.HOSTILE:
                return ["--hostile", self.name]
            case _:
                return []


AS_IT_IS = Case(CaseKind.AS_IT_IS, "as-it-is", "changes nothing")


def cases(variants: str | None = ALL, hostile: str | None = ALL) -> list[Case]:
    """Return the device as it is, and then each unusual and each hostile one that is named.

    Names stand between commas; ALL is every one, None none. Raises ConfigError for a name that is
    none.
    """
    enemies = [find_hostile(name) for name in _names(hostile, HOSTILE)]
    return [
        AS_IT_IS,
        *_unusual(_names(variants, VARIANTS)),
        *(Case(CaseKind.HOSTILE, one.name, one.text) for one in enemies),
    ]


def withheld(offered: Iterable[str]) -> list[Case]:
    """Return a case for each feature that a device of a run offers, and that it can withhold."""
    return _unusual(variants_of(offered))


def named(features: Iterable[str]) -> list[Case]:
    """Return a case for each of these features, withheld; raises ConfigError for another name."""
    return _unusual(f"{PREFIX}{name}" for name in features)


def _unusual(names: Iterable[str]) -> list[Case]:
    found = [find_variant(name) for name in names]
    return [Case(CaseKind.VARIANT, one.name, one.text, one.usable) for one in found]


def is_in_turn(choice: str | None) -> bool:
    """Say whether an option asks for several devices in turn."""
    return choice is not None and (choice == ALL or "," in choice)


def _names(choice: str | None, known: Iterable[str]) -> list[str]:
    if choice is None:
        return []
    return list(known) if choice == ALL else list(dict.fromkeys(choice.split(",")))


class Outcome(enum.StrEnum):
    """How a guest came out of a run."""

    PASSES = "passes"
    REPORTS = "reports failure"  # it lives, and says so by its status
    HANGS = "hangs"
    CRASHES = "crashes"  # a triple fault, a panic, an oops
    NOT_RUN = "was not run"


@dataclass(slots=True, frozen=True)
class CaseResult:
    """What a run came to: `status` is virtiopy's, `why` one line on an outcome that is no pass.

    `output` is the end of what the guest and virtiopy said; `verdict` is None for a run that was
    not judged. `offered` are the features that its devices offered, by name.
    """

    case: Case
    outcome: Outcome
    status: int
    seconds: float
    why: str = ""
    output: str = ""
    verdict: Verdict | None = None
    offered: Sequence[str] = ()

    def record(self) -> dict[str, object]:
        """Return all of it as what JSON can say."""
        return {
            "kind": self.case.kind.value,
            "name": self.case.name,
            "text": self.case.text,
            "usable": self.case.usable,
            "outcome": self.outcome.value,
            "status": self.status,
            "seconds": self.seconds,
            "why": self.why,
            "output": self.output,
            "verdict": None if self.verdict is None else report.document(self.verdict),
            "offered": list(self.offered),
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "CaseResult":
        """Return what `record` was made of."""
        case = Case(CaseKind(record["kind"]), record["name"], record["text"], record["usable"])
        verdict = None if record["verdict"] is None else recorded.parse(record["verdict"])
        return cls(
            case,
            Outcome(record["outcome"]),
            record["status"],
            record["seconds"],
            record["why"],
            record["output"],
            verdict,
            record["offered"],
        )

    def said_last(self, count: int) -> list[str]:
        """Return the last lines of the output, without those of tables."""
        lines = self.output.splitlines()
        return [line for line in lines if line.strip() and line[0] not in _TABLE_EDGES][-count:]

    @property
    def errors(self) -> list[Finding]:
        """The findings of MUST and MUST NOT."""
        return [] if self.verdict is None else self.verdict.errors

    @property
    def warnings(self) -> list[Finding]:
        """The findings of SHOULD and SHOULD NOT."""
        found = [] if self.verdict is None else self.verdict.findings
        return [finding for finding in found if not finding.is_error]

    @property
    def survived(self) -> bool:
        """Whether the guest did what is asked of it with such a device.

        It passes with a legal one; it leaves alone what is not usable, and lives with a hostile
        one, whatever it says of it.
        """
        if self.case.kind is CaseKind.HOSTILE or not self.case.usable:
            return self.outcome in (Outcome.PASSES, Outcome.REPORTS)
        return self.outcome is Outcome.PASSES

    @property
    def is_right(self) -> bool:
        """Whether the guest survived, and broke no MUST: a hostile device leaves no statements."""
        return self.survived and (self.case.kind is CaseKind.HOSTILE or not self.errors)


@dataclass(slots=True, frozen=True)
class Files:
    """Where a run writes its reports and its output, in a folder of the case's own."""

    folder: Path

    @property
    def run(self) -> Path:
        """The report of `--json`."""
        return self.folder / "run.json"

    @property
    def judged(self) -> Path:
        """The report of `--check-driver`."""
        return self.folder / "judged.json"

    @property
    def output(self) -> Path:
        """What the run says, on standard output and standard error."""
        return self.folder / "output.txt"

    @classmethod
    def make(cls, folder: Path) -> "Files":
        """Make the folder."""
        folder.mkdir()
        return cls(folder)


def read_result(case: Case, files: Files, status: int) -> CaseResult:
    """Say what a run came to, of what it wrote; `status` is what it ended with."""
    output, trouble = _read_output(files.output)
    if not files.run.exists():
        return CaseResult(case, Outcome.NOT_RUN, status, 0.0, _last_line(output), output)
    run = json.loads(files.run.read_text())
    verdict = recorded.read(files.judged) if files.judged.exists() else None
    complaint = str(run["complaint"] or "")
    why = complaint
    match run["reason"]:
        case "timeout":
            outcome = Outcome.HANGS
            why = _standing(run) or complaint
        case "guest-fault":
            outcome = Outcome.CRASHES
        case "exit" if trouble:
            outcome, why = Outcome.CRASHES, trouble
        case "exit" if run["passed"]:
            outcome = Outcome.PASSES
        case "exit":
            outcome = Outcome.REPORTS
            why = _failed_tests(run) or f"it ends with status {run['status']}, and has not passed"
        case _:
            outcome = Outcome.NOT_RUN
    offered = dict.fromkeys(name for device in run["devices"] for name in device["offered"])
    return CaseResult(
        case, outcome, status, float(run["seconds"]), why, output, verdict, list(offered)
    )


def _read_output(path: Path) -> tuple[str, str]:
    """Return the end of the output, and the first line in which a kernel is in trouble."""
    trouble = ""
    with path.open(errors="replace") as stream:
        for line in stream:
            if not trouble and _TROUBLE.search(line):
                trouble = line.strip()
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _OUTPUT_KEPT))
        return file.read().decode(errors="replace"), trouble


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _failed_tests(run: dict[str, list[dict[str, str]]]) -> str:
    failed = [test["description"] for test in run["tests"] if test["outcome"] == "failed"]
    return ", ".join(failed)


def _standing(run: dict[str, dict[str, list[dict[str, list[str]]]]]) -> str:
    devices = (run["standing"] or {}).get("devices", [])
    return "; ".join(f"{device['name']}: {fact}" for device in devices for fact in device["facts"])


def worst(results: Iterable[CaseResult]) -> int:
    """Return the exit status of all runs: 2 for one that was not run, 1 for one that is not right.

    A run that came to nothing because of the user or the host is worse than a guest that fails.
    """
    found = list(results)
    if any(result.outcome is Outcome.NOT_RUN for result in found):
        return 2
    return 0 if all(result.is_right for result in found) else 1


def merge(results: Sequence[CaseResult]) -> Verdict:
    """Return what all runs came to as one: a finding once, with the cases that it was found in.

    Runs with hostile devices are left out: no statement holds for a driver of such a device.
    """
    judged = [
        (result.case.name, result.verdict)
        for result in results
        if result.verdict is not None and result.case.kind is not CaseKind.HOSTILE
    ]
    return recorded.merge(judged)


def rows(results: Iterable[CaseResult]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield for each run: case, outcome, MUST and SHOULD broken, and seconds."""
    for result in results:
        counts = ("", "")
        if result.verdict is not None:
            counts = (str(len(result.errors)), str(len(result.warnings)))
        yield (
            result.case.name,
            result.outcome.value,
            *counts,
            f"{result.seconds:.1f}",
        )


def document(results: Sequence[CaseResult]) -> list[dict[str, object]]:
    """Return the runs as what JSON can say."""
    return [
        {
            "case": result.case.name,
            "kind": result.case.kind.value,
            "text": result.case.text,
            "outcome": result.outcome.value,
            "right": result.is_right,
            "status": result.status,
            "seconds": round(result.seconds, 3),
            "why": result.why,
            "judged": result.verdict is not None,
            "broken": [str(finding) for finding in result.errors],
            "should_broken": [str(finding) for finding in result.warnings],
            "offered": list(result.offered),
        }
        for result in results
    ]

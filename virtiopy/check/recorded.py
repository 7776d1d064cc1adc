"""Verdicts that another process came to and wrote as JSON: read again, and several made one."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from virtiopy.check.catalogue import load
from virtiopy.check.judge import EVIDENCE_MOST, Finding, Verdict

#: How many cases are named with a finding; the others are counted.
_NAMED_MOST = 4


@dataclass(slots=True, frozen=True)
class RecordedDevice:
    """What the driver of one device came to, as a DeviceJudge has it."""

    name: str
    exercised: Counter[str]
    findings: list[Finding]


class _FindingRecord(TypedDict):
    statement: str
    device: str
    count: int
    evidence: list[str]
    trace: list[str]
    consequences: list["_FindingRecord"]


def read(path: Path) -> Verdict:
    """Return the verdict that `check.report` wrote as JSON; its devices are one."""
    return parse(json.loads(path.read_text()))


def parse(document: Mapping[str, Any]) -> Verdict:
    """Return the verdict that `check.report` made a document of; its devices are one."""
    kept = Counter(
        {
            one["id"]: one["count"]
            for one in document["statements"]
            if one["outcome"] == "kept" and one["id"] in load()
        }
    )
    findings = [_finding(record) for record in document["findings"]]
    return Verdict([RecordedDevice(", ".join(document["devices"]), kept, findings)])


def _finding(record: _FindingRecord) -> Finding:
    return Finding(
        load()[record["statement"]],
        record["device"],
        list(record["evidence"]),
        tuple(record["trace"]),
        record["count"],
        [_finding(one) for one in record["consequences"]],
    )


def merge(verdicts: Sequence[tuple[str, Verdict]]) -> Verdict:
    """Make one verdict of those of several cases, each with its name.

    A finding that is there in several is one; its first evidence says in which.
    """
    kept: Counter[str] = Counter()
    found: dict[tuple[str, str], Finding] = {}
    where: dict[tuple[str, str], list[str]] = {}
    names: list[str] = []
    for case, verdict in verdicts:
        for device in verdict.devices:
            kept.update(device.exercised)
            names += [device.name] if device.name not in names else []
        for finding in verdict.findings:
            key = (finding.statement.id, finding.device)
            where.setdefault(key, []).append(case)
            _join(found, key, finding)
    for key, finding in found.items():
        finding.evidence[0] += _cases(where[key], len(verdicts))
    order = list(load())
    findings = sorted(found.values(), key=lambda one: (order.index(one.statement.id), one.device))
    return Verdict([RecordedDevice(", ".join(names), kept, findings)])


def _join(found: dict[tuple[str, str], Finding], key: tuple[str, str], finding: Finding) -> None:
    known = found.get(key)
    if known is None:
        found[key] = Finding(
            finding.statement,
            finding.device,
            list(finding.evidence),
            finding.trace,
            finding.count,
            list(finding.consequences),
        )
        return
    known.count += finding.count
    new = [text for text in finding.evidence if text not in known.evidence]
    known.evidence += new[: max(0, EVIDENCE_MOST - len(known.evidence))]


def _cases(names: Sequence[str], count: int) -> str:
    if len(names) == count:
        return " [in every run]" if count > 1 else ""
    more = f" and {len(names) - _NAMED_MOST} more" if len(names) > _NAMED_MOST else ""
    return f" [with {', '.join(names[:_NAMED_MOST])}{more}]"

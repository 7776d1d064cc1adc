"""What a campaign came to: each statement by backend and version, and each failure once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from virtiopy.conformance.campaign.cell import Done
from virtiopy.conformance.clauses.definitions import everything
from virtiopy.conformance.report.results import Outcome

#: Numbers differ from run to run, and say little of what is wrong.
_NUMBER = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8}\b|\d+(\.\d+)?")

#: The outcome that counts most first.
_ORDER = [outcome.value for outcome in Outcome]


class RowRecord(TypedDict):
    """A statement: what it came to in each column."""

    statement: str
    keyword: str
    paraphrase: str
    outcomes: dict[str, str]


class FailureRecord(TypedDict):
    """A failure: `evidence` is that of the first cell it came up in."""

    statement: str
    outcome: str
    evidence: str
    columns: list[str]
    cells: list[str]


class MatrixRecord(TypedDict):
    """A whole campaign."""

    schema: int
    columns: list[str]
    rows: list[RowRecord]
    failures: list[FailureRecord]
    #: Cells without a report, and what their run said.
    errors: dict[str, str]


@dataclass(slots=True)
class _Failure:
    outcome: str
    evidence: str
    columns: dict[str, None] = field(default_factory=dict)
    cells: list[str] = field(default_factory=list)


def column(done: Done) -> str:
    """Return the column of a cell: its backend, and that one's version."""
    return f"{done['backend']} {done['version']}".strip()


def evidence(reason: str) -> str:
    """Return what is the same of a failure whenever it comes up: of a walk, its steps."""
    first, _, rest = reason.partition("\n")
    steps = [
        line.strip()
        for line in rest.splitlines()
        if line.startswith("    ") and "=" not in line[:5]
    ]
    walk = [line for line in steps if not line.startswith("The same again")]
    return "\n".join(walk) if walk and "    " in rest else _NUMBER.sub("N", first)


def matrix(cells: Sequence[Done]) -> MatrixRecord:
    """Return what cells came to: the outcome that counts most, of all that are in a column."""
    columns = list(dict.fromkeys(column(done) for done in cells))
    outcomes: dict[str, dict[str, str]] = {}
    failures: dict[tuple[str, str], _Failure] = {}
    for done in cells:
        for subject in done["document"]["subjects"] if done["document"] is not None else ():
            for clause in subject["clauses"]:
                found = outcomes.setdefault(clause["id"], {})
                before = found.get(column(done), _ORDER[-1])
                found[column(done)] = min(before, clause["outcome"], key=_ORDER.index)
            for finding in subject["findings"]:
                key = finding["statement"], evidence(finding["reason"])
                first = finding["reason"].partition("\n\n    The same again")[0]
                failure = failures.setdefault(key, _Failure(finding["outcome"], first))
                failure.columns[column(done)] = None
                failure.cells.append(done["key"])
    known = everything()
    rows = [
        RowRecord(
            statement=identity,
            keyword=known[identity].keyword.value,
            paraphrase=known[identity].paraphrase,
            outcomes=outcomes[identity],
        )
        for identity in known
        if identity in outcomes
    ]
    return MatrixRecord(
        schema=1,
        columns=columns,
        rows=rows,
        failures=[
            FailureRecord(
                statement=statement,
                outcome=one.outcome,
                evidence=one.evidence,
                columns=list(one.columns),
                cells=one.cells,
            )
            for (statement, _), one in failures.items()
        ],
        errors={done["key"]: done["said"] for done in cells if done["document"] is None},
    )

"""What is written of a run, for people and for programs."""

import json
from collections.abc import Sequence
from pathlib import Path

from virtiopy.conformance.catalogue import load
from virtiopy.conformance.results import ClauseResult, Results
from virtiopy.errors import ConfigError

SPECIFICATION = "virtio 1.4 CS01"


def check_path(text: str) -> Path:
    """Return where a report goes; raises ConfigError for what cannot be one."""
    path = Path(text)
    if path.suffix != ".json":
        raise ConfigError(f"The report {text}: give a name that ends in .json.")
    if not path.parent.is_dir():
        raise ConfigError(f"The report {text}: there is no folder {path.parent}, make it first.")
    return path


def write(path: Path, results: Results) -> None:
    """Write a report, of the kind that the path's suffix says."""
    path.write_text(json.dumps(document(results), indent=1) + "\n")


def document(results: Results) -> dict[str, object]:
    """Return all of a run, as JSON has it."""
    clauses = list(load().values())
    return {
        "specification": SPECIFICATION,
        "subjects": [
            {
                "target": subject.target,
                "device": subject.device,
                "transport": subject.transport,
                "offered": f"{subject.offered:#x}",
                "clauses": [_clause(it) for it in results.clauses(subject, clauses)],
            }
            for subject in results.subjects.values()
        ],
        "tests": [
            {
                "test": result.test,
                "target": result.target,
                "clauses": list(result.clauses),
                "outcome": result.outcome.value,
                "reason": result.reason,
                "verdicts": [verdict.value for verdict in result.verdicts],
                "trace": list(result.trace),
            }
            for result in results
        ],
    }


def _clause(result: ClauseResult) -> dict[str, object]:
    tests: Sequence[str] = [test.test for test in result.tests]
    return {
        "id": result.clause.id,
        "keyword": result.clause.keyword.value,
        "paraphrase": result.clause.paraphrase,
        "outcome": result.outcome.value,
        "reason": result.reason,
        "tests": tests,
    }

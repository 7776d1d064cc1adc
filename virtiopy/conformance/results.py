"""What became of every test, and so of every statement that it is about."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: What a test or a statement comes to, the one that counts most first.
OUTCOMES = ("failed", "passed", "not applicable", "skipped")


@dataclass(slots=True, frozen=True)
class Result:
    """A test, or one of its phases: its name, the statements it is about, what became of it."""

    test: str
    target: str
    clauses: Sequence[str]
    outcome: str
    reason: str
    trace: Sequence[str]


class Results:
    """The results of a run, in the order of the tests."""

    def __init__(self) -> None:
        self._results: dict[tuple[str, str], Result] = {}

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results.values())

    def add(self, result: Result) -> None:
        """Add a phase of a test: of its phases the one that counts most stands."""
        key = result.target, result.test
        before = self._results.get(key)
        # A setup that passes says nothing; that a teardown does neither.
        if before is None or before.outcome == "passed":
            self._results[key] = result

    def by_clause(self) -> dict[str, str]:
        """Return what became of each statement: the outcome of its tests that counts most."""
        outcomes: defaultdict[str, set[str]] = defaultdict(set)
        for result in self:
            for clause in result.clauses:
                outcomes[clause].add(result.outcome)
        return {
            clause: next(outcome for outcome in OUTCOMES if outcome in found)
            for clause, found in outcomes.items()
        }

    def summary(self) -> Iterator[str]:
        """Yield a line for each section."""
        sections: defaultdict[str, list[str]] = defaultdict(list)
        for clause, outcome in self.by_clause().items():
            sections[clause.rpartition(":")[0]].append(outcome)
        for section in sorted(sections, key=_section_key):
            found = sections[section]
            words = ", ".join(f"{found.count(o)} {o}" for o in OUTCOMES if o in found)
            yield f"{section:<12} {words}"


def _section_key(section: str) -> list[int]:
    return [int(part) for part in section.split(".")]

"""What a run came to, in a few lines of text."""

from collections import Counter
from collections.abc import Iterator, Sequence

from virtiopy.conformance.clauses.catalogue import Area
from virtiopy.conformance.report.comparison import AREAS, Row, Side, differences
from virtiopy.conformance.report.results import Outcome

#: How wide a line may be that is not to be broken, columns.
_WIDTH = 100

#: How many failures of tests are shown that are about no statement.
_OTHERS = 10


def run(side: Side) -> Iterator[str]:
    """Yield a table of a subject's statements by area, then each that is not met."""
    counts = {area: Counter[str]() for area in Area}
    for clause in side.clauses.values():
        counts[Area(clause["area"])][clause["outcome"]] += 1
    yield from _table({area: count for area, count in counts.items() if count})
    if verdicts := words(side.subject["verdicts"]):
        yield f"hostile acts: {verdicts}"
    for failure in side.failures:
        clause = failure.clause
        yield ""
        yield f"{clause['id']} {clause['keyword']}: {clause['paraphrase']}"
        for test in failure.tests:
            yield f"    {test['test'].rpartition('::')[2]}: {_first_line(test['reason'])}"
    if side.others:
        yield ""
        for test in side.others[:_OTHERS]:
            yield f"{test['test'].rpartition('::')[2]}: {_first_line(test['reason'])}"
        if len(side.others) > _OTHERS:
            yield f"and {len(side.others) - _OTHERS} more, which a --report has"


def _table(counts: dict[Area, Counter[str]]) -> Iterator[str]:
    shown = [o.value for o in Outcome if any(count[o.value] for count in counts.values())]
    heads = "".join(f"{name:>{len(name) + 2}}" for name in shown)
    yield f"{'statements':<34}{heads}"
    for area, count in counts.items():
        title, numbers = AREAS[area]
        cells = "".join(f"{count[name] or '':>{len(name) + 2}}" for name in shown)
        yield f"{numbers:<8}{title:<26}{cells}".rstrip()
    total = sum(counts.values(), Counter[str]())
    cells = "".join(f"{total[name]:>{len(name) + 2}}" for name in shown)
    yield f"{'all':<34}{cells}"


def words(counts: dict[str, int]) -> str:
    """Write counts of names, but for zeroes."""
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _first_line(text: str) -> str:
    line = next(iter(text.splitlines()), "")
    return line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..."


def compared(subjects: Sequence[Side], found: Sequence[Row]) -> Iterator[str]:
    """Yield who the sides are, and the statements that they differ in, side by side."""
    for side in subjects:
        subject = side.subject
        yield f"{side.letter}  {subject['target']} ({subject['device']}, {subject['transport']})"
        yield f"   {words(subject['outcomes'])}"
        if verdicts := words(subject["verdicts"]):
            yield f"   hostile acts: {verdicts}"
    different = differences(found)
    yield ""
    if not different:
        yield f"No difference in {len(found)} statements."
        return
    yield f"{len(different)} of {len(found)} statements differ:"
    width = max(len(outcome.value) for outcome in Outcome)
    heads = "  ".join(f"{side.letter:<{width}}" for side in subjects)
    yield f"{'':<16}{heads}"
    for row in different:
        cells = "  ".join(f"{outcome or '-':<{width}}" for outcome in row.outcomes)
        clause = row.clause
        yield f"{clause['id']:<16}{cells}  {clause['keyword']}: {clause['paraphrase']}"

"""What a run came to, in a few lines of text."""

from collections import Counter
from collections.abc import Iterator, Sequence

from virtiopy.conformance.clauses.catalogue import Area
from virtiopy.conformance.problems import WORKS_WITH
from virtiopy.conformance.report.comparison import AREAS, Fault, Row, Side, differences
from virtiopy.conformance.report.document import ResultRecord
from virtiopy.conformance.report.results import Outcome

#: How wide a line may be that is not to be broken, columns.
_WIDTH = 120

#: How many findings are shown; the report has them all.
_FINDINGS = 12

#: How many tests are named beside the first, where each says something else.
_NAMED = 8

#: With no more findings than this each has the end of its trace.
_TRACED = 2

#: How many lines of what was found are shown then: a walk has its steps in them.
_LINES = 24

#: How many events of a trace are shown.
_EVENTS = 10


def run(side: Side) -> Iterator[str]:
    """Yield each finding, and then a table of a subject's statements by area."""
    broken = [fault for fault in side.faults if not fault.is_warning]
    warnings = [fault for fault in side.faults if fault.is_warning]
    shown = [*broken, *warnings][:_FINDINGS]
    for fault in shown:
        yield from _fault(fault, traced=len(broken) <= _TRACED and not fault.is_warning)
        yield ""
    if len(side.faults) > len(shown):
        yield f"and {len(side.faults) - len(shown)} findings more, which a --report has"
        yield ""
    yield from _totals(side)
    counts = {area: Counter[str]() for area in Area}
    for clause in side.clauses.values():
        counts[Area(clause["area"])][clause["outcome"]] += 1
    yield from _table({area: count for area, count in counts.items() if count})
    if verdicts := words(side.subject["verdicts"]):
        yield f"hostile acts: {verdicts}"


def _totals(side: Side) -> Iterator[str]:
    if side.faults:
        broken = sum(not fault.is_warning for fault in side.faults)
        yield f"{_count(broken, 'finding')}, {_count(len(side.faults) - broken, 'warning')}"


def _fault(fault: Fault, *, traced: bool) -> Iterator[str]:
    finding = fault.finding
    kind = "warning: " if fault.is_warning else ""
    other = "frontends" if finding["statement"] == WORKS_WITH else "hostile acts"
    name = f"{finding['statement']} {finding['keyword']}" if finding["keyword"] else other
    yield f"{kind}{name}: {finding['paraphrase']}"
    first = fault.tests[0]
    lines = finding["reason"].splitlines()
    yield f"    {_test(first)}: {_first_line(finding['reason'])}"
    if traced and not any(line.startswith("Traceback") for line in lines):
        for line in lines[1:_LINES]:
            yield f"    {line}".rstrip()
    others = fault.tests[1:]
    if finding["statement"] == WORKS_WITH:
        # Each is another frontend, or another thing that one does.
        named, others = others[:_NAMED], others[_NAMED:]
        for test in named:
            yield f"    {_test(test)}: {_first_line(test['reason'])}"
    more = [_count(len(others), "test") + " more"] if others else []
    if blocked := len(finding["blocked"]):
        more.append(f"{_count(blocked, 'test')} blocked by it")
    if more:
        yield f"    and {', '.join(more)}"
    if traced and first["trace"]:
        yield "    virtio trace, its end:"
        for line in first["trace"][-_EVENTS:]:
            yield f"      {_first_line(line)}"


def _test(test: ResultRecord) -> str:
    return test["test"].rpartition("::")[2]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


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

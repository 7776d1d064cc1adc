"""The verdict on drivers, for a person and for programs."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from virtiopy import __version__
from virtiopy.check.catalogue import DriverStatement
from virtiopy.check.judge import Finding, Statement, Verdict
from virtiopy.errors import ConfigError
from virtiopy.files import write_output

#: What a report's name ends with, for each form.
FORMS = (".html", ".json", ".xml")

#: Where each statement can be read.
SPECIFICATION = "https://docs.oasis-open.org/virtio/virtio/v1.4/virtio-v1.4.html"


def lines(verdict: Verdict) -> Iterator[str]:
    """Yield the verdict in a few lines: each finding with its evidence, then the counts."""
    for finding in verdict.findings:
        yield from _finding_lines(finding)
    counts = Counter(outcome for _, outcome, _ in verdict.outcomes())
    errors, warnings = len(verdict.errors), len(verdict.findings) - len(verdict.errors)
    yield (
        f"{verdict.title}: {errors} MUST broken, {warnings} SHOULD broken; {counts['kept']} "
        f"statements kept, {counts['not exercised']} not exercised."
    )


def _finding_lines(finding: Finding) -> Iterator[str]:
    times = f", {finding.count} times" if finding.count > 1 else ""
    statement = finding.statement
    yield f"{finding.device}: {finding.evidence[0]}{times}."
    yield f"    {statement.id} {statement.keyword.value}: {statement.paraphrase}"
    for further in finding.evidence[1:]:
        yield f"    also: {further}"
    for consequence in finding.consequences:
        yield f"    then: {consequence.evidence[0]} ({consequence.statement.id})"


def write(verdict: Verdict, path: Path, *, told: Callable[[str], None] = lambda line: None) -> None:
    """Write a report whose form its name says; raises ConfigError where that cannot be.

    `told` is given a line where an earlier report is replaced.
    """
    match path.suffix:
        case ".json":
            text = json.dumps(document(verdict), indent=1) + "\n"
        case ".xml":
            text = _junit(verdict)
        case ".html":
            text = _page(verdict)
        case _:
            raise ConfigError(
                f"A report on drivers cannot be written to {path.name!r}: end its name with one of "
                f"{', '.join(FORMS)}."
            )
    write_output(path, "The report", text, told=told)


def document(verdict: Verdict) -> Mapping[str, object]:
    """Return the verdict as what JSON can say."""
    return {
        "virtiopy": __version__,
        "specification": "virtio 1.4",
        "devices": [device.name for device in verdict.devices],
        "findings": [_finding(finding) for finding in verdict.findings],
        "statements": [
            {
                "id": statement.id,
                "keyword": statement.keyword.value,
                "paraphrase": statement.paraphrase,
                "outcome": outcome,
                "count": count,
                **({"variant": variant} if (variant := _variant(statement)) else {}),
                **({"unobservable": statement.unobservable} if statement.unobservable else {}),
            }
            for statement, outcome, count in verdict.outcomes()
        ],
    }


def _variant(statement: Statement) -> str | None:
    """Return the unusual device that it takes to judge a statement; None where it takes none."""
    return statement.variant if isinstance(statement, DriverStatement) else None


def _finding(finding: Finding) -> Mapping[str, object]:
    return {
        "statement": finding.statement.id,
        "keyword": finding.statement.keyword.value,
        "paraphrase": finding.statement.paraphrase,
        "device": finding.device,
        "count": finding.count,
        "evidence": finding.evidence,
        "trace": list(finding.trace),
        "consequences": [_finding(one) for one in finding.consequences],
    }


def _junit(verdict: Verdict) -> str:
    suite = ElementTree.Element("testsuite", name=f"virtio {verdict.title.lower()}")
    findings = {finding.statement.id: finding for finding in reversed(verdict.findings)}
    for statement, outcome, _ in verdict.outcomes():
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=statement.id.partition(":")[0],
            name=f"{statement.id} {statement.paraphrase}",
        )
        finding = findings.get(statement.id)
        if outcome == "not exercised":
            reason = (
                statement.unobservable or _variant(statement) or "the driver came to no use of it"
            )
            ElementTree.SubElement(case, "skipped", message=reason)
        elif finding is not None and finding.is_error:
            failure = ElementTree.SubElement(case, "failure", message=finding.evidence[0])
            failure.text = "\n".join([*finding.evidence, "", *finding.trace])
    return ElementTree.tostring(suite, encoding="unicode") + "\n"


def _page(verdict: Verdict) -> str:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            f"An HTML report needs jinja2, which is not here ({error}): install it with "
            "pip install 'virtiopy[conformance]', or name a .json or .xml file."
        ) from error
    environment = Environment(
        loader=PackageLoader("virtiopy.check", "."), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("page.html.j2")
    return page.render(
        version=__version__,
        specification=SPECIFICATION,
        verdict=verdict,
        outcomes=list(verdict.outcomes()),
    )

"""Findings as the commands that GitHub's runner makes annotations of, one a line of the output."""

from collections.abc import Iterator

from virtiopy.conformance.report.comparison import Side


def annotations(side: Side) -> Iterator[str]:
    """Yield a line for each finding of a subject."""
    for fault in side.faults:
        finding = fault.finding
        command = "warning" if fault.is_warning else "error"
        title = f"{side.name}: {finding['statement']} {finding['keyword']}".rstrip()
        reason = finding["reason"].partition("\n")[0]
        words = f"{finding['paraphrase']}\n{reason}\n{fault.tests[0]['test']}"
        yield f"::{command} title={_property(title)}::{_data(words)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

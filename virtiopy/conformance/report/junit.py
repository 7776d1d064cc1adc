"""A run as JUnit's XML, which continuous integration reads: a case for each test.

The IDs of the statements that a test is about are its properties `clause`.
"""

import re
from xml.etree import ElementTree

from virtiopy.conformance.report.document import Document, ResultRecord, SubjectRecord
from virtiopy.conformance.report.results import Outcome

#: What XML 1.0 has no way to write (2.2 there).
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(document: Document) -> str:
    """Return the file's text."""
    root = ElementTree.Element("testsuites", name=document["specification"])
    for subject in document["subjects"]:
        tests = [test for test in document["tests"] if test["target"] == subject["target"]]
        _suite(root, document, subject, tests)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(
    root: ElementTree.Element, document: Document, subject: SubjectRecord, tests: list[ResultRecord]
) -> None:
    outcomes = [Outcome(test["outcome"]) for test in tests]
    failures = outcomes.count(Outcome.FAILED)
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=_text(subject["target"]),
        tests=str(len(tests)),
        failures=str(failures),
        errors="0",
        skipped=str(len(tests) - failures - outcomes.count(Outcome.PASSED)),
        time=f"{sum(test['seconds'] for test in tests):.3f}",
        timestamp=document["date"],
    )
    properties = {
        "specification": document["specification"],
        "device": subject["device"],
        "transport": subject["transport"],
        "offered": subject["offered"],
        **{f"verdict {name}": str(count) for name, count in subject["verdicts"].items()},
    }
    _properties(suite, list(properties.items()))
    for test in tests:
        _case(suite, test)


def _case(suite: ElementTree.Element, test: ResultRecord) -> None:
    where, _, name = test["test"].rpartition("::")
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=_text(where.replace(".py", "").replace("/", ".")),
        name=_text(name),
        time=f"{test['seconds']:.3f}",
    )
    _properties(case, [("clause", clause) for clause in test["clauses"]])
    outcome = Outcome(test["outcome"])
    if outcome is Outcome.FAILED:
        failure = ElementTree.SubElement(case, "failure", message=_text(test["reason"]))
        failure.text = _text(test["details"])
    elif outcome is not Outcome.PASSED:
        message = f"{outcome.value}: {test['reason']}"
        ElementTree.SubElement(case, "skipped", message=_text(message))
    if test["trace"]:
        ElementTree.SubElement(case, "system-out").text = _text("\n".join(test["trace"]))


def _properties(parent: ElementTree.Element, properties: list[tuple[str, str]]) -> None:
    if properties:
        element = ElementTree.SubElement(parent, "properties")
        for name, value in properties:
            ElementTree.SubElement(element, "property", name=name, value=_text(value))


def _text(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)

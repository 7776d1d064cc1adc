"""Which normative statements the virtio specification makes, from its LaTeX sources.

What is a statement: a keyword of RFC 2119 in capitals, in its sentence, below a heading "Device
Requirements" or "Driver Requirements". Notes, footnotes, listings and tables make none.

- A sentence with two keywords makes two statements, which share its hash: "MUST set it to zero and
  SHOULD supply a checksum" can be kept by half.
- In a list whose items have keywords each item is read as a paragraph of its own, after the words
  that lead to the list. Of a list whose items have none, the items belong to the sentence before.
- An ID is the section's number in the printed document and the statement's place in that section,
  counted from 1: 5.2.6.2:3.

What is left out, of the chapters that virtiopy's devices are made from:

- packed virtqueues (2.8): the suite drives split ones;
- device groups, administration virtqueues and device parts (2.12 to 2.14), which are reserved for
  future use over MMIO (4.2.5). The network device's flow filter and IPsec are in the list although
  they are worked by administration commands, since they are part of 5.1;
- sections on the legacy interface: no target of the suite is a transitional device;
- keywords outside of sections of requirements: chapter 7 does not ask for conformance to those;
- the PCI and channel I/O transports (4.1, 4.3), and the other device types.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from virtiopy.statements.latex import Requirements, Section, plain

# Section numbers of the lists, each with all below it.
COVERED = dict.fromkeys(
    Requirements, ("2", "3", "4.2", "5.1", "5.2", "5.3", "5.4", "5.5", "5.6", "5.10", "5.11", "6")
)
LEFT_OUT = ("2.8", "2.12", "2.13", "2.14")

# How a keyword is spelled besides: MOST NOT is a slip of 5.1.9.2.2's.
_SPELLINGS = {
    "MOST NOT": "MUST NOT",
    "SHALL NOT": "MUST NOT",
    "SHALL": "MUST",
    "REQUIRED": "MUST",
    "NOT RECOMMENDED": "SHOULD NOT",
    "RECOMMENDED": "SHOULD",
    "OPTIONAL": "MAY",
}
_KEYWORD = re.compile(
    r"\b(?:(?:MUST|MOST|SHALL|SHOULD) (?:NOT|not)|MUST|SHALL|REQUIRED|SHOULD|(?:NOT )?RECOMMENDED"
    r"|MAY|OPTIONAL)\b"
)


@dataclass(frozen=True, slots=True)
class Statement:
    """One normative statement of the specification."""

    id: str
    title: str  # of its section
    keyword: str
    text: str  # of the specification: to read and to hash, never to store

    @property
    def section(self) -> str:
        """The number of its section."""
        return self.id.partition(":")[0]

    @property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of its text."""
        return sha256(self.text.encode()).hexdigest()[:12]


def normative_statements(document: list[Section], side: Requirements) -> list[Statement]:
    """Return the statements to one side that virtiopy covers, in the document's order."""
    return [
        Statement(f"{section.number}:{place}", section.title, keyword, text)
        for section in document
        if section.requirements is side and _is_covered(section, side)
        for place, (keyword, text) in enumerate(statements(section.body), 1)
    ]


_FEATURE = re.compile(r"\\item\s*\[\s*(VIRTIO_(?:[A-Z]+_)?F_\w+)\s*\((\d+)\)\s*\]")


def feature_bits(document: list[Section], side: Requirements) -> dict[str, int]:
    """Return the bit number of each feature that one side's chapters define, by its name."""
    return {
        name: int(bit)
        for section in document
        if _is_covered(section, side)
        for name, bit in _FEATURE.findall(section.body)
    }


def _is_covered(section: Section, side: Requirements) -> bool:
    if any("Legacy Interface" in title for title in (*section.ancestors, section.title)):
        return False
    return _below(section.number, COVERED[side]) and not _below(section.number, LEFT_OUT)


def _below(number: str, heads: tuple[str, ...]) -> bool:
    return any(number == head or number.startswith(f"{head}.") for head in heads)


def statements(body: str) -> list[tuple[str, str]]:
    """Return keyword and sentence, on one line, of each statement in the LaTeX of a section."""
    return list(_statements(_SILENT_ENVIRONMENT.sub("", body), lead=""))


_SILENT_ENVIRONMENT = re.compile(
    r"\\begin\{(note|longtable|tabularx?|figure|table)\}.*?\\end\{\1\}", re.DOTALL
)
_LIST_EDGE = re.compile(r"\\(begin|end)\{(?:itemize|enumerate|description)\}")
_ITEM = re.compile(r"\\item(?![a-z])\s*(?:\[[^]]*\])?")
_PARAGRAPH_END = re.compile(r"\n\s*\n")


def _statements(text: str, lead: str) -> Iterator[tuple[str, str]]:
    """Yield the statements in `text`, lists in it included; `lead` is what led to them."""
    pending = ""
    for part, is_list in _split_at_lists(text):
        if not is_list:
            *ended, rest = _PARAGRAPH_END.split(pending + part)
            # Before a list, the blank line may be missing or not: "..., then" is its lead.
            if not rest.strip() and ended and not plain(ended[-1]).endswith("."):
                rest = ended.pop()
            for paragraph in ended:
                yield from _in_paragraph(paragraph, lead)
            pending = rest
        elif not _KEYWORD.search(plain(part)):
            pending += " " + " ; ".join(item.strip() for item in _items(part))
        else:
            yield from _in_paragraph(pending, lead)
            sentences = _sentences(plain(pending))
            leads_on = sentences and not sentences[-1].endswith(".")
            for item in _items(part):
                yield from _statements(item, f"{lead} {sentences[-1]}" if leads_on else lead)
            pending = ""
    yield from _in_paragraph(pending, lead)


def _split_at_lists(text: str) -> Iterator[tuple[str, bool]]:
    # Outermost lists only, without their own \begin and \end.
    at = depth = 0
    for edge in _LIST_EDGE.finditer(text):
        if edge[1] == "begin":
            if depth == 0:
                yield text[at : edge.start()], False
                at = edge.end()
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                yield text[at : edge.start()], True
                at = edge.end()
    yield text[at:], False


def _items(text: str) -> list[str]:
    items = [""]
    for part, is_list in _split_at_lists(text):
        if is_list:
            items[-1] += rf"\begin{{itemize}}{part}\end{{itemize}}"
        else:
            first, *others = _ITEM.split(part)
            items[-1] += first
            items += others
    return items[1:]


def _in_paragraph(paragraph: str, lead: str) -> Iterator[tuple[str, str]]:
    for sentence in _sentences(plain(paragraph)):
        for spelled in map(str.upper, _KEYWORD.findall(sentence)):
            yield _SPELLINGS.get(spelled, spelled), f"{lead} {sentence}".strip()


_SENTENCE_END = re.compile(r"(?<=[.!?])[\")\]]*\s+(?=[A-Z(\"]|[a-z]+_)")
_ABBREVIATIONS = ("i.e.", "ie.", "e.g.", "eg.", "etc.", "cf.")


def _sentences(text: str) -> list[str]:
    sentences: list[str] = []
    at = 0
    for end in _SENTENCE_END.finditer(text):
        if not text[at : end.start()].endswith(_ABBREVIATIONS):
            sentences.append(text[at : end.start()])
            at = end.end()
    return [sentence for sentence in [*sentences, text[at:]] if sentence.strip()]

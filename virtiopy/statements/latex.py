"""Reads LaTeX sources as the numbered sections of the printed document.

Just the LaTeX that the virtio specification is written in: chapters to subparagraphs, an appendix,
included files, its two headings of requirements, lists, notes and listings.
"""

import enum
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Reader = Callable[[str], str]  # from the name of a source file to its text

LEVELS = ("chapter", "section", "subsection", "subsubsection", "paragraph", "subparagraph")


class Requirements(enum.Enum):
    """Whose requirements a section lists."""

    NONE = ""
    DEVICE = "Device"
    DRIVER = "Driver"


@dataclass(frozen=True, slots=True)
class Section:
    """One heading and the LaTeX below it, up to the next heading of any level."""

    number: str  # as printed: "2.7.4.1", or "A.1"; empty where the heading has no number
    title: str
    requirements: Requirements
    ancestors: tuple[str, ...]  # the titles it stands under, outermost first
    body: str


def flatten(read: Reader, name: str) -> str:
    r"""Return file `name` with each \input in its place, without comments and without listings."""
    return "\n".join(_lines(read, name))


_LISTING = re.compile(r"\\(begin|end)\{lstlisting\}")
_COMMENT = re.compile(r"(?<!\\)%.*")
_INPUT = re.compile(r"\\(?:input|include)\{([^}]*)\}")


def _lines(read: Reader, name: str) -> Iterator[str]:
    in_listing = False
    for line in read(name).splitlines():
        if match := _LISTING.search(line):
            in_listing = match[1] == "begin"
            if in_listing:
                yield line[: match.start()]
            continue
        if in_listing:
            continue
        text = _COMMENT.sub("", line)
        if not text.strip() and line.strip():
            continue  # a comment of a whole line does not end the paragraph
        if match := _INPUT.search(text):
            yield text[: match.start()]
            yield from _lines(read, match[1] if "." in match[1] else f"{match[1]}.tex")
            yield text[match.end() :]
        else:
            yield text


_HEADING = re.compile(
    r"\\(?:(?P<level>chapter|(?:sub){0,2}section|(?:sub)?paragraph)(?P<star>\*?)\s*(?=\{)"
    r"|(?P<side>device|driver)normative\s*\{\\(?P<under>\w+)\}\s*"
    r"|conformance\s*\{\\(?P<clause>\w+)\}\s*"
    r"|(?P<appendix>appendix)(?![a-zA-Z]))"
)


def sections(text: str) -> list[Section]:
    """Return the sections of `text`, a document without its comments, in order, numbered."""
    found: list[Section] = []
    counters = [0] * len(LEVELS)
    titles: list[str] = [""] * len(LEVELS)
    in_appendix = False
    at = 0
    while heading := _HEADING.search(text, at):
        at = heading.end()
        if heading["appendix"]:
            in_appendix = True
            counters = [0] * len(LEVELS)
            continue
        raw, at = group(text, at)
        following = _HEADING.search(text, at)
        title = plain(raw)
        requirements = Requirements.NONE
        if heading["side"]:
            _, at = group(text, at)  # the label
            requirements = Requirements(heading["side"].capitalize())
            title = f"{requirements.value} Requirements: {title}"
        level = LEVELS.index(heading["level"] or heading["under"] or heading["clause"])
        titles[level] = title
        if not heading["star"]:
            counters[level] += 1
            counters[level + 1 :] = [0] * (len(LEVELS) - level - 1)
        found.append(
            Section(
                number="" if heading["star"] else _number(counters[: level + 1], in_appendix),
                title=title,
                requirements=requirements,
                ancestors=tuple(titles[:level]),
                body=text[at : following.start() if following else len(text)],
            )
        )
        titles[level + 1 :] = [""] * (len(LEVELS) - level - 1)
    return found


def _number(counters: list[int], in_appendix: bool) -> str:
    first = chr(ord("A") + counters[0] - 1) if in_appendix else str(counters[0])
    return ".".join([first, *map(str, counters[1:])])


def group(text: str, at: int) -> tuple[str, int]:
    """Return what is between the braces that open at or after `at`, and where they end.

    Raises ValueError if they are not closed.
    """
    start = text.index("{", at)
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return text[start + 1 : match.start()], match.end()
    raise ValueError(f"the braces of {text[start : start + 40]!r} are not closed")


_SILENT = ("label", "footnote", "ref", "nameref", "note")
_SYMBOLS = {"``": '"', "''": '"', "~": " ", "$": "", r"\ldots": "...", r"\&": "&", r"\_": "_"}


def plain(text: str) -> str:
    """Return the words of `text` on one line: no macros, footnotes, labels nor references."""
    for macro in _SILENT:
        opening = re.compile(rf"\\{macro}\s*(?=\{{)")
        while match := opening.search(text):
            _, end = group(text, match.end())
            text = text[: match.start()] + text[end:]
    for symbol, words in _SYMBOLS.items():
        text = text.replace(symbol, words)
    text = re.sub(r"\\hyperref\s*\[[^]]*\]", "", text)
    text = re.sub(r"\\[a-zA-Z]+\*?", "", text)
    return " ".join(re.sub(r"[{}]", "", text).split())

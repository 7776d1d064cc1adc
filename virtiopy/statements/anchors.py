"""Where a section stands in the published specification: its page, and the anchor of the section.

The page is made by TeX4ht, which counts the headings, whatever their level, the title page as the
first; an anchor is that count and the last part of the section's number. anchors.toml has the
counts:

    python -m virtiopy.statements.anchors PATH

makes it from PATH, a clone of https://github.com/oasis-tcs/virtio-spec.
"""

import functools
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from virtiopy.statements.index import REVISION, Sources
from virtiopy.statements.latex import Section, flatten, sections

#: The page of the revision that the statements are of.
PAGE = "https://docs.oasis-open.org/virtio/virtio/v1.4/cs01/virtio-v1.4-cs01.html"

_FILE = Path(__file__).with_name("anchors.toml")

#: What statements are about: basic facilities to reserved feature bits.
_CHAPTERS = re.compile(r"[2-6](\.|$)")


@functools.cache
def _counts() -> Mapping[str, int]:
    with _FILE.open("rb") as file:
        counts: dict[str, int] = tomllib.load(file)["counts"]
    return counts


def link(section: str) -> str:
    """Return the address of a section of the published specification; raises KeyError."""
    return f"{PAGE}#x1-{_counts()[section]}000{section.rpartition('.')[2]}"


def render(document: Sequence[Section], revision: str) -> str:
    """Return the text of anchors.toml for a document's sections."""
    # The title page is the first.
    counts = {
        section.number: count
        for count, section in enumerate(document, 2)
        if _CHAPTERS.match(section.number)
    }
    lines = [f'"{number}" = {count}' for number, count in counts.items()]
    head = "# Made by virtiopy.statements.anchors from the specification: not to be edited."
    return "\n".join([head, f'revision = "{revision}"', "", "[counts]", *lines]) + "\n"


def main(path: str) -> None:
    """Write anchors.toml, from a clone of the specification."""
    document = sections(flatten(Sources(Path(path), REVISION).read, "main.tex"))
    _FILE.write_text(render(document, REVISION))


if __name__ == "__main__":
    main(sys.argv[1])

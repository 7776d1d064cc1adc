"""What is written of a run, for people and for programs."""

import json
from collections.abc import Callable, Collection
from pathlib import Path

from virtiopy.conformance.report import junit
from virtiopy.conformance.report.document import Document
from virtiopy.errors import ConfigError
from virtiopy.files import check_output, write_output


def _page(document: Document) -> str:
    return page_of([("", document)])


def page_of(documents: list[tuple[str, Document]]) -> str:
    """Return the HTML page of one run, or of several side by side, which come with their names.

    Raises ConfigError where the extra that it needs is missing.
    """
    try:
        from virtiopy.conformance.report.page import render
    except ImportError as error:
        raise ConfigError(
            f"An HTML report needs what is not here ({error}): "
            "install it with pip install 'virtiopy[conformance]'."
        ) from error
    return render(documents)


#: By the suffix of the file's name.
_KINDS: dict[str, Callable[[Document], str]] = {
    ".html": _page,
    ".json": lambda document: json.dumps(document, indent=1) + "\n",
    ".xml": junit.render,
}


def check_path(text: str, kinds: Collection[str] = _KINDS.keys()) -> Path:
    """Return where a report goes; raises ConfigError for what cannot be one of these suffixes."""
    path = Path(text)
    if path.suffix not in kinds:
        raise ConfigError(f"The report {text}: give a name that ends in {', '.join(kinds)}.")
    if not path.parent.is_dir():
        raise ConfigError(f"The report {text}: there is no folder {path.parent}, make it first.")
    check_output(path, "The report")
    if path.suffix == ".html":
        # Before the run, not after it.
        page_of([])
    return path


def write(path: Path, document: Document) -> None:
    """Write a report, of the kind that the path's suffix says; raises ConfigError."""
    write_text(path, _KINDS[path.suffix](document))


def write_text(path: Path, text: str) -> None:
    """Write a file, in the place of an earlier report; raises ConfigError where it cannot be."""
    write_output(path, "The report", text)

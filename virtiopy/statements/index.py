"""The lists of the specification's normative statements, and how they are made.

    python -m virtiopy.statements.index PATH [--side SIDE] [--revision TAG] [--check | --text]

PATH is a clone of https://github.com/oasis-tcs/virtio-spec, bare or not. A list, index.toml, holds
no sentence of the specification, whose text is OASIS's: of each statement an ID, a keyword and a
hash. What a statement is, and which are left out, says virtiopy.statements.extract.
"""

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from virtiopy.errors import ConfigError
from virtiopy.statements.extract import Statement, feature_bits, normative_statements
from virtiopy.statements.latex import Requirements, flatten, sections

REVISION = "v1.4-cs01"

_PACKAGE = Path(__file__).parent.parent

#: The folder of each side's list, with what is said of each statement beside it.
FOLDERS = {
    Requirements.DEVICE: _PACKAGE / "conformance" / "clauses",
    Requirements.DRIVER: _PACKAGE / "check" / "statements",
}

_MAIN_FILE = "main.tex"


@dataclass(frozen=True, slots=True)
class Entry:
    """One statement of the list."""

    keyword: str  # MUST, MUST NOT, SHOULD, SHOULD NOT or MAY
    sha256: str  # the first 12 hexadecimal digits of its sentence's


@dataclass(frozen=True, slots=True)
class Index:
    """The list: of one revision of the specification, in its order."""

    revision: str
    features: Mapping[str, int]  # bit numbers
    titles: Mapping[str, str]  # of sections, by number
    statements: Mapping[str, Entry]  # by ID


def load_index(folder: Path = FOLDERS[Requirements.DEVICE]) -> Index:
    """Return the list that is kept in `folder`."""
    with (folder / "index.toml").open("rb") as file:
        data = tomllib.load(file)
    entries = {identity: Entry(**entry) for identity, entry in data["statements"].items()}
    return Index(data["revision"], data["features"], data["titles"], entries)


def make_index(found: list[Statement], features: Mapping[str, int], revision: str) -> Index:
    """Return the list of the statements `found` in the sources of `revision`."""
    return Index(
        revision=revision,
        features=features,
        titles={statement.section: statement.title for statement in found},
        statements={
            statement.id: Entry(statement.keyword, statement.digest) for statement in found
        },
    )


def render(index: Index) -> str:
    """Return `index` as the text of its file."""
    lines = [
        "# Made by scripts/clauses from the specification's sources: not to be edited.",
        f'revision = "{index.revision}"',
        f"count = {len(index.statements)}",
        "\n[features]",
        *(f"{name} = {bit}" for name, bit in index.features.items()),
        "\n[titles]",
        *(f'"{number}" = "{title}"' for number, title in index.titles.items()),
        "\n[statements]",
        *(
            f'"{identity}" = {{ keyword = "{entry.keyword}", sha256 = "{entry.sha256}" }}'
            for identity, entry in index.statements.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def differences(kept: Index, made: Index) -> Iterator[str]:
    """Yield a line for each thing in which the list `kept` is not the one just `made`."""
    if len(kept.statements) != len(made.statements):
        yield f"{len(kept.statements)} statements, the sources have {len(made.statements)}"
    for identity in sorted(kept.statements.keys() | made.statements.keys()):
        before, now = kept.statements.get(identity), made.statements.get(identity)
        if before is None:
            yield f"{identity} is missing"
        elif now is None:
            yield f"{identity} is not in the sources"
        elif before != now:
            yield f"{identity} reads otherwise in the sources, where it is a {now.keyword}"
    if kept.features != made.features:
        yield "the feature bits are others"
    if kept.titles != made.titles:
        yield "the titles of the sections are others"


class Sources:
    """The files of the specification, of one revision."""

    def __init__(self, clone: Path, revision: str) -> None:
        self._clone = clone
        self._revision = revision

    def read(self, name: str) -> str:
        """Return the text of file `name`; raises ConfigError if git does not find it."""
        command = ["git", "-C", str(self._clone), "show", f"{self._revision}:{name}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise ConfigError(
                f"{self._clone} has no {name} of {self._revision} ({result.stderr.strip()}):"
                " give a clone of https://github.com/oasis-tcs/virtio-spec, with its tags"
            )
        return result.stdout


def main(arguments: list[str] | None = None, folder: Path | None = None) -> int:
    """Run the command on the list in `folder`, the side's own by default; return the exit status.

    1 means that the list is not that of the sources, 2 that they cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="clauses", description="List the specification's normative statements to one side."
    )
    parser.add_argument("path", type=Path, help="a clone of oasis-tcs/virtio-spec")
    parser.add_argument("--revision", default=REVISION, help="tag or commit (default: %(default)s)")
    parser.add_argument(
        "--side",
        choices=[side.value.lower() for side in FOLDERS],
        default=Requirements.DEVICE.value.lower(),
        help="whose statements (default: %(default)s)",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="compare with the list that is kept")
    action.add_argument("--text", action="store_true", help="show the sentences, writing nothing")
    options = parser.parse_args(arguments)
    side = Requirements(options.side.capitalize())
    folder = folder or FOLDERS[side]
    try:
        document = sections(flatten(Sources(options.path, options.revision).read, _MAIN_FILE))
    except ConfigError as error:
        sys.stderr.write(f"clauses: {error}\n")
        return 2
    found = normative_statements(document, side)
    made = make_index(found, feature_bits(document, side), options.revision)
    if options.text:
        sys.stdout.writelines(f"{one.id} {one.keyword} | {one.text}\n" for one in found)
        return 0
    if options.check:
        wrong = list(differences(load_index(folder), made))
        sys.stdout.writelines(f"{line}\n" for line in wrong)
        sys.stdout.write(f"{len(found)} statements in {options.revision}\n")
        return 1 if wrong else 0
    (folder / "index.toml").write_text(render(made))
    sys.stdout.write(f"{len(found)} statements of {options.revision}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

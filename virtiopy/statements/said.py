"""What is said of the statements of a list, in files of one area each."""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from virtiopy.statements.index import Index, load_index

A = TypeVar("A", bound=Enum)
R = TypeVar("R")
T = TypeVar("T")


def read(
    folder: Path, areas: Iterable[A], make: Callable[[str, A, R, Index], T]
) -> Mapping[str, T]:
    """Return what `make` has of each statement, by its ID, in the specification's order.

    `make` is given the ID, the area, the record of the area's file AREA.toml, and the list. Raises
    ValueError if the files do not have each statement of the list just once.
    """
    index = load_index(folder)
    found: dict[str, T] = {}
    for area in areas:
        with (folder / f"{area.value}.toml").open("rb") as file:
            records: dict[str, Any] = tomllib.load(file)
        for identity, record in records.items():
            if identity in found or identity not in index.statements:
                raise ValueError(f"{area.value}.toml: {identity} is there twice, or in no index")
            found[identity] = make(identity, area, record, index)
    if missing := index.statements.keys() - found.keys():
        raise ValueError(f"nothing is said of {', '.join(sorted(missing))}")
    return {identity: found[identity] for identity in index.statements}

"""What the specification says that devices do where it uses no word of RFC 2119.

That a read gives what was written is no MUST of the specification's, and a disk that does not keep
to it is broken all the same. Such sentences are in definitions.toml, in our own words.
"""

import functools
import tomllib
from collections.abc import Mapping
from typing import NotRequired, TypedDict

from virtiopy.conformance.clauses import catalogue
from virtiopy.conformance.clauses.catalogue import Area, Clause, Transport
from virtiopy.conformance.clauses.protocol import protocol
from virtiopy.statements.index import FOLDERS, load_index
from virtiopy.statements.latex import Requirements
from virtiopy.statements.terms import Condition, Keyword

#: The device carries out requests, and says so.
COMPLETION = "2.6:1"

#: The used length is what was written.
USED_LENGTH = "2.6:2"

#: No more is counted than was written.
WRITTEN = "2.7.8.2:2"

#: The length is there before the entry is counted.
LENGTH_IN_PLACE = "2.7.8.2:1"

#: A kick that has nothing new to tell does no harm.
IDLE_KICK = "2.7.10.2:5"

#: Heads come back that were given.
USED_ID = "2.7.8:1"

#: A reset takes the status to 0.
RESET = "2.4.1:1"

#: Any valid subset of the features is taken.
FEATURES = "2.2.2:2"


#: The device is none of a legacy specification's.
VERSION_1 = "6.2:1"

#: What a session with a vhost-user backend stands on.
PROTOCOLS = ("header:1", "header:2", "header:3", "communication:1")

#: What everything else stands on.
BASIS = (*PROTOCOLS, RESET, VERSION_1, FEATURES, COMPLETION)

_FOLDER = FOLDERS[Requirements.DEVICE]


class _Record(TypedDict):
    """One table of definitions.toml."""

    title: str
    area: str
    paraphrase: str
    feature: NotRequired[str]
    transports: NotRequired[list[str]]
    host_side: NotRequired[bool]
    bears: NotRequired[list[str]]


@functools.cache
def definitions() -> Mapping[str, Clause]:
    """Return the definitions by ID, in the specification's order."""
    bits = load_index(_FOLDER).features
    return {identity: _clause(identity, record, bits) for identity, record in _records().items()}


@functools.cache
def _records() -> Mapping[str, _Record]:
    with (_FOLDER / "definitions.toml").open("rb") as file:
        records: dict[str, _Record] = tomllib.load(file)
    return records


@functools.cache
def stands_on(identity: str) -> list[str]:
    """Return the statements without which one cannot be judged, the most basic first."""
    if identity in BASIS:
        return list(BASIS[: BASIS.index(identity)])
    below: dict[str, None] = dict.fromkeys(BASIS)
    for other, clause in everything().items():
        if identity in clause.bears:
            below |= dict.fromkeys([*stands_on(other), other])
    return list(below)


def _clause(identity: str, record: _Record, bits: Mapping[str, int]) -> Clause:
    feature = record.get("feature")
    transports = record.get("transports", [transport.value for transport in Transport])
    return Clause(
        id=identity,
        section=identity.partition(":")[0],
        title=record["title"],
        keyword=Keyword.DEFINITION,
        paraphrase=record["paraphrase"],
        area=Area(record["area"]),
        feature=feature,
        transports=frozenset(Transport(name) for name in transports),
        host_side=record.get("host_side", False),
        unobservable=None,
        condition=Condition.parse(feature, bits) if feature else None,
        bears=record.get("bears", ()),
    )


@functools.cache
def everything() -> Mapping[str, Clause]:
    """Return every statement and every definition by ID, in the specification's order.

    Those of the vhost-user protocol come last. Raises ValueError where a definition has the ID of a
    statement.
    """
    statements, defined = catalogue.load(), definitions()
    if both := statements.keys() & defined.keys():
        raise ValueError(f"definitions.toml: {', '.join(sorted(both))} are statements")
    found = {**statements, **defined}
    return {**{identity: found[identity] for identity in sorted(found, key=place)}, **protocol()}


def place(identity: str) -> list[int]:
    """Return where a statement stands in virtio's specification, to sort by."""
    return [int(number) for number in identity.replace(":", ".").split(".")]

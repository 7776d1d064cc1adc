"""What the vhost-user protocol asks of frontends and backends, as statements.

statements.toml has them, in our own words, with the section of QEMU's docs/interop/vhost-user.rst
that each comes from. It is the one list: the conformance suite judges backends by it, and the proxy
judges both sides of a session that it passes on.
"""

import enum
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from virtiopy.statements.terms import Keyword
from virtiopy.vhost.user.messages import ProtocolFeature

#: The published page of the protocol.
PAGE = "https://www.qemu.org/docs/master/interop/vhost-user.html"

_FILE = Path(__file__).with_suffix(".toml")


class Side(enum.Enum):
    """Whom a statement is to."""

    FRONTEND = "frontend"
    BACKEND = "backend"


class Section(enum.Enum):
    """The sections of the page that statements are from: the anchor of each, and its title."""

    HEADER = ("header", "Header")
    REGIONS = ("multiple-memory-regions-description", "Multiple Memory regions description")
    COMMUNICATION = ("communication", "Communication")
    RING_STATES = ("ring-states", "Ring states")
    SUSPENDED = ("suspended-device-state", "Suspended device state")
    MULTIPLE_QUEUES = ("multiple-queue-support", "Multiple queue support")
    MIGRATION = ("migration", "Migration")
    MEMORY_ACCESS = ("memory-access", "Memory access")
    BACKEND_COMMUNICATION = ("back-end-communication", "Back-end communication")
    INFLIGHT = ("inflight-i-o-tracking", "Inflight I/O tracking")
    IN_BAND = ("in-band-notifications", "In-band notifications")
    MESSAGES = ("front-end-message-types", "Front-end message types")
    BACKEND_MESSAGES = ("back-end-message-types", "Back-end message types")
    REPLY_ACK = ("vhost-user-protocol-f-reply-ack", "VHOST_USER_PROTOCOL_F_REPLY_ACK")
    CONVENTIONS = ("backend-program-conventions", "Backend program conventions")

    @property
    def anchor(self) -> str:
        """Where the section is in the page."""
        return self.value[0]

    @property
    def title(self) -> str:
        """The section's heading."""
        return self.value[1]

    @property
    def link(self) -> str:
        """The section's address."""
        return f"{PAGE}#{self.anchor}"


@dataclass(frozen=True, slots=True)
class ProtocolStatement:
    """One statement to a frontend or to a backend."""

    id: str  # its section, or its message, and a place in that: "ring-states:3", "SET_CONFIG:1"
    side: Side
    section: Section
    keyword: Keyword
    paraphrase: str  # what the side does or does not do, in one sentence
    needs: ProtocolFeature | None  # what has to be negotiated for it to say anything
    unobservable: str | None  # why its keeping cannot be seen from the other side
    not_tested: str | None  # why it could be seen, and the conformance suite does not look


class _Record(TypedDict):
    """One table of statements.toml."""

    side: str
    section: str
    keyword: str
    paraphrase: str
    needs: NotRequired[str]
    unobservable: NotRequired[str]
    not_tested: NotRequired[str]


@functools.cache
def statements() -> Mapping[str, ProtocolStatement]:
    """Return every statement by its ID, in the page's order."""
    with _FILE.open("rb") as file:
        records: dict[str, _Record] = tomllib.load(file)
    return {identity: _statement(identity, record) for identity, record in records.items()}


def _statement(identity: str, record: _Record) -> ProtocolStatement:
    needs = record.get("needs")
    return ProtocolStatement(
        id=identity,
        side=Side(record["side"]),
        section=Section[record["section"].replace("-", "_").upper()],
        keyword=Keyword(record["keyword"]),
        paraphrase=record["paraphrase"],
        needs=None if needs is None else ProtocolFeature[needs],
        unobservable=record.get("unobservable"),
        not_tested=record.get("not_tested"),
    )


def to_side(side: Side) -> list[ProtocolStatement]:
    """Return the statements to one side, in the page's order."""
    return [one for one in statements().values() if one.side is side]

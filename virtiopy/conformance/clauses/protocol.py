"""What the vhost-user protocol asks of backends, as clauses beside those of virtio's specification.

The list is virtiopy.vhost.user.statements', which has what it asks of frontends, too.
"""

import functools
from collections.abc import Mapping

from virtiopy.conformance.clauses.catalogue import Area, Clause, Transport
from virtiopy.statements import anchors
from virtiopy.vhost.user.statements import ProtocolStatement, Side, statements, to_side


@functools.cache
def protocol() -> Mapping[str, Clause]:
    """Return the statements to backends by ID, in the order of the protocol's page."""
    return {one.id: _clause(one) for one in to_side(Side.BACKEND)}


def _clause(statement: ProtocolStatement) -> Clause:
    reason = statement.unobservable
    if statement.not_tested is not None:
        reason = f"the suite does not look: {statement.not_tested}"
    return Clause(
        id=statement.id,
        section=_section(statement.id),
        title=statement.section.title,
        keyword=statement.keyword,
        paraphrase=statement.paraphrase,
        area=Area.VHOST_USER,
        feature=None,
        transports=frozenset([Transport.VHOST_USER]),
        host_side=False,
        unobservable=reason,
        condition=None,
    )


def _section(identity: str) -> str:
    return identity.rpartition(":")[0]


@functools.cache
def _links() -> Mapping[str, str]:
    return {_section(one.id): one.section.link for one in statements().values()}


def link(section: str) -> str:
    """Return the address of a section: of virtio's specification, or of the protocol's page.

    Raises KeyError for one that neither has.
    """
    return _links().get(section) or anchors.link(section)

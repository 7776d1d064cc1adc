"""A campaign as one HTML page, which loads nothing. Importing this needs the extra "campaign"."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from virtiopy.conformance.campaign.matrix import MatrixRecord
from virtiopy.conformance.clauses.protocol import link


def render(found: MatrixRecord) -> str:
    """Return the page: the failures, and each statement by backend and version."""
    environment = Environment(
        loader=PackageLoader("virtiopy.conformance.campaign", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["section"] = lambda identity: link(identity.rpartition(":")[0])
    return environment.get_template("page.html.j2").render(found=found)

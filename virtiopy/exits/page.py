"""The comparison as one HTML page with plots, which loads nothing from elsewhere.

Importing this needs the extra "plots".
"""

import json
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from virtiopy import __version__
from virtiopy.exits import plots
from virtiopy.exits.columns import tables
from virtiopy.exits.differences import Difference, differences, interprets
from virtiopy.exits.document import document
from virtiopy.exits.model import Comparison, Row, format_number
from virtiopy.exits.plots import Plot


@dataclass(slots=True, frozen=True)
class _Mode:
    """What the page says of one mode; of one that is missing, only why."""

    row: Row
    plot: Plot | None
    differences: list[Difference]

    def each(self, count: int) -> str:
        """Write how much of a count there is for one request."""
        assert self.row.costs is not None
        return format_number(self.row.costs.each(count))


def render(comparison: Comparison) -> str:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("virtiopy.exits", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        comparison=comparison,
        unit=comparison.workload.unit,
        version=__version__,
        comparisons=plots.comparisons(comparison),
        tables=tables(comparison.workload),
        modes=[_mode(comparison, row) for row in comparison.rows],
        interpreted=any(interprets(costs) for _, costs in comparison.measured),
        data=json.dumps(document(comparison), indent=2),
    )


def _mode(comparison: Comparison, row: Row) -> _Mode:
    if row.costs is None:
        return _Mode(row, None, [])
    return _Mode(row, plots.profile(comparison, row, row.costs), differences(row.costs))

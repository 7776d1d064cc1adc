"""The comparison on a terminal of 80 columns."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from virtiopy.cli.tables import number_column, show_table
from virtiopy.exits.columns import Columns, tables
from virtiopy.exits.differences import handled_in_kernel
from virtiopy.exits.model import Comparison, Row, format_number

_MISSING = "missing"
_EXIT_FREE = "exit-free"


def show(console: Console, comparison: Comparison) -> None:
    """Print what each request cost, mode by mode."""
    console.print(
        f"{comparison.workload.sentence}, on {comparison.accelerator}. Set-up is excluded: counts "
        "and times are of the requests alone, between two marks of the guest's.",
        highlight=False,
    )
    for columns in tables(comparison.workload):
        show_table(console, _table(comparison, columns))
    _show_handled_in_kernel(console, comparison)
    for row in comparison.rows:
        if row.missing is not None:
            console.print(f"{row.name} is {_MISSING}: {row.missing}", highlight=False)


def _table(comparison: Comparison, what: Columns) -> Table:
    table = Table(title=what.title, title_justify="left")
    table.add_column("mode")
    for column in what.columns:
        number_column(table, column.lines)
    for name, row in zip(_names(comparison.rows), comparison.rows, strict=True):
        if row.costs is None:
            table.add_row(name, _MISSING, *("-" for _ in what.columns[1:]))
        else:
            table.add_row(name, *(column.cell(row.costs) for column in what.columns))
    return table


def _names(rows: Sequence[Row]) -> Iterator[str]:
    """Name the rows; a mode that has just been named is not named again, which is long."""
    before = ""
    for row in rows:
        yield f"{_EXIT_FREE:>12}" if row.exit_free and row.mode == before else row.name
        before = row.mode


def _show_handled_in_kernel(console: Console, comparison: Comparison) -> None:
    """Print what makes up the difference of the kernel's count and ours."""
    unit = comparison.workload.unit
    table = Table(title="Exits that never reached userspace", title_justify="left")
    table.add_column("mode")
    table.add_column("counter of the kernel")
    number_column(table, f"a {unit}")
    for row, costs in comparison.measured:
        for counter, count in handled_in_kernel(costs).items():
            table.add_row(row.name, counter or "none", format_number(costs.each(count)))
    if table.row_count:
        show_table(console, table)

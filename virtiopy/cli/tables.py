"""Tables on a terminal: where it is too narrow, lines run over its edge, and no number is cut."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

#: Wider than any table, characters.
_WIDEST = 1000

#: The lines and spaces between columns of rich's tables: one line, and a space on each side.
_BETWEEN = 3


def number_column(table: Table, heading: str) -> None:
    """Add a column of numbers, which are not broken over lines."""
    table.add_column(heading, justify="right", no_wrap=True)


def show_table(console: Console, table: Table) -> None:
    """Print a table that is as wide as the terminal allows, and as its words and numbers need."""
    for column in table.columns:
        column.min_width = _least(console, column)
    least = sum(column.min_width or 0 for column in table.columns)
    least += _BETWEEN * len(table.columns) + 1
    before = console.width
    try:
        console.width = max(before, least)
        console.print(table)
    finally:
        console.width = before


def _least(console: Console, column: Column) -> int:
    """Return the width of the longest word of a column, or of its longest line if it stays one."""
    options = console.options.update(width=_WIDEST)
    widths = [0]
    for cell in (column.header, *column.cells):
        text = Text.from_markup(cell) if isinstance(cell, str) else cell
        measured = Measurement.get(console, options, text)
        widths.append(measured.maximum if column.no_wrap else measured.minimum)
    return max(widths)

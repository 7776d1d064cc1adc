"""Tables on a terminal: where it is too narrow, lines run over its edge, and no number is cut."""

import re

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

#: Wider than any table, characters.
_WIDEST = 1000

#: A word with the spaces around it, as rich breaks lines.
_WORD = re.compile(r"[^\S\n]*\S+")

#: The lines and spaces between columns of rich's tables: one line, and a space on each side.
_BETWEEN = 3


def number_column(table: Table, heading: str) -> None:
    """Add a column of numbers, which are not broken over lines."""
    table.add_column(heading, justify="right", no_wrap=True)


def show_table(console: Console, table: Table) -> None:
    """Print a table that is as wide as the terminal allows, and as its words and numbers need."""
    measured = [_measure(console, column) for column in table.columns]
    before = console.width
    widths = _fitted(measured, before - _BETWEEN * len(measured) - 1)
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
    try:
        console.width = max(before, sum(widths) + _BETWEEN * len(widths) + 1)
        console.print(table)
    finally:
        console.width = before


def _fitted(measured: list[Measurement], room: int) -> list[int]:
    """Take from the widest column, and the next, what there is no room for, and they can spare."""
    widths = [each.maximum for each in measured]
    while sum(widths) > room:
        spare = [i for i, each in enumerate(measured) if widths[i] > each.minimum]
        if not spare:
            break
        widths[max(spare, key=lambda i: widths[i])] -= 1
    return widths


def _measure(console: Console, column: Column) -> Measurement:
    """Return the width of the longest word of a column and that of its longest line.

    Both are that of the line where the column's are not broken.
    """
    options = console.options.update(width=_WIDEST)
    words, lines = [0], [0]
    for cell in (column.header, *column.cells):
        text = Text.from_markup(cell) if isinstance(cell, str) else cell
        measured = Measurement.get(console, options, text)
        lines.append(measured.maximum)
        words.append(measured.maximum if column.no_wrap else measured.minimum)
        if isinstance(text, Text):
            # A line's indent stays with its first word.
            words += [cell_len(word.rstrip()) for word in _WORD.findall(text.plain)]
    return Measurement(max(words), max(lines))

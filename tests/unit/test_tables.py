"""Tables on terminals of any width."""

import io

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from virtiopy.cli.tables import number_column, show_table


def shown(width: int) -> str:
    # Columns of words that can be broken, of which the widest is not the one with most to spare.
    table = Table("mode", "counter of the kernel", "direction")
    number_column(table, "count")
    table.add_row("ioeventfd exit-free", "preemption_other", "write", "1234567")
    table.add_row(Text("   exit-free"), "halt_exits", "read", "0.25")
    stream = io.StringIO()
    show_table(Console(file=stream, width=width), table)
    return stream.getvalue()


@pytest.mark.parametrize("width", [1, 20, 40, 50, 60, 80])
def test_no_word_and_no_number_is_cut_however_narrow_the_terminal(width: int) -> None:
    text = shown(width)

    for word in (
        "1234567 │",
        "0.25 │",
        "ioeventfd",
        "   exit-free",
        "preemption_other",
        "direction",
    ):
        assert word in text
    assert "…" not in text


def test_a_table_is_no_wider_than_a_terminal_that_has_room_for_its_words() -> None:
    assert max(map(len, shown(60).splitlines())) <= 60
    assert "ioeventfd exit-free" in shown(80)

"""What a guest says on its debug console, shown line by line."""

import click

#: A longer line is shown in pieces, bytes.
LINE_MAX = 1 << 16

#: How much of the output is kept, characters.
TEXT_MAX = 4 << 20

_STYLES = (("not ok", "red"), ("Bail out!", "red"), ("ok", "green"), ("#", "bright_black"))


class GuestOutput:
    """Shows the guest's output line by line, and keeps the first TEXT_MAX of it."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._lines: list[str] = []
        self._room = TEXT_MAX

    def write(self, data: bytes) -> None:
        """Take some output; a line is shown when it is whole."""
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._line += part
            self._show_line()
        self._line += rest
        if len(self._line) > LINE_MAX:
            self._show_line()

    def finish(self) -> None:
        """Show a last line that was not ended."""
        if self._line:
            self._show_line()

    def _show_line(self) -> None:
        line = self._line.decode(errors="replace")
        self._line.clear()
        if self._room > 0:
            self._lines.append(line)
            self._room -= len(line) + 1
        color = next((color for start, color in _STYLES if line.startswith(start)), None)
        if "# SKIP" in line:
            color = "yellow"
        click.secho(line, fg=color)

    @property
    def is_whole(self) -> bool:
        """Whether all of it was kept."""
        return self._room > 0

    @property
    def text(self) -> str:
        """All lines that were kept."""
        return "".join(f"{line}\n" for line in self._lines)

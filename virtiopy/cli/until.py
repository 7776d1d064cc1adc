"""The options that end a run at what the guest prints."""

import os
from collections.abc import Callable
from typing import TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., int])


def until_options(function: _Command) -> _Command:
    """Give a subcommand the options --until and --until-failure."""
    function = click.option(
        "--until-failure",
        metavar="TEXT",
        help="End the run with status 1 where the guest prints this.",
    )(function)
    return click.option(
        "--until",
        metavar="TEXT",
        help="End the run with status 0 where the guest prints this, on its console; a guest that "
        "ends and has not printed it has failed.",
    )(function)


class Until:
    """Looks for what ends a run in what a guest prints, in pieces of any size.

    `end` is called with the status, once.
    """

    def __init__(self, success: str | None, failure: str | None) -> None:
        self.end: Callable[[int], None] = lambda status: None
        self.success = success
        #: The status that the guest's words ended the run with, if they did.
        self.status: int | None = None
        # The user's bytes, text or not, as a shell hands them to us.
        self._wanted = [
            (os.fsencode(text), status) for text, status in ((success, 0), (failure, 1)) if text
        ]
        self._kept = max((len(text) for text, _ in self._wanted), default=1) - 1
        self._tail = b""

    def watching(self, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """Return what takes the guest's output, and passes it on."""
        if not self._wanted:
            return write

        def take(data: bytes) -> None:
            write(data)
            self._look(data)

        return take

    def _look(self, data: bytes) -> None:
        if self.status is not None:
            return
        seen = self._tail + data
        # What it printed first counts.
        found = [(seen.find(text), status) for text, status in self._wanted if text in seen]
        if found:
            self.status = min(found)[1]
            self.end(self.status)
            return
        self._tail = seen[-self._kept :] if self._kept else b""

    def passed(self, otherwise: bool) -> bool:
        """Say whether the guest passed; `otherwise` is what its status and its tests say."""
        if self.status is not None:
            return self.status == 0
        return otherwise and self.success is None

    def missed(self) -> bool:
        """Say whether the guest was to print something, and has not."""
        return self.success is not None and self.status is None

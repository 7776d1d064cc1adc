"""What is logged, and how the command line shows it."""

import logging
import time
from collections.abc import Callable

from virtiopy.complaints import Allowance


def set_up() -> None:
    """Have what is logged written to standard error."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_ours_or_serious)
        handler.addFilter(RateLimit())


def _is_ours_or_serious(record: logging.LogRecord) -> bool:
    """Leave out what libraries tell of themselves, as pyroute2 does for each netlink message.

    Their loggers have levels of their own, which they set when they are imported.
    """
    return record.name.startswith("virtiopy") or record.levelno >= logging.WARNING


class RateLimit(logging.Filter):
    """Keeps a log handler's warnings and errors to an allowance for each kind of message."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._allowances: dict[tuple[str, str], Allowance] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is shown, and add to its text how many were not."""
        if record.levelno < logging.WARNING:
            # Only who asked for details has these.
            return True
        # A message without its arguments: there are as many as there are places that log.
        kind = (record.name, str(record.msg))
        allowance = self._allowances.setdefault(kind, Allowance(self._clock))
        left_out = allowance.ask()
        if left_out:
            text = record.getMessage()
            record.msg, record.args = f"{text} ({left_out} more like this were left out)", ()
        return left_out is not None

"""What holds something of the host's until `close`."""

from types import TracebackType
from typing import Self


class Closing:
    """Makes `with` close its object at the end."""

    def close(self) -> None:
        """Give back what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

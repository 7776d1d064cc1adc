"""The file server of the suite's 9P device."""

import errno

from virtiopy.devices.ninep import (
    HEADER_SIZE,
    FileServerUser,
    header_of,
    make_error,
    make_message,
)
from virtiopy.eventloop import EventLoop

_TVERSION, _RVERSION = 100, 101


class VersionServer:
    """Agrees to the version that it is asked for, and has no files."""

    def __init__(self) -> None:
        self._user: FileServerUser | None = None

    def start(self, loop: EventLoop | None, user: FileServerUser) -> bool:
        """Begin."""
        self._user = user
        return True

    def send(self, message: bytes) -> None:
        """Answer at once."""
        assert self._user is not None
        _, kind, tag = header_of(message)
        if kind == _TVERSION:
            answer = make_message(_RVERSION, tag, message[HEADER_SIZE:])
        else:
            answer = make_error(tag, errno.EOPNOTSUPP)
        self._user.answered(answer)

    def wait(self, seconds: float) -> bool:
        """Wait for nothing: every request is answered."""
        return False

    def hold(self, *, held: bool) -> None:
        """Nothing: no loop waits for it."""

    def end(self) -> None:
        """End the session."""
        self._user = None

    def close(self) -> None:
        """End for good."""
        self._user = None

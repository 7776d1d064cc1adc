"""The driver of the 9P transport device, which virtio 1.4 has a number for and no section on."""

import itertools
from typing import ClassVar

from virtiopy.conformance.drivers.base import DeviceDriver, Request
from virtiopy.conformance.sessions.base import Session
from virtiopy.devices.ninep import (
    ERROR_SIZE,
    HEADER_SIZE,
    RLERROR,
    NinePFeature,
    header_of,
    make_message,
)
from virtiopy.spec import DeviceId

#: The queue of requests.
REQUESTQ = 0

#: A request to give a file up, and the number of one that a session does not begin with.
_TCLUNK, _NO_FILE = 120, b"\xff\xff\xff\x7f"

#: Tags go from 0 up to this: each request in flight has its own, and the largest says none.
_TAGS = 0xFFFF


class NinePDriver(DeviceDriver):
    """A driver that gives up a file which it never had: any server refuses, in any session."""

    device_id: ClassVar[DeviceId] = DeviceId.NINE_P
    name: ClassVar[str] = "ninep"
    understood = tuple(NinePFeature)

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._tags = itertools.count()

    def good_request(self) -> Request:
        """Return a request, with a tag of its own."""
        tag = next(self._tags) % _TAGS

        def check(content: bytes, length: int) -> None:
            answer = content[:length]
            assert length == ERROR_SIZE, f"{answer!r} is no error number"
            assert header_of(answer) == (ERROR_SIZE, RLERROR, tag), (
                f"{answer!r} is no error of request {tag}"
            )
            assert any(answer[HEADER_SIZE:]), f"{answer!r} has no error's number"

        return Request(REQUESTQ, make_message(_TCLUNK, tag, _NO_FILE), ERROR_SIZE, check)

"""What a VMM has said of a device's queues, and what works them has not done yet."""

import contextlib
import select
from collections.abc import Iterator

from virtiopy._native import CData, ffi


class Gate:
    """Shut while there is a message of the VMM's that is not done: it may be to leave a queue.

    A driver whose command the VMM has answered already, after it sent such a message, counts on
    what the command asked for. Threads in C look at `native` as Python does at `is_shut`.
    """

    def __init__(self) -> None:
        #: struct vp_gate
        self.native: CData = ffi.new("struct vp_gate *", {"fd": -1})
        self._poll = select.poll()

    def set_file(self, fd: int | None) -> None:
        """Have the messages come by this file; no queue is worked meanwhile."""
        if self.native.fd >= 0:
            self._poll.unregister(self.native.fd)
        self.native.fd = -1 if fd is None else fd
        if fd is not None:
            self._poll.register(fd, select.POLLIN)

    @contextlib.contextmanager
    def handling(self) -> Iterator[None]:
        """Be shut while messages are taken and done."""
        self.native.busy = True
        try:
            yield
        finally:
            self.native.busy = False

    @property
    def is_shut(self) -> bool:
        """Whether there is a message that is not done."""
        return bool(self.native.busy) or bool(self.native.fd >= 0 and self._poll.poll(0))

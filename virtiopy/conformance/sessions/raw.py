"""A vhost-user frontend that says what a test has it say, message by message, and no more."""

from collections.abc import Sequence

from virtiopy.closing import Closing
from virtiopy.conformance.problems import BrokenError
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.sessions.vhostuser import traced
from virtiopy.conformance.targets.backends import Backend
from virtiopy.errors import PeerError
from virtiopy.vhost.user.connection import DisconnectedError, close_all
from virtiopy.vhost.user.messages import (
    NO_FLAGS,
    VHOST_USER_F_PROTOCOL_FEATURES,
    Flag,
    Message,
    Request,
    VersionError,
    to_u64,
    u64,
)


class RawFrontend(Closing):
    """A frontend of `backend`, connected, that has said nothing yet.

    What the backend does wrong is an error about the statement that the caller names, or about one
    of a message's header.
    """

    def __init__(self, backend: Backend, trace: Trace, patience: float) -> None:
        self.backend = backend
        self.trace = trace
        self.patience = patience
        stream = backend.connect(patience)
        stream.settimeout(patience)
        self.connection = traced(stream, trace)

    def close(self) -> None:
        """Leave the backend."""
        self.connection.close()

    def tell(
        self,
        request: Request,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
        clause: str = "communication:5",
    ) -> None:
        """Send a message; raises BrokenError, about `clause`, where the backend has left."""
        flags = Flag.NEED_REPLY if need_reply else NO_FLAGS
        try:
            self.connection.send(Message(request, payload, flags, list(fds)))
        except PeerError as error:
            self.backend.check()
            raise BrokenError(f"it left: {error}", clause) from error

    def reply(self, request: Request, clause: str) -> Message:
        """Return the next message, which has to be the reply to `request`; its files are closed.

        Raises BrokenError about `clause` where none comes.
        """
        try:
            message = self.connection.receive()
        except VersionError as error:
            raise BrokenError(f"the reply to {request.name} is {error}", "header:2") from error
        except PeerError as error:
            self.backend.check()
            left = isinstance(error, DisconnectedError)
            what = "it left" if left else f"none came in {self.patience:g} s"
            raise BrokenError(f"{request.name} has no reply: {what}", clause) from error
        if message is None:
            raise BrokenError(f"{request.name} has no reply", clause)
        close_all(message.fds)
        if message.request != request:
            raise BrokenError(f"{message.name} is the reply to {request.name}", "header:3")
        if not message.flags & Flag.REPLY:
            raise BrokenError(f"the reply to {request.name} has no reply flag", "header:1")
        return message

    def ask(self, request: Request, clause: str = "communication:1") -> int:
        """Send what has a number for a reply, and return that."""
        self.tell(request, clause=clause)
        return self.number(self.reply(request, clause), clause)

    def number(self, message: Message, clause: str) -> int:
        """Return the number that a reply is; raises BrokenError about `clause` for another."""
        if len(message.payload) != 8:
            raise BrokenError(
                f"the reply to {message.name} has {len(message.payload)} bytes, not 8", clause
            )
        return to_u64(message)

    def begin(self, protocol: int | None = None) -> int:
        """Negotiate protocol features, all that are offered of `protocol`, and own the session.

        Returns those that were negotiated; 0 where the backend knows of none.
        """
        taken = 0
        if self.ask(Request.GET_FEATURES) >> VHOST_USER_F_PROTOCOL_FEATURES & 1:
            taken = self.ask(Request.GET_PROTOCOL_FEATURES)
            if protocol is not None:
                taken &= protocol
            self.tell(Request.SET_PROTOCOL_FEATURES, u64(taken))
        self.tell(Request.SET_OWNER)
        return taken

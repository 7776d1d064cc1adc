"""vhost-user backends that the suite starts itself: by a command, or a device in this process."""

import contextlib
import shlex
import socket
import subprocess
import tempfile
import time
from abc import abstractmethod
from pathlib import Path

from virtiopy.closing import Closing
from virtiopy.conformance.problems import DiedError
from virtiopy.conformance.targets.loops import raise_failure, turns
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError, PeerError
from virtiopy.eventloop import EventLoop
from virtiopy.vhost.user.backend import Backend as ServingBackend
from virtiopy.vhost.user.connection import Connection
from virtiopy.vhost.user.frontend import VhostUserFrontend, connect
from virtiopy.vhost.user.server import Server, listen

#: Seconds that a backend which was spawned may take to listen, unless --spawn-time says otherwise.
#: One that ends instead is noticed at once.
SPAWN_TIME = 60.0

#: Seconds that it may take to end, when it is told to.
_ENDING_TIME = 10.0

#: How much of what a backend said is shown, bytes.
_SAID = 2000


class Backend(Closing):
    """A vhost-user backend at the socket `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Raise DiedError where it is known to be gone."""

    def connect(self, patience: float) -> socket.socket:
        """Connect, within so many seconds; raises DiedError."""
        end = time.monotonic() + patience
        while True:
            self.check()
            try:
                return connect(self.path)
            except ConfigError as error:
                # It may be on its way from the session before to the next.
                if time.monotonic() > end:
                    raise DiedError(f"no backend serves the socket any more: {error}") from error
            time.sleep(0.005)

    def close(self) -> None:
        """End it, where the suite started it."""


class _OwnBackend(Backend):
    """A backend that ends with the test, with a folder of its own."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="virtiopy-")
        super().__init__(Path(self._folder.name) / "backend.sock")
        try:
            self._start()
        except BaseException:
            self._folder.cleanup()
            raise

    @abstractmethod
    def _start(self) -> None:
        """Start it, and wait until it listens; raises ConfigError."""

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()


class SpawnedBackend(_OwnBackend):
    """A process, started with {socket} in `command` replaced; what it says is kept."""

    def __init__(self, command: str, patience: float = SPAWN_TIME) -> None:
        self._command, self._patience = command, patience
        # That it listens is found out by connecting, and some serve one connection and no more.
        self._first: socket.socket | None = None
        super().__init__()

    def _start(self) -> None:
        self._log = self.path.with_name("log").open("w+b")
        words = split(self._command)
        try:
            self._process = subprocess.Popen(
                [word.replace("{socket}", str(self.path)) for word in words],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            self._log.close()
            raise ConfigError(
                f"{words[0]} cannot be started ({error.strerror}): give a command that can."
            ) from error
        try:
            self._first = self.connect(self._patience)
        except DiedError as error:
            # One that lives has had its time.
            why = (
                f"the command runs, and nothing listens there after {self._patience:g} s. See what "
                "path it takes, or give it longer by --spawn-time."
                if self._process.poll() is None
                else str(error)
            )
            self._end()
            raise ConfigError(
                f"The command to spawn serves no vhost-user at {{socket}}: {why}"
            ) from error

    def connect(self, patience: float) -> socket.socket:
        """Connect, within so many seconds; raises DiedError."""
        first, self._first = self._first, None
        return first if first is not None else super().connect(patience)

    def greet(self) -> None:
        """Have it answer; raises ConfigError where its process ends instead, as by a wrong option.

        What else is wrong with its answer is for the tests to find.
        """
        stream = self.connect(self._patience)
        stream.settimeout(self._patience)
        try:
            VhostUserFrontend(Connection(stream)).close()
        except PeerError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                # It may still be on its way out.
                self._process.wait(1)
            try:
                self.check()
            except DiedError as error:
                raise ConfigError(
                    f"The command to spawn serves nothing at {{socket}}: {error}"
                ) from error

    def check(self) -> None:
        """Raise DiedError where the process has ended."""
        status = self._process.poll()
        if status is not None:
            self._log.seek(0)
            said = self._log.read()[-_SAID:].decode(errors="replace")
            raise DiedError(f"the backend's process ended with status {status}. {said}")

    def _end(self) -> None:
        if self._first is not None:
            self._first.close()
        self._process.terminate()
        try:
            self._process.wait(_ENDING_TIME)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def close(self) -> None:
        """End the process."""
        self._end()
        super().close()


def split(command: str) -> list[str]:
    """Return the words of a command to spawn; raises ConfigError.

    A line that ends in a backslash goes on in the next, as in a shell.
    """
    try:
        words = shlex.split(command.replace("\\\n", ""))
    except ValueError as error:
        raise ConfigError(f"The command to spawn is not one ({error}): quote it.") from error
    if not any("{socket}" in word for word in words):
        raise ConfigError(
            "The command to spawn has no {socket} in it: "
            "put that where the path of the vhost-user socket belongs."
        )
    return words


class ServedDevice(_OwnBackend):
    """A device of this process, on a loop of its own; it is closed with the backend."""

    def __init__(
        self, device: VirtioDevice, patience: float, kind: type[ServingBackend] = ServingBackend
    ) -> None:
        self._device = device
        self._kind = kind
        self._patience = patience
        super().__init__()

    def _start(self) -> None:
        self._loop = EventLoop("backend")
        self._server = Server(self._device, self._loop, listen(self.path), backend=self._kind)
        self._loop.start(daemon=True)

    def check(self) -> None:
        """Raise DiedError where an exception of the device's has ended the loop."""
        raise_failure(self._loop)

    def close(self) -> None:
        """Close the device; one that keeps its loop is left behind."""
        if turns(self._loop, self._patience):
            with contextlib.ExitStack() as stack:
                stack.callback(self._loop.close)
                stack.callback(self._device.close)
                stack.callback(self._loop.stop)
                if self._loop.running:
                    self._loop.call(self._server.close, "close the server")
                else:
                    self._server.close()
        super().close()

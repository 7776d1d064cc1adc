"""A program of the host's that takes all that guests send to it."""

import contextlib
import errno
import selectors
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from virtiopy.closing import Closing
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.entry import Options
from virtiopy.devices.registry import SINK_PORT
from virtiopy.errors import HostError
from virtiopy.sockets import SocketFile

_CHUNK = 1 << 20


def sink_for(
    options: Options,
) -> Callable[[VirtioDevice], contextlib.AbstractContextManager[object]]:
    """Return what makes a Sink for the socket device that the options name."""

    def make(device: VirtioDevice) -> Sink:
        return Sink(f"{options.text('path', '')}_{SINK_PORT}")

    return make


class Sink(Closing):
    """Listens at a Unix socket and, where the kernel has them, at SINK_PORT of AF_VSOCK's sockets.

    Guests reach the one by the device itself, and the other by the kernel's vhost-vsock. It runs
    until it is closed. Raises HostError where it cannot listen.
    """

    def __init__(self, path: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._stop_read, self._stop_write = socket.socketpair()
        self._selector.register(self._stop_read, selectors.EVENT_READ)
        with contextlib.ExitStack() as opened:
            opened.callback(self._selector.close)
            opened.callback(self._stop_read.close)
            opened.callback(self._stop_write.close)
            try:
                listener = opened.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(path)
                opened.callback(SocketFile.at(Path(path)).close)
                self._listen(listener)
                if (kernels := _kernels_socket()) is not None:
                    self._listen(opened.enter_context(kernels))
            except OSError as error:
                raise HostError(
                    f"No program can listen at {path} ({error.strerror}): take away what is there."
                ) from error
            self._opened = opened.pop_all()
        self._thread = threading.Thread(target=self._run, name="sink")
        self._thread.start()

    def _listen(self, listener: socket.socket) -> None:
        listener.listen()
        self._selector.register(listener, selectors.EVENT_READ, listener)

    def close(self) -> None:
        """Take no more."""
        self._stop_write.send(b"x")
        self._thread.join()
        self._opened.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._stop_read:
                    self._leave()
                    return
                assert isinstance(key.fileobj, socket.socket)
                if key.data is not None:
                    guest, _ = key.fileobj.accept()
                    self._selector.register(guest, selectors.EVENT_READ)
                elif not _takes(key.fileobj):
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()

    def _leave(self) -> None:
        for key in list(self._selector.get_map().values()):
            if key.data is None and isinstance(key.fileobj, socket.socket):
                self._selector.unregister(key.fileobj)
                key.fileobj.close()


def _takes(guest: socket.socket) -> bool:
    """Take what a guest has sent; False at its end."""
    try:
        return bool(guest.recv(_CHUNK))
    except ConnectionError:
        return False


def _kernels_socket() -> socket.socket | None:
    """Return a socket of AF_VSOCK's at SINK_PORT; None in a kernel without them."""
    try:
        found = socket.socket(socket.AF_VSOCK)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    try:
        found.bind((socket.VMADDR_CID_ANY, SINK_PORT))
    except OSError:
        found.close()
        raise
    return found

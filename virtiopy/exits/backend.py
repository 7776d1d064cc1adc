"""Processes that serve the device which is measured, over vhost-user."""

import abc
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from virtiopy.closing import Closing
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import HostError

#: Seconds until a backend that was asked to end is killed.
_PATIENCE = 10.0


class Served(Closing, abc.ABC):
    """A device that another process serves, which ends when this is closed."""

    @abc.abstractmethod
    def open_device(self) -> VirtioDevice:
        """Return the VM's side; raises ConfigError."""

    @abc.abstractmethod
    def threads(self) -> Iterator[Path]:
        """Find the folders in /proc of the threads that serve it."""


class Backend(Served):
    """`virtiopy serve`.

    Serves the `kind` of device that `options` describe, as `virtiopy serve` is given them.

    `attach` makes the VM's side of it from a socket. Raises HostError, with the backend's own
    words, where it does not start.
    """

    def __init__(self, kind: str, options: str, attach: Callable[[Path], VirtioDevice]) -> None:
        self._attach = attach
        self._folder = tempfile.TemporaryDirectory(prefix="virtiopy-")
        self._socket = Path(self._folder.name, "backend.sock")
        command = [sys.executable, "-m", "virtiopy", "serve", kind, options]
        self._process = subprocess.Popen(
            [*command, "--socket", str(self._socket)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        # It says one line when it can be had, and ends without one when it cannot.
        if not self._process.stdout.readline():
            _, words = self._process.communicate()
            self._folder.cleanup()
            why = words.strip().removeprefix("virtiopy: ")
            raise HostError(f"The vhost-user backend does not start: {why}")

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()

    def open_device(self) -> VirtioDevice:
        """Return the VM's side; raises ConfigError."""
        return self._attach(self._socket)

    def threads(self) -> Iterator[Path]:
        """Find its threads' folders in /proc."""
        yield from Path("/proc", str(self._process.pid), "task").iterdir()

"""The ports that a guest of virtiopy's knows: the debug console and the end of the run.

They are QEMU's isa-debugcon and isa-debug-exit. The third, for measurements, is in
virtiopy/metrics/measurement.py.
"""

import threading
from collections.abc import Callable

CONSOLE_PORT = 0xE9
EXIT_PORT = 0xF4


class ConsolePort:
    """Port 0xE9: every byte is output; reading 0xE9 says that it is there.

    `output` is called on the thread of the CPU that writes, for one CPU at a time.
    """

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output
        self._lock = threading.Lock()

    def register_name(self, offset: int) -> str:
        """Name the register, for the exit report."""
        return "data"

    def read(self, offset: int, size: int) -> bytes:
        """Answer with the port's number."""
        return bytes([CONSOLE_PORT] * size)

    def write(self, offset: int, data: bytes) -> None:
        """Take some output."""
        with self._lock:
            self._output(data)


class ExitPort:
    """Port 0xF4: a write ends the run, and its first byte is the status."""

    def __init__(self, end: Callable[[int], None]) -> None:
        self._end = end

    def register_name(self, offset: int) -> str:
        """Name the register, for the exit report."""
        return "status"

    def read(self, offset: int, size: int) -> bytes:
        """Answer with zeroes: there is nothing to read."""
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        """End the run."""
        self._end(data[0])

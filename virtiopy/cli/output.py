"""Standard output that cannot hold the program up, nor surprise it."""

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from virtiopy.errors import HostError

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Bytes that wait to be written before a writer waits, too.
ROOM = 1 << 18

#: Bytes that are written at a time: progress is seen between two writes.
CHUNK = 1 << 14

#: How long, in seconds without progress, a reader of the output is waited for by what has to end
#: or to go on.
PATIENCE = 0.5


class OutputError(HostError):
    """Standard output cannot be written."""

    def __init__(self, error: OSError) -> None:
        self.error = error
        super().__init__(
            f"Standard output cannot be written ({error.strerror}): "
            "send it to a file or a terminal that has room."
        )


class _OutputFile(io.FileIO):
    """A file whose errors say that it is standard output; a reader that left is no error."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error) from error


def open_standard_files() -> None:
    """Have the three standard files open, and standard output's errors told as OutputError.

    Where a shell closed one (`>&-`), the next file that is opened would take its number, and be
    written to in its place.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout
    if before is not None and before.fileno() != 1:
        return
    if before is not None:
        before.flush()
    raw = _OutputFile(1, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before is not None else "utf-8",
        # A path of the user's may hold bytes that are no text.
        errors="backslashreplace",
        line_buffering=raw.isatty(),
    )


def discard_standard_output() -> None:
    """Send what is still to be written to standard output nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


@contextlib.contextmanager
def patient_output() -> Iterator["PatientOutput | None"]:
    """Have what is printed go through a PatientOutput; None where standard output is no file."""
    try:
        output = PatientOutput(sys.stdout)
    except io.UnsupportedOperation:
        yield None
        return
    with contextlib.redirect_stdout(output):
        yield output


class PatientOutput(io.TextIOBase):
    """Standard output, written on a thread of its own, so that no other is stuck in it.

    A pipe that is full and not read blocks its writer for ever. Here `write` waits for the reader
    only until `hurry` is called; from then on it drops what finds no room. It raises what the
    file's own error was: BrokenPipeError or OutputError.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        stream.flush()
        self._fd = stream.fileno()
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._size = 0
        self._busy = False
        self._hurried = False
        #: How many writes found no room, and were dropped.
        self.dropped = 0
        self._error: BrokenPipeError | OutputError | None = None
        self._progress = time.monotonic()
        # A daemon, for it may be stuck in a write when the program ends.
        threading.Thread(target=self._write_all, name="output", daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The file's encoding."""
        return self._stream.encoding

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Say whether a terminal shows it."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """Say yes."""
        return True

    @property
    def buffer(self) -> "_PatientBytes":
        """The same file, for bytes."""
        return _PatientBytes(self)

    def write(self, text: str) -> int:
        """Have `text` written, and wait while too much waits to be; from any thread."""
        if not isinstance(text, str):
            # So click finds out whether a file is one of bytes.
            raise TypeError(f"{type(text).__name__} is written to a file of text")
        self.write_bytes(text.encode(self.encoding, "backslashreplace"))
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Have bytes written, as `write` does text."""
        with self._changed:
            while self._size >= ROOM and self._error is None and not self._hurried:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            if self._size < ROOM:
                self._waiting.append(data)
                self._size += len(data)
                self._changed.notify_all()
            else:
                self.dropped += 1

    def flush(self) -> None:
        """Do nothing: the thread writes as soon as it can."""

    def hurry(self) -> None:
        """Let no writer wait from now on."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def finish(self, patience: float | None = None) -> None:
        """Wait until all is written; with `patience`, at most so many seconds without progress.

        Raises what writing raised.
        """
        with self._changed:
            self._progress = time.monotonic()
            while (self._waiting or self._busy) and self._error is None:
                # A wait without an end lets no signal handler run.
                self._changed.wait(0.1)
                if patience is not None and time.monotonic() - self._progress > patience:
                    return
            if self._error is not None:
                raise self._error

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._waiting:
                    self._changed.wait()
                data = b"".join(self._waiting)
                self._waiting.clear()
                self._size = 0
                self._busy = True
            try:
                self._write(memoryview(data))
            except BrokenPipeError as error:
                self._fail(error)
                return
            except OSError as error:
                self._fail(OutputError(error))
                return

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._fd, data[:CHUNK]) :]
            self._progress = time.monotonic()

    def _fail(self, error: BrokenPipeError | OutputError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()


class _PatientBytes(io.BufferedIOBase):
    def __init__(self, output: PatientOutput) -> None:
        self._output = output

    def writable(self) -> bool:
        return True

    def write(self, data: "Buffer") -> int:
        copy = bytes(data)
        self._output.write_bytes(copy)
        return len(copy)

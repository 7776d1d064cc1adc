"""Programs of the host's that guests talk to, at Unix sockets."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def echo(
    path: Path, port: int, kind: socket.SocketKind = socket.SOCK_STREAM
) -> Iterator[list[int]]:
    """Send back what guests send to a port of the host's; yields how many bytes of each came."""
    counts: list[int] = []

    def talk(program: socket.socket) -> None:
        count = 0
        with program, contextlib.suppress(OSError):
            while data := program.recv(1 << 20):
                count += len(data)
                program.sendall(data)
        counts.append(count)

    def run() -> None:
        with contextlib.suppress(OSError):
            while True:
                program, _ = listener.accept()
                threading.Thread(target=talk, args=(program,)).start()

    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(f"{path}_{port}")
        listener.listen(64)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield counts
        finally:
            # It ends accept(), as a close does not.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()

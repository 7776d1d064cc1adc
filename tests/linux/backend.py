"""A process that serves a device on a vhost-user socket."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from virtiopy.closing import Closing

#: How long a backend may take until it listens, or until it has ended, seconds.
PATIENCE = 30.0


def serve(device: str, path: Path, *options: str) -> list[str]:
    """Return the command that serves a device of virtiopy's."""
    command = [str(Path(sys.executable).with_name("virtiopy")), "serve", device]
    return [*command, "--socket", str(path), *options]


class Backend(Closing):
    """Runs `command`, which listens on `path`; its output goes to `log`."""

    def __init__(self, command: list[str], path: Path, log: Path) -> None:
        self.path = path
        self.log = log
        self._command = command
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not self.is_listening():
            if process.poll() is not None:
                msg = f"it ended with status {process.returncode}"
            elif time.monotonic() > deadline:
                process.kill()
                process.wait()
                msg = f"it does not listen after {PATIENCE:.0f} s"
            else:
                time.sleep(0.02)
                continue
            raise AssertionError(f"{self._command}: {msg}\n{self.log.read_text()}")
        return process

    def is_listening(self) -> bool:
        """Tell whether somebody listens on the socket, without connecting to it."""
        listening = "00010000"
        for line in Path("/proc/net/unix").read_text().splitlines():
            words = line.split()
            if words[3] == listening and words[-1] == str(self.path):
                return True
        return False

    def kill(self) -> None:
        """End it by SIGKILL, in the middle of whatever it does."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start it again on the same socket."""
        self.process = self._start()

    def close(self) -> None:
        """End it as a user would."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

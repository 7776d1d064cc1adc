"""The blocks of commands of a page in docs/, run as its reader runs them.

A block is indented, and its first line begins with `$ `. Commands go on in the next line where they
end in a backslash; one that ends in `&` goes on meanwhile; the other lines are what the commands
say, in which numbers may be others.
"""

import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tests.patience import PATIENCE
from virtiopy.closing import Closing

DOCS = Path(__file__).parents[2] / "docs"

_BLOCK = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
_COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
#: How a command that goes on meanwhile names the sockets that it listens at.
_SOCKETS = re.compile(r"(?:UNIX-LISTEN:|--socket |--control |\bcid=\d+,path=)([^, ]+)")


def blocks(page: str) -> list[str]:
    """Return the blocks of commands of docs/PAGE.md."""
    text = (DOCS / f"{page}.md").read_text()
    found = [re.sub("^    ", "", block, flags=re.MULTILINE) for block in _BLOCK.findall(text)]
    return [block for block in found if block.startswith("$ ")]


class Reader(Closing):
    """Types the commands of blocks in a folder; at the end what went on meanwhile is ended."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._meanwhile: list[subprocess.Popen[bytes]] = []

    def type(self, block: str) -> str:
        """Run each command, which says what the page shows; return all that they said.

        A command that fails, as the VM of one that goes on meanwhile does not listen yet, is typed
        once more.
        """
        said = ""
        for command, shown in _COMMAND.findall(block):
            if command.endswith(" &"):
                self._start(command.removesuffix(" &"))
                continue
            pattern = re.sub(r"\d+", lambda _: r"\d+", re.escape(shown))
            output = self._run(command)
            deadline = time.monotonic() + PATIENCE
            while self._meanwhile and shown and not output and time.monotonic() < deadline:
                time.sleep(1)
                output = self._run(command)
            assert re.search(f"^{pattern}", output, re.MULTILINE), f"{command}\n{output}"
            said += output
        return said

    def _run(self, command: str) -> str:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=3 * PATIENCE,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout.replace("\r\n", "\n")

    def _start(self, command: str) -> None:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            # Of its own, for what it starts itself: `socat` with `fork`.
            start_new_session=True,
        )
        self._meanwhile.append(process)
        for name in _SOCKETS.findall(command):
            deadline = time.monotonic() + PATIENCE
            while not self._listens(name):
                assert process.poll() is None, command
                assert time.monotonic() < deadline, f"{command}: {name} does not listen"
                time.sleep(0.05)

    def _listens(self, name: str) -> bool:
        listens = rf" 00010000 .* (.*/)?{re.escape(Path(name).name)}$"
        table = Path("/proc/net/unix").read_text()
        return (self._folder / name).is_socket() and bool(re.search(listens, table, re.MULTILINE))

    def close(self) -> None:
        """End what still goes on."""
        for process in self._meanwhile:
            process.terminate()
        for process in self._meanwhile:
            process.wait(PATIENCE)

"""The pages in docs/: their code is what it says it is, and their commands do what they show.

A block of Python is named after its file, ```python NAME. A block of commands is ```console: lines
with `$ ` are run, and go on in the next where they end in a backslash; one ending in `&` goes on
meanwhile, and the lines after a command are in its output in this order; `...` stands for anything.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.support import make_image, needs_kvm
from tests.patience import PATIENCE
from virtiopy.devices import rng

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))

#: What the commands of a page need, where that is not KVM.
_NEEDS = {
    "test-your-own-driver": [],
    # These put devices to the whole suite.
    "first-broken-disk": [pytest.mark.nightly],
    "test-your-own-backend": [
        pytest.mark.nightly,
        pytest.mark.skipif(
            shutil.which("qemu-storage-daemon") is None,
            reason="qemu-storage-daemon is missing: scripts/setup dev installs it",
        ),
    ],
}

_BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(slots=True, frozen=True)
class Block:
    language: str
    name: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*match) for match in _BLOCK.findall(page.read_text())]


def without_blank_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


class Session:
    """Runs the commands of a page in a folder, with `virtiopy` and `python` as its reader has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.background: list[subprocess.Popen[bytes]] = []
        tools = folder / "tools"
        tools.mkdir()
        for name, arguments in (("python", ""), ("virtiopy", "-m virtiopy")):
            tool = tools / name
            tool.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
            tool.chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}

    def run(self, command: str) -> str:
        """Run a command, which has to succeed, and return its output."""
        shell = ["sh", "-c", command.removesuffix("&")]
        if command.endswith("&"):
            self.background.append(
                subprocess.Popen(
                    shell, cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL
                )
            )
            self._wait_for_socket(command)
            return ""
        done = subprocess.run(
            shell,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def _wait_for_socket(self, command: str) -> None:
        words = command.split()
        socket = self.folder / words[words.index("--control") + 1]
        end = time.monotonic() + PATIENCE
        while not socket.exists():
            assert time.monotonic() < end

    def finish(self) -> None:
        """Wait for what was started in the background, which has to succeed."""
        for process in self.background:
            assert process.wait(PATIENCE) == 0

    def close(self) -> None:
        for process in self.background:
            process.kill()
            process.wait()


def split_command(step: str) -> tuple[str, list[str]]:
    """Return a command, with the lines that it goes on in, and the lines after it."""
    match = re.match(r"(?:.*\\\n)*.*", step)
    assert match
    return match.group(), step[match.end() :].splitlines()[1:]


def pattern(expected: list[str]) -> re.Pattern[str]:
    """What matches output that has these lines, with anything for `...`, and for what is after."""
    lines = [re.escape(line).replace(r"\.\.\.", ".*") + "\n" for line in expected if line != "..."]
    return re.compile(".*".join(f"^{line}" for line in lines), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=_NEEDS.get(page.stem, [needs_kvm]), id=page.stem) for page in PAGES],
)
def test_the_commands_of_a_page_do_what_it_shows(tmp_path: Path, page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            assert block.name, block.text
            (tmp_path / block.name).write_text(block.text)
    session = Session(tmp_path)
    try:
        for block in blocks(page):
            if block.language != "console":
                continue
            for step in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                # As it stands: a backslash within quotes is the command's, and not the shell's.
                command, shown = split_command(step)
                output = session.run(command)
                assert pattern(shown).search(output), f"{command}\n{output}"
        session.finish()
    finally:
        session.close()


@needs_kvm
def test_the_first_command_of_the_readme_does_what_it_shows(tmp_path: Path) -> None:
    readme = (DOCS.parent / "README.md").read_text()
    shown = re.search(
        r"^    \$ truncate .*\n    \$ \.venv/bin/(.*)\n((?:    .*\n)+)", readme, re.MULTILINE
    )
    assert shown
    make_image(tmp_path / "scratch.img")
    session = Session(tmp_path)
    output = session.run(shown[1])
    for line in re.sub("^    ", "", shown[2], flags=re.MULTILINE).splitlines():
        assert line == "..." or line in output.splitlines(), line


def test_the_entropy_device_is_quoted_as_it_is() -> None:
    page = DOCS / "write-your-own-device.md"
    quoted = "".join(block.text for block in blocks(page) if block.name == "rng.py")
    assert without_blank_lines(quoted) == without_blank_lines(Path(rng.__file__).read_text())


def test_a_device_of_ones_own_has_thirty_lines() -> None:
    page = DOCS / "write-your-own-device.md"
    [device] = [block.text for block in blocks(page) if block.name == "seeded.py"]
    assert len(device.splitlines()) <= 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target

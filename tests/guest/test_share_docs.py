"""docs/share.md and docs/fs.md: each of their commands works, with a folder in PATH's place."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.accelerators import needs_unicorn
from tests.guest.support import with_command
from virtiopy.host.launcher import find_tool
from virtiopy.host.virtiofsd import find_virtiofsd

ROOT = Path(__file__).parents[2]
SECONDS = 3600

pytestmark = [
    needs_unicorn,
    # Each command boots Linux, or puts a server to the suite.
    pytest.mark.nightly,
    pytest.mark.timeout(SECONDS),
    pytest.mark.skipif(find_tool("diod") is None, reason="apt-get install diod"),
    pytest.mark.skipif(
        find_virtiofsd() is None, reason="virtiofsd takes root: apt-get install qemu-system-common"
    ),
]

#: The status of each block of commands, and what it prints. The suite finds what the page says.
SHOWN = {
    "share": [(0, r"^notes$"), (0, r"^notes$"), (0, r"^=+ \d+ passed, ")],
    "fs": [(0, r"^some text$"), (0, r"^some text$"), (1, r"Assertion `0' failed")],
}


def blocks(page: str) -> Iterator[str]:
    """Give the blocks of commands, each as it is to be typed."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    for found in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE):
        block = re.sub("^    ", "", found, flags=re.MULTILINE)
        if re.match(r"virtiopy|/usr/lib/qemu/virtiofsd", block):
            yield block


COMMANDS = [
    pytest.param(block, status, shown, id=f"{page}-{number}")
    for page, all_shown in SHOWN.items()
    for number, (block, (status, shown)) in enumerate(zip(blocks(page), all_shown, strict=True))
]


def in_one_go(block: str) -> str:
    """Return a script, which waits for what the reader does: that the server listens."""
    if found := re.search(r" &\n", block):
        path = re.search(r"[a-z]+\.sock", block)
        assert path is not None
        listens = f"grep -q ' 00010000 .*{path.group()}$' /proc/net/unix"
        wait = f" & \nserver=$!\nuntil [ -S {path.group()} ] && {listens}; do sleep 0.1; done\n"
        begin, rest = block[: found.start()], block[found.end() :]
        block = f"{begin}{wait}{rest}status=$?\nkill $server\nwait $server\nexit $status\n"
    return block


@pytest.mark.parametrize(("block", "status", "shown"), COMMANDS)
def test_a_command_of_the_page_does_what_it_says(
    tmp_path: Path, block: str, status: int, shown: str
) -> None:
    (tmp_path / "scratch").mkdir()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes").write_text("some text\n")
    done = subprocess.run(
        ["sh", "-c", in_one_go(re.sub(r"\bPATH\b", str(folder), block))],
        cwd=tmp_path,
        env=with_command(tmp_path / "bin"),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert re.search(shown, done.stdout, re.MULTILINE), done.stdout

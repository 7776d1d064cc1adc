"""Pages, opened from disk in Chromium."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.patience import PATIENCE

# Chromium as root, and as silent as it gets: what it asks for of its own is told apart below.
CHROMIUM = [
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"),
]

#: What the network log calls the initiator of what the browser itself wants.
BROWSER = "not an origin"

needs_chromium = pytest.mark.skipif(
    shutil.which(CHROMIUM[0]) is None, reason="chromium is missing: scripts/setup dev installs it"
)


@dataclass(slots=True, frozen=True)
class Visit:
    """What a page became in the browser, and what it asked the network for."""

    dom: str
    requests: list[str]


def visit(page: Path, folder: Path, *arguments: str) -> Visit:
    """Open a file as a user's double click does."""
    log = folder / "net.json"
    command = [
        *(*CHROMIUM, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}"),
        *("--dump-dom", *arguments, page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    netlog = json.loads(log.read_text())
    begin = netlog["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    begun = [event["params"] for event in netlog["events"] if event["type"] == begin]
    return Visit(
        done.stdout,
        [p["url"] for p in begun if "url" in p and p.get("initiator") != BROWSER],
    )

"""The page of virtiopy exits, opened from disk in Chromium."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.support import make_image, needs_kvm, virtiopy

# Chromium as root, and as silent as it gets: what it asks for of its own is told apart below.
CHROMIUM = [
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"),
]

#: What the network log calls the initiator of what the browser itself wants.
BROWSER = "not an origin"

VERMILION = (0xD5, 0x5E, 0x00)

pytestmark = pytest.mark.skipif(
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
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    netlog = json.loads(log.read_text())
    begin = netlog["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    begun = [event["params"] for event in netlog["events"] if event["type"] == begin]
    return Visit(
        done.stdout,
        [p["url"] for p in begun if "url" in p and p.get("initiator") != BROWSER],
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    path = folder / "exits.html"
    image = make_image(folder / "disk.img")
    done = virtiopy("exits", "--disk", image, "--requests", "40", "--html", path)
    assert done.status == 0, done.errors
    return path


def figure_of(dom: str, mode: str) -> str:
    figure = re.search(rf'<figure id="mode-{mode}".*?</figure>', dom, re.DOTALL)
    assert figure, mode
    return figure[0]


@needs_kvm
def test_the_page_shows_a_plot_a_mode(page: Path, tmp_path: Path) -> None:
    dom = visit(page, tmp_path).dom

    for mode in ("trapped", "ioeventfd"):
        figure = figure_of(dom, mode)
        assert f'aria-label="A read in {mode} mode"' in figure
        assert "QueueNotify</text>" in figure
    assert "block device" in figure_of(dom, "vhost")


@needs_kvm
def test_the_page_asks_the_network_for_nothing(page: Path, tmp_path: Path) -> None:
    assert visit(page, tmp_path).requests == []


def test_what_a_page_asks_the_network_for_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<!DOCTYPE html><img src="http://elsewhere.invalid/x.png"><p>Text</p>')

    assert visit(page, tmp_path).requests == ["http://elsewhere.invalid/x.png"]


@needs_kvm
def test_the_plots_are_drawn(page: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow, which matplotlib needs, is missing")
    path = tmp_path / "page.png"
    visit(page, tmp_path, f"--screenshot={path}", "--window-size=1100,3600")

    with image.open(path) as screenshot:
        colors = {color: count for count, color in screenshot.convert("RGB").getcolors(1 << 24)}
    # Bars of exits to userspace: in the comparison, and in the plot of trapped mode.
    assert colors.get(VERMILION, 0) > 10_000

"""The page of virtiopy exits, opened from disk in Chromium."""

import re
from pathlib import Path

import pytest

from tests.browser import needs_chromium, visit
from tests.guest.support import make_image, needs_kvm, virtiopy

VERMILION = (0xD5, 0x5E, 0x00)

pytestmark = needs_chromium


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
    # vhost-net is for no disk: it is not among what is compared.
    assert 'id="mode-vhost"' not in dom


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

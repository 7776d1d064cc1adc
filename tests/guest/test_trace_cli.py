"""The live trace, as its user has it."""

from pathlib import Path

import pytest

from tests.guest.accelerators import needs_unicorn
from tests.guest.support import VIRTIOPY, make_image, virtiopy
from tests.guest.vhost_user import Backend

pytestmark = needs_unicorn


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    outcome = virtiopy(
        *("run", "--accel", "tcg", "--disk", make_image(folder / "disk.img")),
        *("--guest", "mistakes", *arguments),
    )
    return outcome.status, outcome.output, outcome.errors


def test_a_trace_is_on_standard_error_and_the_output_is_as_ever(tmp_path: Path) -> None:
    status, output, errors = run(tmp_path, "--mode", "trapped", "--trace")
    assert status == 0, errors
    assert "read MagicValue" not in output
    for words in ("blk0: read MagicValue = 0x74726976", "blk0: kick 0", "blk0: queue 0: used:"):
        assert words in errors


def test_a_run_goes_on_when_the_disk_of_its_trace_is_full(tmp_path: Path) -> None:
    status, _, errors = run(tmp_path, "--trace=/dev/full")
    assert status == 0
    assert errors == (
        "virtiopy: The trace /dev/full ends here (No space left on device); the run goes on.\n"
    )


@pytest.mark.parametrize("vmm", [True, False], ids=["frontend", "backend"])
def test_messages_of_vhost_user_are_traced_at_both_ends(tmp_path: Path, vmm: bool) -> None:
    path, trace = tmp_path / "blk.sock", tmp_path / "trace.txt"
    options = (f"--trace={trace}", "--trace-only", "kind=message")
    image = make_image(tmp_path / "disk.img")
    command = [*VIRTIOPY, "serve", "blk", str(image), "--socket", str(path)]
    with Backend([*command, *(() if vmm else options)], path):
        outcome = virtiopy(
            *("run", "--accel", "tcg", "--disk", f"vhost-user={path}", "--guest", "mistakes"),
            *(options if vmm else ()),
        )
        assert outcome.status == 0, outcome.errors
    lines = trace.read_text()
    assert "-> SET_FEATURES 0x" in lines
    assert "-> SET_VRING_ADDR" in lines
    assert "<- " in lines or vmm

"""virtiopy proxy, between a VM of ours and a backend in another process."""

import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.guest.accelerators import needs_unicorn
from tests.guest.support import VIRTIOPY, Outcome, assert_one_sentence, make_image, virtiopy
from tests.guest.vhost_user import Backend

pytestmark = needs_unicorn


def run_through(
    tmp_path: Path, proxy_options: Sequence[str], *guest: str
) -> tuple[Outcome, int, str]:
    """Run a guest on a disk behind a proxy; returns its outcome, the proxy's status and output."""
    image = make_image(tmp_path / "disk.img")
    backend, proxy = tmp_path / "backend.sock", tmp_path / "proxy.sock"
    serve = [*VIRTIOPY, "serve", "blk", str(image), "--socket", str(backend)]
    between = [*VIRTIOPY, "proxy", "--listen", str(proxy), "--connect", str(backend)]
    with (
        Backend(serve, backend) as served,
        Backend([*between, *proxy_options], proxy) as passed,
    ):
        outcome = virtiopy("run", "--accel", "tcg", "--disk", f"vhost-user={proxy}", *guest)
    assert served.process.returncode == 0
    return outcome, passed.process.returncode, passed.output


def test_a_guest_passes_all_its_tests_through_a_proxy_which_shows_and_judges_them(
    tmp_path: Path,
) -> None:
    trace, report = tmp_path / "trace.txt", tmp_path / "report.json"
    options = [f"--trace={trace}", f"--check={report}", "--device", "blk"]
    outcome, status, output = run_through(tmp_path, options, "--guest", "blk")
    assert outcome.status == 0, outcome.output + outcome.errors
    lines = trace.read_text()
    for words in ("-> SET_VRING_KICK", "kick 0", "queue 0: available: head", "queue 0: used: head"):
        assert words in lines
    judged = json.loads(report.read_text())
    assert judged["devices"] == ["frontend", "backend"]
    # What the guest does on purpose, and the device refuses.
    broken = {(one["device"], one["statement"]) for one in judged["findings"]}
    assert status == 1
    assert broken == {("frontend", f"5.2.6.1:{place}") for place in (2, 6, 7, 9, 11, 14)}, output


def test_a_sound_driver_breaks_nothing_and_its_recording_is_played_to_other_backends(
    tmp_path: Path,
) -> None:
    recording = tmp_path / "seen.rec"
    options = ["--check", "--device", "blk", "--record", f"{recording},limit=1M"]
    outcome, status, output = run_through(tmp_path, options, "--guest", "mistakes")
    assert (outcome.status, status) == (0, 0), output + outcome.output
    assert "Both sides: 0 MUST broken, 0 SHOULD broken" in output

    serve = shlex.join([*VIRTIOPY, "serve", "blk", str(make_image(tmp_path / "same.img"))])
    same = virtiopy("replay", recording, "--spawn", serve + " --socket {socket}")
    assert same.status == 0, same.output + same.errors
    assert "; 0 differences." in same.output

    # Another kind of device altogether.
    rng = shlex.join([*VIRTIOPY, "serve", "rng"])
    other = virtiopy("replay", recording, "--spawn", rng + " --socket {socket}")
    assert other.status == 1, other.output + other.errors
    assert "GET_FEATURES: the answer is 0x" in other.output


def test_what_cannot_be_recorded_or_played_is_said_in_a_sentence(tmp_path: Path) -> None:
    mine = make_image(tmp_path / "mine", 4096)
    before = mine.read_bytes()
    sockets = ("--listen", tmp_path / "a", "--connect", tmp_path / "b")
    assert_one_sentence(virtiopy("proxy", *sockets, "--record", mine), "would replace")
    assert mine.read_bytes() == before
    assert_one_sentence(virtiopy("proxy", *sockets, "--record", ",limit=1M"), "--record")
    assert_one_sentence(virtiopy("replay", mine, "--socket", tmp_path / "b"), "no recording")
    assert_one_sentence(virtiopy("replay", tmp_path / "none", "--socket", "b"), "cannot be read")
    assert_one_sentence(virtiopy("replay", mine), "--spawn", "--socket")


def test_a_device_is_named_for_the_judge_alone() -> None:
    outcome = virtiopy("proxy", "--listen", "a", "--connect", "b", "--device", "blk")
    assert_one_sentence(outcome, "--check")


def test_a_socket_that_another_process_listens_at_is_not_taken(tmp_path: Path) -> None:
    image, path = make_image(tmp_path / "disk.img"), tmp_path / "backend.sock"
    with Backend([*VIRTIOPY, "serve", "blk", str(image), "--socket", str(path)], path):
        outcome = virtiopy("proxy", "--listen", path, "--connect", tmp_path / "other.sock")
    assert_one_sentence(outcome, "serves", "already")


def test_a_proxy_needs_both_sockets() -> None:
    done = subprocess.run(
        [*VIRTIOPY, "proxy", "--listen", "a.sock"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--connect" in done.stderr

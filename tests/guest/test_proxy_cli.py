"""virtiopy proxy, between a VM of ours and a backend in another process."""

import subprocess
from pathlib import Path

from tests.guest.accelerators import needs_unicorn
from tests.guest.support import VIRTIOPY, assert_one_sentence, make_image, virtiopy
from tests.guest.vhost_user import Backend

pytestmark = needs_unicorn


def test_a_guest_passes_all_its_tests_through_a_proxy_which_shows_its_requests(
    tmp_path: Path,
) -> None:
    image, trace = make_image(tmp_path / "disk.img"), tmp_path / "trace.txt"
    backend, proxy = tmp_path / "backend.sock", tmp_path / "proxy.sock"
    serve = [*VIRTIOPY, "serve", "blk", str(image), "--socket", str(backend)]
    between = [*VIRTIOPY, "proxy", "--listen", str(proxy), "--connect", str(backend)]
    with (
        Backend(serve, backend) as served,
        Backend([*between, f"--trace={trace}"], proxy) as passed,
    ):
        outcome = virtiopy(
            *("run", "--accel", "tcg", "--disk", f"vhost-user={proxy}", "--guest", "blk")
        )
        assert outcome.status == 0, outcome.output + outcome.errors
    assert (served.process.returncode, passed.process.returncode) == (0, 0), passed.output
    lines = trace.read_text()
    for words in ("-> SET_VRING_KICK", "kick 0", "queue 0: available: head", "queue 0: used: head"):
        assert words in lines


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

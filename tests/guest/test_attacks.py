"""A device that is served stays in its bounds, whatever its frontend does."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.guest.accelerators import has_unicorn
from tests.guest.attacks import ANSWER_BOUND, ATTACKS, GROWTH_BOUND, Cost, measure
from tests.guest.session_attacks import SESSION_ATTACKS, measure_sessions
from tests.guest.support import VIRTIOPY
from tests.guest.vhost_user import Backend
from tests.guest.vm_attacks import NEVER, VM_ATTACKS, measure_vm
from tests.namespace import MAY_HAVE_TAPS
from tests.patience import PATIENCE
from virtiopy.boot.guests import guest_path

#: How long each attack goes on, seconds; and how often it is made where the machine has other
#: things to do: what is not bounded is never in bounds.
DURATION = 1.5
ATTEMPTS = 3


@pytest.mark.parametrize("mode", ["native", "ioeventfd"])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_keeps_no_good_request_waiting(name: str, mode: str, tmp_path: Path) -> None:
    costs: list[Cost] = []
    while len(costs) < ATTEMPTS and not any(cost.is_in_bounds for cost in costs):
        folder = tmp_path / str(len(costs))
        folder.mkdir()
        costs.append(measure(ATTACKS[name], mode, folder, DURATION))
    assert costs[-1].is_in_bounds, costs


@pytest.mark.parametrize("name", SESSION_ATTACKS)
def test_an_attack_by_sessions_keeps_no_other_session_waiting(name: str, tmp_path: Path) -> None:
    if SESSION_ATTACKS[name].has_tap and not MAY_HAVE_TAPS:
        pytest.skip("taps and network namespaces need root and /dev/net/tun")
    costs: list[Cost] = []
    while len(costs) < ATTEMPTS and not any(cost.is_in_bounds for cost in costs):
        (folder := tmp_path / str(len(costs))).mkdir()
        costs.append(measure_sessions(name, folder, DURATION))
    assert costs[-1].is_in_bounds, costs


#: Connects to each of the sockets as another user of the host, and says how that failed.
_OTHER_USER = """
import json, os, socket, sys
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
failed = {}
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as stream:
        try:
            stream.connect(path)
            failed[path] = None
        except OSError as error:
            failed[path] = type(error).__name__
print(json.dumps(failed))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_no_other_user_connects_to_a_socket_whatever_the_umask() -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as opened:
        folder = Path(name)
        # Others find the sockets, and may do with them what their modes let them.
        folder.chmod(0o755)
        served, console, control = (folder / f"{kind}.sock" for kind in ("s", "console", "c"))
        attached = [f"socket:{console}", "--control", str(control), "--timeout", "0"]
        spin = ["--guest", str(guest_path("misbehave")), "--append", "misbehave=spin"]
        for path, words in (
            (served, ["serve", "rng", "--socket", str(served)]),
            (control, ["run", "--accel", "tcg", *spin, "--console", *attached]),
        ):
            open_umask = ["sh", "-c", 'umask 0; exec "$@"', "sh", *VIRTIOPY, *words]
            opened.callback(Backend(open_umask, path).kill)
        done = subprocess.run(
            [sys.executable, "-c", _OTHER_USER, served, console, control],
            capture_output=True, text=True, timeout=PATIENCE, check=True,
        )  # fmt: skip
    assert set(json.loads(done.stdout).values()) == {"PermissionError"}


@pytest.mark.nightly
@pytest.mark.skipif(not has_unicorn(), reason="unicorn is not installed")
@pytest.mark.parametrize("name", VM_ATTACKS)
def test_an_attack_on_a_vm_keeps_no_command_waiting_and_it_ends(name: str, tmp_path: Path) -> None:
    if VM_ATTACKS[name].needs_root and os.geteuid() != 0:
        pytest.skip("a tap in a network namespace of its own takes root")
    costs: list[Cost] = []
    while len(costs) < ATTEMPTS and not any(_is_answered(cost) for cost in costs):
        (folder := tmp_path / str(len(costs))).mkdir()
        costs.append(measure_vm(name, folder, DURATION))
    assert _is_answered(costs[-1]), costs


def _is_answered(cost: Cost) -> bool:
    # When it ends is held to its bound in tests/unit/test_bounded_runs.py.
    return cost.answer < ANSWER_BOUND and cost.end != NEVER and cost.growth < GROWTH_BOUND

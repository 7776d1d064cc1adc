"""DPDK's driver and DPDK's backend, with a proxy between: each in a testpmd of its own."""

import re
import time
from pathlib import Path

import pytest

from tests.guest.dpdk import Testpmd, needs_dpdk
from tests.guest.support import VIRTIOPY
from tests.guest.vhost_user import Backend
from tests.patience import PATIENCE

pytestmark = [needs_dpdk, pytest.mark.nightly]

#: Frames that have to arrive.
FRAMES = 10_000


def received(testpmd: Testpmd) -> int:
    """Return how many frames the port of a testpmd has received."""
    assert testpmd.process.stdin is not None
    testpmd.process.stdin.write(b"show port stats all\n")
    testpmd.process.stdin.flush()
    found = re.findall(r"RX-packets: (\d+)", testpmd.output)
    return int(found[-1]) if found else 0


def test_frames_pass_between_dpdks_driver_and_its_backend(tmp_path: Path) -> None:
    backend, seen = tmp_path / "vhost.sock", tmp_path / "seen.sock"
    proxy = [*VIRTIOPY, "proxy", "--listen", str(seen), "--connect", str(backend)]
    proxy += ["--check", "--device", "net"]
    with Testpmd(tmp_path / "vhost.log", [f"net_vhost0,iface={backend}"], "rxonly") as vhost:
        vhost.wait_for("rxonly packet forwarding - ports=1")
        with Backend(proxy, seen, tmp_path / "proxy.log") as passed:
            driver = f"net_virtio_user0,path={seen},packed_vq=0"
            with Testpmd(tmp_path / "driver.log", [driver], "txonly", cpu=0) as user:
                user.wait_for("txonly packet forwarding - ports=1")
                deadline = time.monotonic() + PATIENCE
                while received(vhost) < FRAMES:
                    assert time.monotonic() < deadline, vhost.output
                    time.sleep(0.5)
    assert "0 MUST broken" in passed.output, passed.output
    assert passed.process.returncode == 0

"""DPDK's driver and Open vSwitch's on a device that is served, and VMs on their backends."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guest.dpdk import Testpmd, needs_dpdk
from tests.guest.ovs import OpenVSwitch, needs_ovs
from tests.guest.support import VIRTIOPY, needs_kvm
from tests.guest.vhost_user import serve
from tests.namespace import Namespace, needs_taps
from tests.patience import PATIENCE
from tests.ping import ping

pytestmark = needs_taps

HOST, PEER = "192.0.2.1", "192.0.2.2"

#: What DPDK's backend says when the rings of a frontend are started.
READY = "virtio is now ready for processing"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "it is not so"
        time.sleep(0.01)


@contextmanager
def guest_that_answers(path: Path) -> Iterator[None]:
    """Run a guest that answers pings, on the backend at `path`."""
    command = [*VIRTIOPY, "run", "--guest", "net", "--net", f"vhost-user={path}"]
    command += ["--append", "net.mode=serve", "--timeout", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("# ready"):
                    break
            else:
                raise AssertionError(lines)
            yield
        finally:
            process.terminate()
            process.communicate()


@needs_dpdk
@pytest.mark.parametrize("ring", ["packed_vq=0", "packed_vq=1", "mrg_rxbuf=0"])
def test_dpdks_driver_answers_pings_on_a_device_that_is_served(
    tmp_path: Path, namespace: Namespace, ring: str
) -> None:
    path = tmp_path / "net.sock"
    tap = f"tap=t0,create=on,netns={namespace.name},address={HOST}/24"
    driver = f"net_virtio_user0,path={path},{ring}"
    with (
        serve("net", tap, path) as backend,
        Testpmd(tmp_path / "pmd.log", [driver], "icmpecho") as testpmd,
    ):
        testpmd.wait_for("icmpecho packet forwarding - ports=1")
        ping(namespace, PEER)
    assert "warning" not in backend.output.lower(), backend.output


@needs_dpdk
def test_dpdks_driver_goes_on_with_a_device_that_is_served_again(
    tmp_path: Path, namespace: Namespace
) -> None:
    """In server mode DPDK waits for a backend, and sends 0 as each base to one that comes again."""
    path = tmp_path / "net.sock"
    command = [*VIRTIOPY, "-v", "serve", "net", "--connect", "--socket", str(path)]
    command.append(f"tap=t0,create=on,netns={namespace.name},address={HOST}/24")
    log = tmp_path / "serve.log"
    driver = f"net_virtio_user0,path={path},server=1"
    with log.open("wb") as output:
        first = subprocess.Popen(command, stdout=output, stderr=output)
    with Testpmd(tmp_path / "pmd.log", [driver], "icmpecho") as testpmd:
        testpmd.wait_for("icmpecho packet forwarding - ports=1")
        ping(namespace, PEER)
        first.kill()
        first.wait()
        with log.open("ab") as output:
            again = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            until(lambda: log.read_text().count("connected to a frontend") == 2)
            ping(namespace, PEER)
        finally:
            again.terminate()
            again.wait()
    assert "goes on from the used ring" in log.read_text()


@needs_dpdk
@needs_kvm
def test_a_guest_answers_pings_through_dpdks_backend(tmp_path: Path, namespace: Namespace) -> None:
    path = tmp_path / "net.sock"
    devices = [f"net_vhost0,iface={path}", "net_tap0,iface=t0"]
    with Testpmd(tmp_path / "pmd.log", devices, "io", namespace) as testpmd:
        testpmd.wait_for("io packet forwarding - ports=2")
        namespace.ip("address", "add", f"{HOST}/24", "dev", "t0")
        namespace.ip("link", "set", "t0", "up")
        with guest_that_answers(path):
            testpmd.wait_for(READY)
            ping(namespace, PEER)


@needs_ovs
@needs_kvm
def test_open_vswitch_is_the_backend_of_a_guest_and_the_driver_of_a_device_that_is_served(
    tmp_path: Path, namespace: Namespace
) -> None:
    path = tmp_path / "net.sock"
    tap = f"tap=t0,create=on,netns={namespace.name},address={HOST}/24"
    with serve("net", tap, path), OpenVSwitch(tmp_path / "ovs", namespace) as switch:
        switch.add_driver("ours", path)
        with guest_that_answers(switch.add_backend("theirs")):
            switch.wait_for(READY)
            ping(namespace, PEER)

"""Open vSwitch with DPDK in user space, with a database of its own and without huge pages."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.namespace import Namespace
from tests.patience import PATIENCE
from virtiopy.closing import Closing
from virtiopy.host.tap import NAMESPACES

VSWITCHD = Path("/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk")
SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")

_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"

needs_ovs = pytest.mark.skipif(
    not VSWITCHD.exists() or shutil.which("ovsdb-server", path=_PATH) is None,
    reason="Open vSwitch with DPDK is missing (openvswitch-switch-dpdk)",
)


#: Not in memory alone, as Open vSwitch has it otherwise: DPDK does that with huge pages only.
DPDK = "--no-huge --legacy-mem -m 256 --no-pci"


class OpenVSwitch(Closing):
    """A switch whose bridge is in user space, until closed.

    All that it keeps is in `folder`, and the bridge's own interface is in the namespace.
    """

    def __init__(self, folder: Path, namespace: Namespace) -> None:
        folder.mkdir()
        self.folder = folder
        self.log = folder / "vswitchd.log"
        self._database = f"unix:{folder / 'db'}"
        self._environment = {
            **os.environ,
            "PATH": _PATH,
            **dict.fromkeys(["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"], str(folder)),
            "RUNTIME_DIRECTORY": str(folder),
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self._run("ovsdb-tool", "create", str(folder / "conf.db"), str(SCHEMA))
            self._start(
                *("ovsdb-server", str(folder / "conf.db"), f"--remote=p{self._database}"),
                f"--unixctl={folder / 'db.ctl'}",
            )
            self.until((folder / "db").exists, "its database listens")
            self._set("--no-wait", "init")
            settings = {
                "per-port-memory": "true",
                "dpdk-init": "true",
                "dpdk-extra": DPDK,
                "pmd-cpu-mask": "1",
            }
            words = [f'other_config:{name}="{value}"' for name, value in settings.items()]
            self._set("--no-wait", "set", "Open_vSwitch", ".", *words)
            inside = ["nsenter", f"--net={NAMESPACES / namespace.name}"]
            self._start(*inside, str(VSWITCHD), self._database, f"--unixctl={folder / 'v.ctl'}")
            self._set("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End its processes."""
        for process in reversed(self._processes):
            process.terminate()
            process.wait(PATIENCE)

    def add_backend(self, name: str) -> Path:
        """Add a port that serves a network device; returns the socket."""
        self._add(name, "type=dpdkvhostuser")
        return self.folder / name

    def add_driver(self, name: str, path: Path) -> None:
        """Add a port that drives the network device served at `path`."""
        self._add(name, "type=dpdk", f"options:dpdk-devargs=net_virtio_user0,path={path}")

    @property
    def output(self) -> str:
        """What it has said."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Wait until it has said so."""
        self.until(lambda: text in self.output, text)

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            assert all(process.poll() is None for process in self._processes), self.output
            assert time.monotonic() < deadline, f"not so: {what}; {self.output}"
            time.sleep(0.01)

    def _add(self, name: str, *settings: str) -> None:
        self._set("add-port", "br0", name, "--", "set", "Interface", name, *settings)
        fault = self._set("get", "Interface", name, "error").strip()
        assert fault == "[]", f"{fault}; {self.output}"

    def _set(self, *words: str) -> str:
        return self._run("ovs-vsctl", f"--db={self._database}", f"--timeout={PATIENCE:.0f}", *words)

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + (self.output if self.log.exists() else "")
        return done.stdout

    def _start(self, *command: str) -> None:
        with self.log.open("ab") as log:
            self._processes.append(
                subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
            )

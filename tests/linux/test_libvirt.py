"""A guest of libvirt's that virsh suspends and resumes, while it uses devices that are served."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.guest.test_vhost_user_docs import AS_A_USER, needs_users
from tests.guest.vhost_user import serve
from tests.linux.ram import MEMORY, PARAMETERS, PINGED, SOUND, RamGuest, RamLinux
from tests.namespace import Namespace, needs_taps
from tests.patience import PATIENCE

pytestmark = [
    needs_taps,
    pytest.mark.skipif(shutil.which("virsh") is None, reason="virsh is missing (libvirt-clients)"),
    needs_users,
]

SUSPENSIONS = 10

#: What the guest has written between two suspensions, bytes.
PROGRESS = 256 << 10

# QEMU 7.2 without KVM crashes where a vhost-user net device has MSI-X vectors.
_DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>guest</name>
  <memory unit='MiB'>{memory}</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initramfs}</initrd><cmdline>{parameters}</cmdline>
  </os>
  <devices>
    <disk type='vhostuser' device='disk'>
      <driver name='qemu' type='raw'/>
      <source type='unix' path='{folder}/blk.sock'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='vhostuser'>
      <mac address='52:54:00:00:00:01'/>
      <source type='unix' path='{folder}/net.sock' mode='client'/>
      <model type='virtio'/>
      <alias name='ua-net'/>
    </interface>
    <serial type='file'><source path='{log}'/></serial>
  </devices>
  <qemu:override>
    <qemu:device alias='ua-net'>
      <qemu:frontend><qemu:property name='vectors' type='unsigned' value='0'/></qemu:frontend>
    </qemu:device>
  </qemu:override>
</domain>
"""


class Virsh(RamGuest):
    """virsh with libvirt's driver in its own process, and a guest in `folder`: no daemon."""

    def __init__(self, linux: RamLinux, folder: Path) -> None:
        log, domain, home = folder / "console.log", folder / "domain.xml", folder / "libvirt"
        domain.write_text(
            _DOMAIN.format(
                memory=MEMORY,
                kernel=linux.kernel,
                initramfs=linux.initramfs,
                parameters=PARAMETERS,
                folder=folder,
                log=log,
            )
        )
        # No daemon for the logs either.
        (home / "etc").mkdir(parents=True)
        (home / "etc" / "qemu.conf").write_text('stdio_handler = "file"\n')
        self._answers = folder / "virsh.log"
        with self._answers.open("wb") as output:
            process = subprocess.Popen(
                [*AS_A_USER, "virsh", "--quiet", "--connect", f"qemu:///embed?root={home}"],
                env={**os.environ, "HOME": str(home)},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
        super().__init__(process, log)
        self.do(f"create {domain}", "running")

    def do(self, command: str, state: str) -> None:
        """Have virsh do it; the guest's state afterwards is `state`."""
        asked = self._said(state)
        self._type(command)
        self._type("domstate guest")
        self.until(lambda: self._said(state) > asked or "error:" in self.output, command)
        assert "error:" not in self.output, self.output

    def close(self) -> None:
        """End the guest, and virsh."""
        self._type("destroy guest")
        self.process.communicate(timeout=PATIENCE)

    @property
    def output(self) -> str:
        """What virsh has said."""
        return self._answers.read_text()

    def _said(self, state: str) -> int:
        return self.output.splitlines().count(state)

    def _type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()


def test_a_guest_that_virsh_suspends_and_resumes_loses_nothing(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    linux = RamLinux(request.config, tmp_path)
    image = tmp_path / "disk.img"
    with image.open("wb") as stream:
        stream.truncate(16 << 20)
    with (
        Namespace() as namespace,
        serve("blk", str(image), tmp_path / "blk.sock") as disk,
        serve(
            "net",
            f"tap=t0,create=on,netns={namespace.name},address=192.0.2.1/24",
            tmp_path / "net.sock",
        ) as net,
        Virsh(linux, tmp_path) as guest,
    ):
        guest.until_said(SOUND, PINGED)
        for _ in range(SUSPENSIONS):
            guest.until_written(disk.process.pid, PROGRESS)
            guest.do("suspend guest", "paused")
            guest.do("resume guest", "running")
        guest.until_said(SOUND, PINGED)
    assert "goes on from the used ring" not in disk.output + net.output
    assert "needs a reset" not in disk.output + net.output

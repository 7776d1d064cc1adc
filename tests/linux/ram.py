"""Linux with all its files in memory, in a QEMU that can be stopped and migrated.

virtme-ng's guests mount the host's files, and QEMU migrates none that do.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.kernel import LabMissingError, get_kernel
from tests.lab.machine import CACHE
from tests.lab.plugin import NOT_TO_BE_HAD
from tests.patience import PATIENCE
from virtiopy.closing import Closing
from virtiopy.linux import initramfs
from virtiopy.linux.programs import find_program

MEMORY = 384


#: What Linux says when fio has verified what it wrote, and when the host has answered its ping.
SOUND = r"round \d+ is sound"
PINGED = r"seq=\d+"

_WORK = Path(__file__).with_name("verify.sh")
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net")
#: What the kernel is told.
PARAMETERS = "console=ttyS0 quiet panic=-1 mitigations=off no5lvl init_on_alloc=0 apparmor=0"
_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "fio": "fio",
}


class RamLinux:
    """A kernel, and an initramfs with busybox, fio and `verify.sh` to run, in `folder`."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        missing = [package for tool, package in _PACKAGES.items() if not shutil.which(tool)]
        if missing:
            pytest.skip(f"{NOT_TO_BE_HAD}: missing here: apt-get install {' '.join(missing)}")
        if config.getoption("--lab") == "off":
            pytest.skip(f"{NOT_TO_BE_HAD}: it is switched off by --lab=off")
        try:
            kernel = get_kernel(CACHE)
        except LabMissingError as error:
            pytest.skip(f"{NOT_TO_BE_HAD}: {error}")
        self.kernel = kernel.image
        self.initramfs = folder / "initramfs"
        contents = initramfs.Contents(kernel, _MODULES, (find_program("fio"),))
        task = initramfs.Task([_WORK.read_text()], interactive=False)
        self.initramfs.write_bytes(initramfs.build(contents, task, CACHE))


class RamGuest(Closing):
    """That Linux in some VMM, whose process is `process` and that writes its console to `log`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            end = self.console[-1000:]
            assert self.process.poll() is None, f"the VMM has ended before {what}; {end}"
            assert time.monotonic() < deadline, f"not after {PATIENCE:.0f} s: {what}; {end}"
            time.sleep(0.01)

    @property
    def console(self) -> str:
        """What Linux has said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def has_said(self, pattern: str, times: int = 1) -> bool:
        """Say whether lines that match are on the console, and none that says FAILED."""
        console = self.console
        assert not re.search("FAILED|panic|BUG|Oops|I/O error", console), console[-3000:]
        return len(re.findall(pattern, console)) >= times

    def until_written(self, pid: int, size: int) -> None:
        """Wait until the backend with this process ID has written `size` more bytes."""
        goal = _written(pid) + size
        self.until(lambda: _written(pid) > goal, "the disk is written")

    def until_said(self, *patterns: str) -> None:
        """Wait until lines that match each of these are on the console, from now on."""
        # The first may have been on its way already.
        wanted = {pattern: len(re.findall(pattern, self.console)) + 2 for pattern in patterns}
        self.until(
            lambda: all(self.has_said(pattern, times) for pattern, times in wanted.items()),
            " and ".join(patterns),
        )


class Qemu(RamGuest):
    """QEMU with that Linux, and these `devices`; its sockets and its console are in `folder`.

    With `incoming` it waits for a guest to be migrated to it.
    """

    def __init__(
        self, linux: RamLinux, folder: Path, devices: list[str], *, incoming: bool = False
    ) -> None:
        folder.mkdir()
        log = folder / "console.log"
        self._migration = folder / "migration.sock"
        control = folder / "qmp.sock"
        command = [
            *("qemu-system-x86_64", "-accel", "tcg", "-m", f"{MEMORY}M", "-nodefaults"),
            *("-object", f"memory-backend-memfd,id=shared,size={MEMORY}M,share=on"),
            *("-machine", "q35,memory-backend=shared", "-display", "none", "-no-reboot"),
            *("-kernel", str(linux.kernel), "-initrd", str(linux.initramfs)),
            *("-append", PARAMETERS, "-serial", f"file:{log}"),
            *("-qmp", f"unix:{control},server=on,wait=off", *devices),
        ]
        if incoming:
            command += ["-incoming", f"unix:{self._migration}"]
        self._output = folder / "qemu.log"
        with self._output.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        super().__init__(process, log)
        self._control = socket.socket(socket.AF_UNIX)
        self._control.settimeout(PATIENCE)
        # It is bound before it listens.
        self.until(lambda: self._control.connect_ex(str(control)) == 0, "it takes commands")
        self._lines = self._control.makefile("rw")
        self._lines.readline()
        self.ask("qmp_capabilities")

    def close(self) -> None:
        """End it."""
        self._lines.close()
        self._control.close()
        self.quit()

    def quit(self) -> None:
        """End the process, and so leave the backends."""
        self.process.kill()
        self.process.wait()

    def ask(self, command: str, **arguments: object) -> dict[str, object]:
        """Have a command done that answers with an object."""
        print(
            json.dumps({"execute": command, "arguments": arguments}), file=self._lines, flush=True
        )
        while True:
            answer = json.loads(self._lines.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                result = answer["return"]
                assert isinstance(result, dict)
                return result

    @property
    def output(self) -> str:
        """What QEMU itself has said."""
        return self._output.read_text()

    def migrate_to(self, other: "Qemu") -> None:
        """Move the guest to another QEMU, which is waiting for it."""
        self.ask("migrate", uri=f"unix:{other._migration}")
        ends = ("completed", "failed")
        self.until(lambda: self.ask("query-migrate").get("status") in ends, "the migration ends")
        status = self.ask("query-migrate")
        assert status["status"] == "completed", status
        other.until(lambda: other.ask("query-status")["status"] == "running", "the guest runs")


def disk_options(path: Path) -> list[str]:
    """Return QEMU's options for a disk that is served at `path`."""
    return [
        *("-chardev", f"socket,id=disk,path={path}"),
        *("-device", "vhost-user-blk-pci,chardev=disk,num-queues=1,disable-legacy=on"),
    ]


def net_options(path: Path) -> list[str]:
    """Return QEMU's options for a network device that is served at `path`."""
    return [
        *("-chardev", f"socket,id=net,path={path}", "-netdev", "vhost-user,id=net,chardev=net"),
        # QEMU 7.2 without KVM crashes where a vhost-user net device has MSI-X vectors.
        *("-device", "virtio-net-pci,netdev=net,vectors=0,disable-legacy=on,mac=52:54:00:00:00:01"),
    ]


def _written(pid: int) -> int:
    """Count the bytes that a process has written, to its image above all."""
    counters = Path(os.sep, "proc", str(pid), "io").read_text()
    found = re.search(r"^wchar: (\d+)$", counters, re.MULTILINE)
    assert found is not None
    return int(found[1])

"""Debian's Linux in QEMU, with vhost-user devices that somebody serves."""

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.lab.kernel import LabMissingError
from tests.lab.machine import Lab, LabOptions
from tests.lab.plugin import NOT_TO_BE_HAD
from tests.patience import PATIENCE

MEMORY = 1024

_SCRIPTS = Path(__file__).parent


def chardev(name: str, path: Path) -> list[str]:
    """Return QEMU's options for a socket that is connected to again, a second after it closes."""
    return ["-chardev", f"socket,id={name},path={path},reconnect=1"]


def boot(
    config: pytest.Config,
    share: Path,
    script: str,
    *arguments: str,
    qemu: list[str],
    modules: tuple[str, ...],
    tools: dict[str, str],
    cpus: int,
) -> Lab:
    """Boot Linux with `qemu`'s devices; it runs a script of this folder, with `arguments`.

    The script's output, and what it leaves, is in `share`. Where QEMU itself falls over before the
    script begins, it is booted once more. Skips the test where there is no Linux
    to be had, or one of the `tools`, each with its Debian package.
    """
    missing = {package for tool, package in tools.items() if not _is_there(tool)}
    if missing:
        pytest.skip(f"{NOT_TO_BE_HAD}: missing here: apt-get install {' '.join(sorted(missing))}")
    if config.getoption("--lab") == "off":
        pytest.skip(f"{NOT_TO_BE_HAD}: it is switched off by --lab=off")
    # The backends map the guest's memory.
    memory = ["-object", f"memory-backend-memfd,id=shared,size={MEMORY}M,share=on"]
    memory += ["-machine", "memory-backend=shared"]
    command = ["sh", "-eux", str(_SCRIPTS / script), str(share), *arguments]
    options = LabOptions(cpus, MEMORY, modules, (*memory, *qemu))
    try:
        lab = Lab(command, share, {}, options)
        if lab.fell_over(PATIENCE):
            lab.close()
            lab = Lab(command, share, {}, options)
    except LabMissingError as error:
        pytest.skip(f"{NOT_TO_BE_HAD}: {error}")
    return lab


def finish(lab: Lab, seconds: float = 2 * PATIENCE) -> None:
    """Wait until the script is done; it is the failure of a test when it fails, or takes longer."""
    assert lab.wait(seconds), f"Linux is not done after {seconds:.0f} s"
    assert lab.status == 0, f"the script in the guest ends with status {lab.status}"


def wait_for(path: Path, lab: Lab, seconds: float = PATIENCE) -> None:
    """Wait until the script has made a file in what is shared."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert lab.process.poll() is None, f"Linux has ended, without {path.name}"
        assert time.monotonic() < deadline, f"there is no {path.name} after {seconds:.0f} s"
        time.sleep(0.01)


def _is_there(tool: str) -> bool:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return shutil.which(tool, path=path) is not None

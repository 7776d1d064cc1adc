"""What becomes of a virtio-fs mount whose driver is reset, or whose virtiofsd is killed."""

import os
import signal

import pytest

from tests.processes import descendants, named
from tests.vm_linux.conftest import Shared
from virtiopy.host.virtiofsd import FsDaemon

pytestmark = pytest.mark.timeout(300)


def _served_by(daemon: FsDaemon) -> set[int]:
    return named(descendants(daemon.launcher.pid), "virtiofsd")


def test_a_driver_that_was_reset_has_a_session_of_its_own(shared: Shared) -> None:
    before = _served_by(shared.daemon)
    shared.linux.sh(
        "umount -l /tree; umount -l /still; umount -l /going/fs; "
        "cd /sys/bus/virtio/drivers/virtiofs; "
        "for d in virtio*; do echo $d >unbind; echo $d >bind; done; "
        "mount -t virtiofs tree /tree && mount -t virtiofs still /still && "
        "mount -t virtiofs goes /going/fs && test -e /tree/large"
    )
    assert _served_by(shared.daemon) != before


def test_virtiofsd_that_is_killed_leaves_errors_and_is_there_for_the_next_mount(
    shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    [pid] = before = _served_by(shared.daemon)
    os.kill(pid, signal.SIGKILL)
    text = shared.linux.sh("ls /tree/large; cat /tree/large | wc -c", check=False)
    assert "Input/output error" in text
    assert [r.message for r in caplog.records if "backend is gone" in r.message]
    shared.linux.sh("umount -l /tree; mount -t virtiofs tree /tree && test -e /tree/large")
    assert _served_by(shared.daemon) != before

"""What becomes of a 9P mount whose server dies, and shares that are none."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.guest.support import assert_one_sentence, virtiopy
from tests.processes import descendants, named
from tests.vm_linux.conftest import MOUNT_9P, Shared
from virtiopy.host.launcher import find_tool


def test_diod_that_is_killed_leaves_errors_and_works_after_a_reset(
    shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    [pid] = named(descendants(shared.share.launcher.pid), "diod")
    os.kill(pid, signal.SIGKILL)
    text = shared.linux.sh("ls /mnt/large; cat /mnt/large | wc -c", check=False)
    assert "Input/output error" in text
    assert [r.message for r in caplog.records if "file server of files ended" in r.message]
    shared.linux.sh(
        "umount -l /mnt; cd /sys/bus/virtio/drivers/9pnet_virtio; "
        "for d in virtio*; do grep -qx files $d/mount_tag && name=$d; done; "
        "echo $name >unbind; echo $name >bind; "
        f"{MOUNT_9P} files /mnt && test -e /mnt/large"
    )
    assert named(descendants(shared.share.launcher.pid), "diod") != {pid}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("missing,tag=files", "missing is no folder"),
        (".", "tag="),
        (",tag=files", "names no folder"),
        (f".,tag={'x' * 256}", "255"),
    ],
)
def test_a_share_that_is_none_is_said_in_a_sentence(value: str, words: str) -> None:
    if find_tool("diod") is None or shutil.which("bwrap") is None:
        pytest.skip("diod or bubblewrap is missing: apt-get install diod bubblewrap")
    assert_one_sentence(virtiopy("run", "--share", value), words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (".", "serve ninep has tag=: give it"),
        (".,tag=files,color=red", "serve ninep does not know 'color=red'"),
    ],
)
def test_a_share_that_is_served_has_no_option_to_be_named(
    tmp_path: Path, value: str, words: str
) -> None:
    outcome = virtiopy("serve", "ninep", value, "--socket", tmp_path / "share.sock")
    assert_one_sentence(outcome, words)
    assert "--share" not in outcome.errors

"""File system devices of the command line, and virtiofsd behind them."""

import os
from pathlib import Path

import pytest

from tests.processes import descendants, named
from virtiopy.cli.attachments import build, mode_of, parse
from virtiopy.devices.registry import entry_named
from virtiopy.errors import ConfigError
from virtiopy.host import virtiofsd
from virtiopy.host.virtiofsd import FsDaemon, find_virtiofsd
from virtiopy.vhost.user.frontend import VhostUserFrontend
from virtiopy.vhost.user.fs import TAG_MAX, VhostUserFs

needs_virtiofsd = pytest.mark.skipif(
    find_virtiofsd() is None, reason="virtiofsd takes root: apt-get install qemu-system-common"
)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("missing,tag=files", "missing is no folder"),
        (".", "tag="),
        (f".,tag={'x' * 37}", "36 bytes"),
        ("vhost-user=missing.sock,tag=files", "virtiofsd -f --socket-path=missing.sock"),
        ("vhost-user=missing.sock", "tag="),
        ("vhost-user=missing.sock,tag=files,readonly=on", "which has its own readonly"),
    ],
)
def test_a_value_that_is_wrong_is_said_in_a_sentence(
    value: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(virtiofsd, "VIRTIOFSD", tmp_path)
    fs = entry_named("fs")
    with pytest.raises(ConfigError, match=words):
        build(fs, parse(fs, value))


def test_there_is_one_mode() -> None:
    fs = entry_named("fs")
    assert mode_of(fs, parse(fs, ".,tag=files"), "trapped").mode == "vhost-user"
    with pytest.raises(ConfigError, match="mode=trapped: use one of vhost-user"):
        mode_of(fs, parse(fs, ".,tag=files,mode=trapped"), "trapped")


def test_virtiofsd_that_is_missing_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtiofsd, "VIRTIOFSD", tmp_path / "virtiofsd")
    with pytest.raises(ConfigError, match="apt-get install qemu-system-common"):
        FsDaemon(tmp_path)


def test_a_user_who_is_not_root_is_told_of_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtiofsd, "VIRTIOFSD", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match=r"needs root.*use --share"):
        FsDaemon(tmp_path)


def served_by(daemon: FsDaemon) -> int:
    """Return the process of virtiofsd, of which there is one."""
    [pid] = named(descendants(daemon.launcher.pid), "virtiofsd")
    return pid


@needs_virtiofsd
def test_the_configuration_space_has_the_tag_and_one_request_queue(tmp_path: Path) -> None:
    tag = "ü" * (TAG_MAX // 2)
    with FsDaemon(tmp_path) as daemon:
        device = VhostUserFs(daemon.connect(), daemon.connect, tag=tag)
        assert device.config_space() == tag.encode() + (1).to_bytes(4, "little")
        assert len(device.queue_sizes) == 2
        device.close()


@needs_virtiofsd
def test_a_connection_has_a_virtiofsd_of_its_own_and_the_last_ends_with_the_daemon(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "a, b"
    folder.mkdir()
    daemon = FsDaemon(folder)
    with VhostUserFrontend(daemon.connect()):
        first = served_by(daemon)
    with VhostUserFrontend(daemon.connect()) as frontend:
        second = served_by(daemon)
        assert first != second
        assert frontend.get_features()
        daemon.close()
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    daemon.close()


@needs_virtiofsd
def test_a_folder_that_virtiofsd_cannot_serve_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtiofsd, "INSIDE", "/missing")
    fs = entry_named("fs")
    with pytest.raises(ConfigError, match=r"virtiofsd cannot share .*: see whether"):
        build(fs, parse(fs, f"{tmp_path},tag=files"))

"""A device that only these tests register is to be had wherever those of virtiopy's own are."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.echo import ENTRY, Echo
from tests.guest.support import needs_kvm
from tests.guest.vhost_user import Backend
from tests.patience import PATIENCE
from tests.unit.test_control import serving
from virtiopy.cli.exits import device_setup
from virtiopy.devices.registry import entry_named, registered
from virtiopy.exits.guest import OwnGuest
from virtiopy.vm.slots import IoMode

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.echo"]


@pytest.fixture
def echo() -> Iterator[None]:
    with registered(ENTRY):
        yield


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def run(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@needs_kvm
def test_it_is_attached_to_a_vm(tmp_path: Path) -> None:
    done = run("run", "--echo", "limit=12", "--echo", "--guest", "probe", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "echo0" in done.stdout
    limits = [line.split("│")[1:4] for line in done.stdout.splitlines() if "limit" in line]
    assert [[word.strip() for word in words] for words in limits] == [
        ["echo0", "limit", "12"],
        ["echo1", "limit", "4096"],
    ]


def test_its_options_are_checked_as_others_are(tmp_path: Path) -> None:
    done = run("run", "--echo", "limit=0", folder=tmp_path)
    assert done.returncode == 2
    assert "--echo has limit=0: use a number from 1 to 1048576." in done.stderr


def test_it_meets_the_statements_to_every_device_in_process(tmp_path: Path) -> None:
    done = run("conformance", "inproc:echo", "-k", "test_basic or test_split", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "inproc:echo against virtio" in done.stdout


def test_it_is_served_and_meets_them_over_vhost_user(tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"
    with Backend([*COMMAND, "serve", "echo", "limit=64", "--socket", str(path)], path):
        done = run(
            *("conformance", f"vhost-user:{path}", "--device", "echo"),
            *("-k", "test_split and framing"),
            folder=tmp_path,
        )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("echo")
def test_its_cost_in_exits_can_be_measured() -> None:
    setup = device_setup(entry_named("echo"), "limit=3", None, 2, None)
    assert setup.name == "echo0"
    assert setup.guest == OwnGuest("probe", "echo.requests=7 echo.depth=2")
    assert setup.workload.count == 7
    device = setup.build(IoMode.TRAPPED)
    assert isinstance(device, Echo)
    assert device.limit == 3


def test_exits_has_its_option(tmp_path: Path) -> None:
    done = run("exits", "--help", folder=tmp_path)
    assert "--echo [limit=N]" in done.stdout
    done = run("exits", "--echo", "--disk", "x.img", folder=tmp_path)
    assert done.returncode == 2
    assert "one device to measure, and 2 are given" in done.stderr


def test_ctl_has_its_command_and_does_it(tmp_path: Path) -> None:
    assert "Give it a word." in run("ctl", "x", "--help", folder=tmp_path).stdout
    path = tmp_path / "vm.sock"
    with registered(ENTRY), serving(path) as machine:
        machine.add_device(Echo(5), "echo0")
        told = run("ctl", path, "shout", "--word", "hello", folder=tmp_path)
        assert (told.returncode, told.stdout) == (0, "echo0: word hello\n"), told.stderr
        status = run("ctl", path, "status", folder=tmp_path)
        assert "word: hello" in status.stdout

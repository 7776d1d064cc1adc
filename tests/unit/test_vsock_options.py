"""The socket device of the command line: its option, its command, its sandbox."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from virtiopy.cli.attachments import build, parse
from virtiopy.cli.sandboxed import Sandbox
from virtiopy.control.server import Arguments
from virtiopy.devices.registry import entry_named
from virtiopy.devices.vsock import Vsock
from virtiopy.devices.vsock.commands import COMMANDS
from virtiopy.errors import ConfigError
from virtiopy.sandbox.calls import Ability

ENTRY = entry_named("vsock")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Vsock]:
    options = parse(ENTRY, f"cid=3,path={tmp_path}/vm.sock,seqpacket={tmp_path}/vm.seq")
    device = build(ENTRY, options)
    assert isinstance(device, Vsock)
    yield device
    device.close()
    assert list(tmp_path.iterdir()) == []


def test_it_has_its_cid_and_its_sockets(device: Vsock, tmp_path: Path) -> None:
    assert device.guest_cid == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vm.seq", "vm.sock"]


def test_a_user_gives_a_guest_another_cid(device: Vsock) -> None:
    assert COMMANDS["vsock-cid"].run(device, Arguments({"cid": "77"})) == {"guest_cid": 77}
    assert device.guest_cid == 77


@pytest.mark.parametrize("cid", ["", "2", "x", "-3", "4294967295", "1" * 5000])
def test_a_cid_that_is_none_changes_nothing(device: Vsock, cid: str) -> None:
    with pytest.raises(ConfigError, match="give a context ID from 3 to 4294967294"):
        COMMANDS["vsock-cid"].run(device, Arguments({"cid": cid}))
    assert device.guest_cid == 3


def test_a_sandbox_lets_it_connect_to_programs() -> None:
    sandbox = Sandbox("auto", None)
    sandbox.attaches(ENTRY, parse(ENTRY, "cid=3,path=s"))
    assert sandbox.abilities == Ability.CONNECT

"""The vsock guest in a VM, and what --vsock says of a bad value."""

import contextlib
import socket
from pathlib import Path

import pytest

from tests.guest.accelerators import each_accelerator
from tests.guest.support import (
    assert_one_sentence,
    needs_qemu,
    run_guest,
    run_in_qemu,
    virtiopy,
)
from tests.guest.vhost_user import serve
from tests.guest.vsock import echo

ECHO, MESSAGES = 7, 8
PORTS = ("--append", f"vsock.echo={ECHO} vsock.messages={MESSAGES}")


@each_accelerator
@pytest.mark.parametrize("mode", ["trapped", "ioeventfd"])
def test_the_vsock_guest_passes(tmp_path: Path, mode: str, name: str) -> None:
    path = tmp_path / "vm.sock"
    vsock = f"cid=3,path={path},seqpacket={path}.seq"
    with echo(path, ECHO) as streams, echo(path, MESSAGES, socket.SOCK_SEQPACKET) as messages:
        outcome = run_guest(
            *(tmp_path, "vsock", "--vsock", vsock, "--mode", mode, "--accel", name, *PORTS)
        )

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) > 80
    # All connections ended at the host's side too, and the sockets are taken away.
    assert len(streams) == 4 * 21
    assert sum(streams) == 4 * (8 * 1000 + sum(range(8)) + 250)
    assert len(messages) == 2
    with contextlib.suppress(FileNotFoundError):
        Path(f"{path}_{ECHO}").unlink()
        Path(f"{path}_{MESSAGES}").unlink()
    assert not [left for left in tmp_path.iterdir() if left.is_socket()]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "has cid nothing: give a context ID from 3 to 4294967294"),
        ("cid=2,path=s", "has cid 2: give a context ID from 3"),
        ("cid=4294967295,path=s", "has cid 4294967295"),
        ("cid=three,path=s", "has cid three"),
        ("cid=3", "has no path"),
        ("cid=3,path=/no/where/s", "No socket can be made at /no/where/s"),
        ("cid=3,path=" + "x" * 97, "use one of up to 96 bytes"),
        ("cid=3,path=s,socket-mode=999", "999"),
        ("cid=3,path=s,mode=native", "mode=native: use one of"),
        ("cid=3,path={folder}", "is no socket: name another path"),
        ("cid=3,vhost-user=s", "which has its own cid: leave it out here"),
        ("vhost-user={folder}/none", "No backend serves a device at"),
    ],
)
def test_a_value_that_is_wrong_is_said_in_a_sentence(
    tmp_path: Path, value: str, words: str
) -> None:
    value = value.format(folder=tmp_path)
    assert_one_sentence(virtiopy("run", "--guest", "vsock", "--vsock", value), words)


def test_the_guest_passes_on_a_device_that_another_process_serves(tmp_path: Path) -> None:
    path, served = tmp_path / "vm.sock", tmp_path / "vsock.sock"
    with (
        echo(path, ECHO) as streams,
        echo(path, MESSAGES, socket.SOCK_SEQPACKET) as messages,
        serve("vsock", f"cid=3,path={path}", served),
    ):
        outcome = run_guest(
            *(tmp_path, "vsock", "--vsock", f"vhost-user={served}", "--accel", "tcg", *PORTS)
        )

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert sum(streams) == 4 * (8 * 1000 + sum(range(8)) + 250)
    assert len(messages) == 2


@needs_qemu
def test_the_same_guest_passes_in_qemu_on_a_device_that_is_served(tmp_path: Path) -> None:
    path, served = tmp_path / "vm.sock", tmp_path / "vsock.sock"
    memory = "memory-backend-memfd,id=ram,size=128M,share=on"
    with (
        echo(path, ECHO) as streams,
        serve("vsock", f"cid=3,path={path}", served),
    ):
        run_in_qemu(
            "vsock",
            *("-object", memory, "-machine", "memory-backend=ram", "-m", "128M"),
            *("-chardev", f"socket,id=c,path={served}"),
            *("-device", "vhost-user-vsock-device,chardev=c"),
            append=f"vsock.echo={ECHO}",
            accel="tcg",
        )
    # QEMU passes SEQPACKET on of the device's features, and no other.
    assert sum(streams) == 3 * (8 * 1000 + sum(range(8)) + 250)

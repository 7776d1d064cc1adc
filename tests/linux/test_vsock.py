"""Linux's own vsock driver in QEMU, on a socket device that virtiopy serves."""

import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.vhost_user import serve
from tests.linux.guest import boot, finish, wait_for
from tests.vm_linux.test_vsock import call, program, receive_all

# A boot of its own takes minutes; tests/vm_linux/test_vsock.py shares one.
pytestmark = pytest.mark.nightly

MEBIBYTES, CONNECTIONS = 100, 1000
_TOOLS = {"socat": "socat"}


@dataclass(slots=True)
class Used:
    """What Linux has left, and what the host's programs have seen."""

    share: Path
    #: What the program at the host got of the guest, and what another one sent: their sums.
    got: str
    sent: str
    answers: int
    messages: list[bytes]
    log: str

    def said(self, name: str) -> str:
        return (self.share / name).read_text()


@pytest.fixture(scope="module")
def used(
    request: pytest.FixtureRequest, share: Path, tmp_path_factory: pytest.TempPathFactory
) -> Used:
    folder = tmp_path_factory.mktemp("vsock")
    path, served = folder / "vm.sock", folder / "vsock.sock"
    data, answers = os.urandom(MEBIBYTES << 20), 0
    messages: list[bytes] = []
    sums: list[str] = []

    def take(end: socket.socket) -> None:
        sums.append(hashlib.sha256(receive_all(end)).hexdigest())

    def talk(end: socket.socket) -> None:
        messages.append(end.recv(1 << 20))
        end.send(b"an answer")
        messages.append(end.recv(1 << 20))

    with (
        program(path, 5000, take),
        program(path, 5001, talk, socket.SOCK_SEQPACKET),
        serve("vsock", f"cid=3,path={path}", served, share / "backend.log") as backend,
        boot(
            request.config,
            share,
            "vsock.sh",
            *(str(MEBIBYTES), str(CONNECTIONS)),
            qemu=[
                *("-chardev", f"socket,id=vsock,path={served}"),
                *("-device", "vhost-user-vsock-pci,chardev=vsock"),
            ],
            modules=("vmw_vsock_virtio_transport",),
            tools=_TOOLS,
            cpus=1,
        ) as lab,
    ):
        wait_for(share / "listening", lab)
        with call(path, 1234) as end:
            end.sendall(data)
        for number in range(CONNECTIONS):
            with call(path, 1235) as end:
                end.sendall(b"%d" % number)
                answers += end.recv(100) == b"%d" % number
        (share / "enough").touch()
        finish(lab)
    [got], sent = sums, hashlib.sha256(data).hexdigest()
    return Used(share, got, sent, answers, messages, backend.output)


def test_what_the_guest_sends_arrives(used: Used) -> None:
    assert used.said("known.txt").split()[0] == used.got


def test_what_a_program_sends_arrives(used: Used) -> None:
    assert used.said("received.txt").split()[0] == used.sent


def test_a_program_connects_many_times(used: Used) -> None:
    assert used.answers == CONNECTIONS


def test_messages_stay_whole(used: Used) -> None:
    assert used.messages == [b"a message", b""]
    assert used.said("answer.txt") == "an answer"


def test_a_guest_without_a_program_to_talk_to_is_told_so(used: Used) -> None:
    assert "Connection reset by peer" in used.said("refused.txt")


def test_the_backend_has_nothing_to_complain_of(used: Used) -> None:
    assert "WARNING" not in used.log
    assert "Traceback" not in used.log

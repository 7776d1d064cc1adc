"""Linux's own vsock driver in QEMU, on a socket device that virtiopy serves."""

import contextlib
import hashlib
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.vhost_user import serve
from tests.guest.vsock import echo
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
    data: bytes
    echoed: bytes
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
    data, echoed, answers = os.urandom(MEBIBYTES << 20), b"", 0
    messages: list[bytes] = []

    def talk(end: socket.socket) -> None:
        messages.append(end.recv(1 << 20))
        end.send(b"an answer")
        messages.append(end.recv(1 << 20))

    with (
        echo(path, 5000),
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
            sender = threading.Thread(target=_send, args=(end, data))
            sender.start()
            echoed = receive_all(end)
            sender.join()
        for number in range(CONNECTIONS):
            with call(path, 1235) as end:
                end.sendall(b"%d" % number)
                answers += end.recv(100) == b"%d" % number
        (share / "enough").touch()
        finish(lab)
    return Used(share, data, echoed, answers, messages, backend.output)


def _send(end: socket.socket, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)


def test_what_the_guest_sends_comes_back(used: Used) -> None:
    assert used.said("echoed.txt") == used.said("known.txt")
    assert len(used.said("known.txt").split()[0]) == len(hashlib.sha256().hexdigest())


def test_what_a_program_sends_comes_back(used: Used) -> None:
    assert used.echoed == used.data


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

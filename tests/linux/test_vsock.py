"""Linux's own vsock driver in QEMU, on a socket device that virtiopy serves."""

import fcntl
import hashlib
import os
import select
import socket
import termios
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.vhost_user import serve
from tests.linux.guest import boot, finish, wait_for
from tests.vm_linux.test_devices import wait_until
from tests.vm_linux.test_vsock import call, program, receive_all
from virtiopy.control.client import ask, device_facts
from virtiopy.devices.vsock.connection import BUFFER_SIZE

# A boot of its own takes minutes; tests/vm_linux/test_vsock.py shares one.
pytestmark = pytest.mark.nightly

MEBIBYTES, CONNECTIONS = 100, 1000
_TOOLS = {"socat": "socat"}
#: What the guest has room for that reads nothing: its socket, socat's buffer, and a pipe.
GUEST_ROOM = (256 + 64 + 64) << 10


@dataclass(slots=True)
class Used:
    """What Linux has left, and what the host's programs have seen."""

    share: Path
    #: What the program at the host got of the guest, and what another one sent: their sums.
    got: str
    sent: str
    #: Bytes that were with the guest, which read nothing, when the program could send no more.
    unread: int
    answers: int
    messages: list[bytes]
    log: str

    def said(self, name: str) -> str:
        return (self.share / name).read_text()


def count(control: Path, name: str) -> int:
    """Return one of the counts of the device."""
    counted = device_facts(ask(control, {"command": "status"}), "vsock0")[name]
    assert isinstance(counted, int)
    return counted


def wait_until_the_guest_has_no_credit(end: socket.socket, control: Path) -> None:
    """Wait until the device has all that it has room for, and the program's socket is full."""

    def is_full() -> bool:
        received = count(control, "received")
        taken = int.from_bytes(fcntl.ioctl(end, termios.FIONREAD, bytes(4)), "little")
        return received - taken == BUFFER_SIZE

    wait_until(is_full)


def send_until_the_guest_has_no_room(end: socket.socket, data: memoryview, control: Path) -> int:
    """Send as long as something goes; return how much went."""
    went, before = 0, count(control, "sent")

    def is_full() -> bool:
        nonlocal went
        if select.select([], [end], [], 1)[1]:
            went += end.send(data[went : went + (64 << 10)], socket.MSG_DONTWAIT)
            return False
        return count(control, "sent") - before >= BUFFER_SIZE

    wait_until(is_full)
    return went


@pytest.fixture(scope="module")
def used(
    request: pytest.FixtureRequest, share: Path, tmp_path_factory: pytest.TempPathFactory
) -> Used:
    folder = tmp_path_factory.mktemp("vsock")
    path, served, control = (folder / f"{name}.sock" for name in ("vm", "vsock", "control"))
    data, answers = os.urandom(MEBIBYTES << 20), 0
    messages: list[bytes] = []
    sums: list[str] = []

    def take(end: socket.socket) -> None:
        wait_until_the_guest_has_no_credit(end, control)
        sums.append(hashlib.sha256(receive_all(end)).hexdigest())

    def talk(end: socket.socket) -> None:
        messages.append(end.recv(1 << 20))
        end.send(b"an answer")
        messages.append(end.recv(1 << 20))

    with (
        program(path, 5000, take),
        program(path, 5001, talk, socket.SOCK_SEQPACKET),
        serve(
            *("vsock", f"cid=3,path={path}", served, share / "backend.log"), control=control
        ) as backend,
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
        before = count(control, "sent")
        with call(path, 1234) as end:
            went = send_until_the_guest_has_no_room(end, memoryview(data), control)
            unread = count(control, "sent") - before
            (share / "full").touch()
            end.sendall(data[went:])
        for number in range(CONNECTIONS):
            with call(path, 1235) as end:
                end.sendall(b"%d" % number)
                answers += end.recv(100) == b"%d" % number
        (share / "enough").touch()
        finish(lab)
    [got], sent = sums, hashlib.sha256(data).hexdigest()
    return Used(share, got, sent, unread, answers, messages, backend.output)


def test_what_the_guest_sends_arrives(used: Used) -> None:
    assert used.said("known.txt").split()[0] == used.got


def test_what_a_program_sends_arrives(used: Used) -> None:
    assert used.said("received.txt").split()[0] == used.sent


def test_no_more_is_sent_than_the_guest_has_room_for(used: Used) -> None:
    assert BUFFER_SIZE <= used.unread <= GUEST_ROOM


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

"""Linux's own socket driver in a VM of ours, on the kernel's /dev/vhost-vsock."""

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab.booted import boot
from tests.lab.test_vsock import echo
from tests.patience import PATIENCE

# By night: the lab's KVM is emulated, and a boot of Linux there takes a minute.
pytestmark = [pytest.mark.lab, pytest.mark.nightly]

CID = 42
#: Bytes that are sent each way, and connections of either side: of a CPU that is emulated twice
#: over. 100 MiB and thousands are in tests/vm_linux and tests/linux.
SIZE, OF_THE_HOST, OF_THE_GUEST = 8 << 20, 60, 20
#: What a socket takes that its program does not read: VIRTIO_VSOCK_DEFAULT_BUF_SIZE, on both sides.
BUFFER_SIZE = 256 << 10
#: What a struct sockaddr_vm has behind its family: port 5002 of CID 2.
ADDRESS = "x00008a1300000200000000000000"

SCRIPT = f"""
head -c {SIZE} /dev/urandom >/tmp/known
sha256sum </tmp/known
echo KNOWN
socat -b 65536 -u FILE:/tmp/known VSOCK-CONNECT:2:5000
rm /tmp/known
echo SENT
mkfifo /tmp/enough
(socat -b 65536 -u VSOCK-LISTEN:1234 - | (read go </tmp/enough; sha256sum)) &
receiver=$!
socat -u VSOCK-LISTEN:1236 - >/tmp/enough &
echo LISTENING
wait $receiver
echo RECEIVED
socat VSOCK-LISTEN:1235,fork,backlog=64 PIPE >/dev/null 2>&1 &
for number in $(seq {OF_THE_GUEST}); do
    [ $(echo $number | socat -t 100 - VSOCK-CONNECT:2:5001) = $number ]
done
echo ECHOED
(printf 'a message'; sleep 1) | socat -t 100 - SOCKET-CONNECT:40:0:{ADDRESS},type=5
echo
echo MESSAGE
socat - VSOCK-CONNECT:2:9 2>&1 || echo REFUSED
"""


def call(port: int) -> socket.socket:
    """Connect to a port of the guest's, once a program listens there."""
    while True:
        end = socket.socket(socket.AF_VSOCK)
        end.settimeout(PATIENCE)
        try:
            end.connect((CID, port))
        except ConnectionResetError:
            end.close()
            time.sleep(0.1)
        else:
            return end


@contextlib.contextmanager
def program(
    port: int, talk: Callable[[socket.socket], None], kind: int = socket.SOCK_STREAM
) -> Iterator[None]:
    """Have one connection of the guest's to a port of the host's talked to."""

    def run() -> None:
        end, _ = listener.accept()
        with end:
            end.settimeout(PATIENCE)
            talk(end)

    with socket.socket(socket.AF_VSOCK, kind) as listener:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(1)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield
        thread.join(PATIENCE)
        assert not thread.is_alive()


def wait_until_full(end: socket.socket) -> None:
    """Wait until a socket has all that the peer's credit allows, and nothing is read."""
    while len(end.recv(2 * BUFFER_SIZE, socket.MSG_PEEK)) < BUFFER_SIZE:
        time.sleep(0.1)


def send_without_credit(end: socket.socket, data: bytes) -> int:
    """Send until the peer has no room; return how much went."""
    end.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while count < len(data):
            count += end.send(data[count:])
    end.settimeout(PATIENCE)
    return count


def test_linux_talks_to_programs_by_vhost_vsock() -> None:
    sums: list[str] = []
    messages: list[bytes] = []
    full, go_on = threading.Event(), threading.Event()

    def take(end: socket.socket) -> None:
        wait_until_full(end)
        full.set()
        assert go_on.wait(PATIENCE)
        found = hashlib.sha256()
        while more := end.recv(1 << 20):
            found.update(more)
        sums.append(found.hexdigest())

    def answer(end: socket.socket) -> None:
        messages.append(end.recv(1 << 20))
        end.send(b"an answer")

    data = os.urandom(SIZE)
    options = ("--memory", "1G", "--vsock", f"cid={CID},mode=vhost", "--with", "socat")
    with (
        program(5000, take),
        program(5002, answer, socket.SOCK_SEQPACKET),
        echo(5001, socket.SOCK_STREAM) as counts,
        boot(SCRIPT, *options) as linux,
    ):
        known = linux.read_until("KNOWN")
        assert full.wait(PATIENCE)
        seconds = linux.vhost_seconds()
        go_on.set()
        linux.read_until("SENT")
        # What the guest sent, vhost's thread has moved.
        assert linux.vhost_seconds() > seconds > 0
        linux.read_until("LISTENING")
        with call(1234) as end:
            went = send_without_credit(end, data)
            with call(1236) as other:
                other.sendall(b"\n")
            end.sendall(data[went:])
        received = linux.read_until("RECEIVED")
        for number in range(OF_THE_HOST):
            with call(1235) as end:
                end.sendall(b"%d" % number)
                assert end.recv(100) == b"%d" % number
        linux.read_until("ECHOED")
        said = linux.read_until("MESSAGE")
        refused = linux.read_until("REFUSED")
    assert sums == [known.split()[0]]
    assert BUFFER_SIZE <= went < SIZE
    assert received.split()[0] == hashlib.sha256(data).hexdigest()
    assert len(counts) == OF_THE_GUEST
    assert messages == [b"a message"]
    assert said.strip() == "an answer"
    assert "Connection reset by peer" in refused

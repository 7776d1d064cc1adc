"""Linux's own vsock driver, and programs of the host's that it reaches and that reach it."""

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.vsock import echo
from tests.patience import PATIENCE
from tests.vm_linux.conftest import CID, Rig
from tests.vm_linux.machine import Linux
from tests.vm_linux.test_devices import MIB, wait_until
from virtiopy.devices.vsock.connection import BUFFER_SIZE

SIZE = 4 * MIB


def guest_address(port: int, cid: int = 2) -> str:
    """Return what is behind the family in a struct sockaddr_vm, as socat wants it."""
    numbers = port.to_bytes(4, "little") + cid.to_bytes(4, "little")
    return f"x0000{numbers.hex()}00000000"


@contextlib.contextmanager
def program(
    path: Path, port: int, talk: Callable[[socket.socket], None], kind: int = socket.SOCK_STREAM
) -> Iterator[threading.Thread]:
    """Have one connection of the guest's to a port of the host's talked to."""

    def run() -> None:
        end, _ = listener.accept()
        with end:
            end.settimeout(PATIENCE)
            talk(end)

    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.settimeout(PATIENCE)
        listener.bind(f"{path}_{port}")
        listener.listen(1)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield thread
        finally:
            thread.join()
            os.unlink(f"{path}_{port}")


def receive_all(end: socket.socket) -> bytes:
    data = bytearray()
    while more := end.recv(1 << 20):
        data += more
    return bytes(data)


def call(path: Path, port: int) -> socket.socket:
    """Connect to a port of the guest's, once a program listens there."""
    found: list[socket.socket] = []

    def accepted() -> bool:
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(PATIENCE)
        end.connect(str(path))
        end.sendall(f"CONNECT {port}\n".encode())
        said = b""
        while not said.endswith(b"\n") and (more := end.recv(1)):
            said += more
        if said.startswith(b"OK "):
            found.append(end)
        else:
            end.close()
        return bool(found)

    wait_until(accepted)
    return found[0]


@pytest.fixture
def path(rig: Rig) -> Path:
    return rig.folder / "vm.sock"


def test_a_guest_without_a_program_to_talk_to_is_told_so(linux: Linux) -> None:
    said = linux.sh("host socat - VSOCK-CONNECT:2:9 2>&1", check=False)
    assert "Connection reset by peer" in said


def test_bytes_of_the_guest_arrive_though_the_program_is_slow(rig: Rig, path: Path) -> None:
    sums: list[str] = []

    def is_full() -> bool:
        return any(
            one.outbox.size > BUFFER_SIZE // 2 for one in list(rig.vsock.connections.values())
        )

    def talk(end: socket.socket) -> None:
        # The guest runs out of credit before anything is read.
        wait_until(is_full)
        sums.append(hashlib.sha256(receive_all(end)).hexdigest())

    with program(path, 5000, talk):
        sent = rig.linux.sh(
            f"head -c {SIZE} /dev/urandom >/tmp/known; sha256sum </tmp/known; "
            "host socat -u FILE:/tmp/known VSOCK-CONNECT:2:5000; rm /tmp/known"
        )
    assert sums == [sent.split()[0]]


def test_bytes_of_a_program_arrive_though_the_guest_is_slow(rig: Rig, path: Path) -> None:
    data = os.urandom(SIZE)

    def talk() -> None:
        with call(path, 1234) as end:
            end.sendall(data)

    caller = threading.Thread(target=talk)
    caller.start()
    received = rig.linux.sh("host socat -u VSOCK-LISTEN:1234 - | (sleep 1; sha256sum)")
    caller.join()
    assert received.split()[0] == hashlib.sha256(data).hexdigest()


def test_both_ways_at_once(rig: Rig, path: Path) -> None:
    data, echoed = os.urandom(MIB), bytearray()

    def send(end: socket.socket) -> None:
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)

    def talk() -> None:
        with call(path, 1235) as end:
            sender = threading.Thread(target=send, args=(end,))
            sender.start()
            echoed.extend(receive_all(end))
            sender.join()

    caller = threading.Thread(target=talk)
    caller.start()
    rig.linux.sh("host socat VSOCK-LISTEN:1235 PIPE")
    caller.join()
    assert echoed == data


def test_many_connections_one_after_another(rig: Rig, path: Path) -> None:
    rig.linux.sh("host socat VSOCK-LISTEN:1236,fork PIPE >/dev/null 2>&1 & echo $! >/tmp/socat.pid")
    for number in range(30):
        with call(path, 1236) as end:
            end.sendall(b"%d" % number)
            assert end.recv(100) == b"%d" % number
    rig.linux.sh("kill $(cat /tmp/socat.pid)")
    wait_until(lambda: not rig.vsock.connections)


def test_messages_stay_whole(rig: Rig, path: Path) -> None:
    messages: list[bytes] = []

    def talk(end: socket.socket) -> None:
        messages.append(end.recv(1 << 20))
        end.send(b"an answer")
        messages.append(end.recv(1 << 20))

    with program(path, 5001, talk, socket.SOCK_SEQPACKET):
        answer = rig.linux.sh(
            "(echo -n 'a message'; sleep 1) | host socat -t 5 - "
            f"SOCKET-CONNECT:40:0:{guest_address(5001)},type=5"
        )
    assert messages == [b"a message", b""]
    assert answer == "an answer"


def test_a_new_cid_ends_connections_and_the_guest_goes_on_with_it(rig: Rig, path: Path) -> None:
    heard: list[bytes] = []

    def talk(end: socket.socket) -> None:
        heard.append(end.recv(1))
        rig.vsock.change_cid(77)

    with program(path, 5002, talk):
        # It would wait for the program's end for longer than a command may take.
        rig.linux.sh("echo -n x | host socat -t 1000 - VSOCK-CONNECT:2:5002", check=False)
    assert heard == [b"x"]
    try:
        with program(path, 5003, lambda end: end.sendall(b"here")):
            # Its packets say where they come from: any other CID's would be dropped.
            assert rig.linux.sh("host socat - VSOCK-CONNECT:2:5003") == "here"
    finally:
        rig.vsock.change_cid(CID)


def test_a_program_that_never_reads_stops_its_own_connection_and_no_other(
    rig: Rig, path: Path
) -> None:
    full = threading.Event()
    over = threading.Event()

    def is_full() -> bool:
        return any(
            one.outbox.size > BUFFER_SIZE // 2 for one in list(rig.vsock.connections.values())
        )

    def never_read(end: socket.socket) -> None:
        wait_until(is_full)
        full.set()
        assert over.wait(PATIENCE)

    with program(path, 5004, never_read), program(path, 5005, lambda end: end.sendall(b"here")):
        rig.linux.sh(
            f"head -c {SIZE} /dev/zero >/tmp/zeroes; "
            "(host socat -u FILE:/tmp/zeroes VSOCK-CONNECT:2:5004; echo $? >/tmp/status) "
            "</dev/null >/tmp/said 2>&1 &"
        )
        assert full.wait(PATIENCE)
        assert rig.linux.sh("host socat - VSOCK-CONNECT:2:5005 </dev/null") == "here"
        # It has not been given up, and no more was taken than there is room for.
        assert "status" not in rig.linux.sh("ls /tmp")
        assert max(one.outbox.size for one in list(rig.vsock.connections.values())) <= BUFFER_SIZE
        over.set()
    # The program left with much of it unread.
    wait_until(lambda: rig.linux.sh("cat /tmp/status 2>/dev/null", check=False) == "1")
    rig.linux.sh("rm /tmp/zeroes /tmp/status /tmp/said")
    wait_until(lambda: not rig.vsock.connections)


# By night: the same at length.

LARGE = 100 * MIB
MANY, MANY_OF_THE_GUESTS = 2000, 500
#: The guest's connections of one command, which has a limit.
BATCH = 25


@pytest.mark.nightly
def test_100_mib_of_the_guest_arrive(rig: Rig, path: Path) -> None:
    # Each part of it says its number.
    parts = f"for part in $(seq {LARGE // (4 * MIB)}); do echo $part; cat /tmp/part; done"
    sums: list[str] = []

    def talk(end: socket.socket) -> None:
        found, size = hashlib.sha256(), 0
        while more := end.recv(1 << 20):
            found.update(more)
            size += len(more)
        assert size >= LARGE
        sums.append(found.hexdigest())

    with program(path, 5006, talk):
        sent = rig.linux.sh(
            f"head -c {4 * MIB} /dev/urandom >/tmp/part; ({parts}) | sha256sum; "
            f"({parts}) | host socat -u - VSOCK-CONNECT:2:5006; rm /tmp/part"
        )
    assert sums == [sent.split()[0]]


@pytest.mark.nightly
def test_100_mib_of_a_program_arrive(rig: Rig, path: Path) -> None:
    data = os.urandom(LARGE)

    def talk() -> None:
        with call(path, 1238) as end:
            end.sendall(data)

    caller = threading.Thread(target=talk)
    caller.start()
    received = rig.linux.sh("host socat -u VSOCK-LISTEN:1238 - | sha256sum")
    caller.join()
    assert received.split()[0] == hashlib.sha256(data).hexdigest()


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_thousands_of_connections(rig: Rig, path: Path) -> None:
    opened = rig.vsock.facts()["opened"]
    assert isinstance(opened, int)
    rig.linux.sh("host socat VSOCK-LISTEN:1239,fork PIPE >/dev/null 2>&1 & echo $! >/tmp/socat.pid")
    for number in range(MANY):
        with call(path, 1239) as end:
            end.sendall(b"%d" % number)
            assert end.recv(100) == b"%d" % number
    rig.linux.sh("kill $(cat /tmp/socat.pid)")
    with echo(path, 5007) as counts:
        for _ in range(MANY_OF_THE_GUESTS // BATCH):
            rig.linux.sh(
                f"for number in $(seq {BATCH}); do "
                "said=$(echo $number | host socat -t 100 - VSOCK-CONNECT:2:5007); "
                "test $said = $number || exit 1; done"
            )
    os.unlink(f"{path}_5007")
    assert len(counts) == MANY_OF_THE_GUESTS
    wait_until(lambda: not rig.vsock.connections)
    now = rig.vsock.facts()["opened"]
    assert isinstance(now, int)
    # The first call may have come before the guest listened.
    assert now - opened >= MANY + MANY_OF_THE_GUESTS

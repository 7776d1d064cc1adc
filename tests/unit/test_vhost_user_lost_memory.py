"""A frontend that takes memory away which it had given: its connection ends, and nothing else.

An access of ours raises SIGBUS then, and one of the kernel's fails with EFAULT.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.net.rig import MAC, FakeLink
from tests.unit.vhost_user import Driver, Served, readable
from tests.unit.vhost_user_peer import (
    DATA,
    GUEST_ADDRESS,
    HEADER,
    IN,
    OUT,
    STATUS,
    Bench,
    Peer,
    logged,
    shrinkable_memory,
)
from virtiopy.devices.console import Console
from virtiopy.devices.net import Net
from virtiopy.devices.rng import Rng
from virtiopy.host.stream import FileStream
from virtiopy.memory import GuestMemory
from virtiopy.vhost.user.messages import Message, Request, RingState
from virtiopy.virtqueue.buffers import Buffers
from virtiopy.virtqueue.driver import Piece

TAKEN_AWAY = (
    logging.ERROR,
    "the frontend was disconnected: it took memory away that it had given",
)
IOERR = 1


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as bench:
        yield bench


def shrink_memory(peer: Peer, end: int) -> None:
    """Leave only what lies before this guest physical address."""
    os.ftruncate(peer.memory_fd, end - GUEST_ADDRESS)


@pytest.mark.parametrize("end", [GUEST_ADDRESS, HEADER, STATUS], ids=["ring", "header", "status"])
@pytest.mark.parametrize("kind", [IN, OUT])
def test_the_ring_or_what_is_read_and_written_of_a_request(
    bench: Bench, end: int, kind: int
) -> None:
    with bench.peer() as peer:
        peer.start()
        peer.make_available(kind)
        shrink_memory(peer, end)
        peer.notify()
        assert bench.end() == TAKEN_AWAY


def test_a_buffer_that_the_kernel_writes_to(bench: Bench) -> None:
    with bench.peer() as peer:
        peer.start()
        peer.make_available(IN)
        shrink_memory(peer, DATA)
        peer.notify()
        assert bench.end() == TAKEN_AWAY


def test_a_buffer_that_the_kernel_reads_from(bench: Bench) -> None:
    """The request fails; what is there of the memory is served on."""
    with bench.peer() as peer:
        peer.start()
        peer.make_available(OUT)
        shrink_memory(peer, DATA)
        peer.notify()
        peer.wait_used()
        assert peer.memory.read(STATUS, 1)[0] == IOERR
    assert bench.end()[0] == logging.INFO


def test_an_indirect_table(bench: Bench) -> None:
    with bench.peer() as peer:
        peer.start()
        pieces = [Piece(HEADER, 16), Piece(DATA, 512, True), Piece(STATUS, 1, True)]
        peer.queue.add(pieces, direct=0, table=DATA + 0x1_0000)
        shrink_memory(peer, DATA + 0x1_0000)
        peer.notify()
        assert bench.end() == TAKEN_AWAY


def test_the_dirty_log(bench: Bench) -> None:
    with bench.peer() as peer:
        peer.start()
        peer.make_available()
        os.ftruncate(peer.log_fd, 0)
        peer.notify()
        assert bench.end() == TAKEN_AWAY


def test_the_area_of_what_is_in_flight(bench: Bench) -> None:
    with bench.peer() as peer:
        peer.start()
        peer.make_available()
        os.ftruncate(peer.inflight_fd, 0)
        peer.notify()
        assert bench.end() == TAKEN_AWAY


@pytest.mark.parametrize("what", ["memory_fd", "log_fd", "inflight_fd"])
def test_before_anything_is_started(bench: Bench, what: str) -> None:
    with bench.peer() as peer:
        peer.make_available()
        peer.notify()
        peer.say(*peer.session_up_to(Request.SET_VRING_ADDR))
        # All that was said is done once this is answered.
        peer.connection.send(Message(Request.GET_STATUS))
        while (answer := peer.connection.receive()) and answer.request != Request.GET_STATUS:
            for fd in answer.fds:
                os.close(fd)
        session = peer.session_up_to(Request.GET_STATUS)
        os.ftruncate(getattr(peer, what), 0)
        peer.say(*session[len(peer.session_up_to(Request.SET_VRING_ADDR)) :])
        assert bench.end()[0] == logging.ERROR


def test_while_it_leaves(bench: Bench) -> None:
    with bench.peer() as peer:
        peer.start()
        peer.make_available()
        peer.notify()
        shrink_memory(peer, GUEST_ADDRESS)
        peer.say(Message(Request.GET_VRING_BASE, RingState(0, 0).encode()))
        peer.connection.socket.shutdown(socket.SHUT_WR)
        bench.end()


def test_memory_that_is_gone_before_it_is_mapped(bench: Bench) -> None:
    with bench.peer() as peer:
        peer.say(*peer.session_up_to(Request.SET_MEM_TABLE))
        table = peer.table(peer.region())
        os.ftruncate(peer.memory_fd, 0)
        peer.say(table)
        assert "of a file of 0 bytes" in bench.end()[1]


# Other devices


class SocketLink(FakeLink):
    """A link whose frames pass by a socket, so that the kernel copies them."""

    def __init__(self) -> None:
        super().__init__()
        self.host, self.ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self._state = os.eventfd(0, os.EFD_CLOEXEC)

    def fileno(self, pair: int) -> int:
        return self.ours.fileno()

    def state_fileno(self) -> int:
        return self._state

    def read(self, pair: int, buffers: Buffers) -> int:
        return os.readv(self.ours.fileno(), buffers)

    def write(self, pair: int, buffers: object) -> None:
        os.writev(self.ours.fileno(), buffers)  # type: ignore[arg-type]

    def close(self) -> None:
        self.host.close()
        self.ours.close()
        os.close(self._state)


#: Where buffers are that go: behind everything else.
GONE = 2 << 20


def lose(driver: Driver) -> None:
    os.ftruncate(driver.memory.regions[0].fd, GONE)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with shrinkable_memory() as memory:
        yield memory


FRAME = bytes(12) + b"\xff" * 6 + bytes(60)


def test_a_network_devices_receive_buffer(tmp_path: Path, memory: GuestMemory) -> None:
    link = SocketLink()
    with logged() as log, Served(Net(link, mac=MAC), tmp_path / "net.sock") as served:
        with Driver(served.connect(), queue_count=2, memory=memory) as driver:
            driver.start()
            driver.queues[0].driver.add([Piece(GONE, 2048, writable=True)])
            driver.queues[0].notify()
            lose(driver)
            link.host.send(FRAME)
            log.wait_for_end(1)
            assert log.ends() == [TAKEN_AWAY]
        # The link was not to blame.
        with Driver(served.connect(), queue_count=2) as driver:
            driver.start()
            room = driver.piece(2048)
            driver.queues[0].driver.add([room])
            driver.queues[0].notify()
            link.host.send(FRAME)
            assert driver.queues[0].wait()[0].length == len(FRAME)
            driver.queues[1].driver.add([driver.piece(FRAME)])
            driver.queues[1].notify()
            driver.queues[1].wait()
            assert len(link.host.recv(4096)) == len(FRAME)


def test_a_network_devices_transmit_buffer(tmp_path: Path, memory: GuestMemory) -> None:
    link = SocketLink()
    with logged() as log, Served(Net(link, mac=MAC), tmp_path / "net.sock") as served:
        with Driver(served.connect(), queue_count=2, memory=memory) as driver:
            driver.start()
            header = driver.piece(bytes(12))
            driver.queues[1].driver.add([header, Piece(GONE, 100)])
            lose(driver)
            driver.queues[1].notify()
            driver.queues[1].wait()
        log.wait_for_end(1)
        with Driver(served.connect(), queue_count=2) as driver:
            driver.start()
            driver.queues[1].driver.add([driver.piece(FRAME)])
            driver.queues[1].notify()
            assert len(link.host.recv(4096)) == len(FRAME)


def console(folder: Path) -> Console:
    return Console(FileStream(folder / "out"))


def entropy(folder: Path) -> Rng:
    return Rng()


@pytest.mark.parametrize(
    ("make", "queue", "writable"), [(console, 1, False), (entropy, 0, True)], ids=["console", "rng"]
)
def test_a_buffer_of_a_console_or_an_entropy_device(
    tmp_path: Path,
    memory: GuestMemory,
    make: Callable[[Path], Console | Rng],
    queue: int,
    writable: bool,
) -> None:
    with logged() as log, Served(make(tmp_path), tmp_path / "device.sock") as served:
        with Driver(served.connect(), queue_count=queue + 1, memory=memory) as driver:
            driver.start()
            driver.queues[queue].driver.add([Piece(GONE, 64, writable)])
            lose(driver)
            driver.queues[queue].notify()
            log.wait_for_end(1)
            assert log.ends() == [TAKEN_AWAY]
        with Driver(served.connect(), queue_count=queue + 1) as driver:
            driver.start()
            piece = driver.piece(64) if writable else driver.piece(b"still there\n")
            driver.queues[queue].driver.add([piece])
            driver.queues[queue].notify()
            readable(driver.queues[queue].call)
            assert len(driver.queues[queue].wait()) == 1
    if queue == 1:
        assert (tmp_path / "out").read_bytes() == b"still there\n"

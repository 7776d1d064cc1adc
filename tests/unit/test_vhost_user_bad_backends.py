"""A backend that answers nonsense, nothing, or goes, at any point of its frontend's session.

At start-up that is one sentence for the user; later on another backend is looked for. Nothing is
left behind either way.
"""

import contextlib
import errno
import gc
import itertools
import os
import resource
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.unit.vhost_user import FEATURES
from tests.unit.vhost_user_peer import Holdings, full_socket
from virtiopy import eventfds
from virtiopy.closing import Closing
from virtiopy.errors import ConfigError, PeerError
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature, feature_mask, has_feature
from virtiopy.statements.index import load_index
from virtiopy.vhost.user import device as device_module
from virtiopy.vhost.user import frontend as frontend_module
from virtiopy.vhost.user.connection import Connection, DisconnectedError, close_all
from virtiopy.vhost.user.device import VhostUserDevice, open_blk, open_net
from virtiopy.vhost.user.frontend import WANTED, connect
from virtiopy.vhost.user.messages import (
    PAYLOAD_MAX,
    VHOST_USER_F_PROTOCOL_FEATURES,
    BackendRequest,
    ConfigAccess,
    Flag,
    InflightArea,
    Message,
    Request,
    RingState,
    to_u64,
    u64,
)
from virtiopy.virtqueue.driver import Allocator, DriverQueue
from virtiopy.virtqueue.queue import Virtqueue
from virtiopy.virtqueue.split import SplitQueue

#: The messages until a device is there, and those until its driver's ring is worked.
STARTING, RUNNING = 7, 23

OFFERED = FEATURES | 1 << VHOST_USER_F_PROTOCOL_FEATURES

Misbehave = Callable[["FakeBackend", Connection, Message], None]


class FakeBackend(Closing):
    """A block device's backend, which does what it should, but for what is in `faults`.

    For each connection that says at which message, counted from 0, it does something else instead,
    and what. Connections beyond are good ones.
    """

    def __init__(self, path: Path, *faults: tuple[int, Misbehave], features: int = OFFERED) -> None:
        self.features = features
        #: The first bytes of the configuration space; the others are zeroes.
        self.config = b""
        #: Whether a good connection has come to a ring that is worked.
        self.works = threading.Event()
        #: Whether it holds an answer back, and may go on.
        self.holds, self.release = threading.Event(), threading.Event()
        self.channel: socket.socket | None = None
        #: What it was asked, in all connections.
        self.asked: list[Message] = []
        self._faults = iter(faults)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self.release.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            with Connection(stream) as connection, contextlib.suppress(PeerError):
                self._serve(connection, next(self._faults, None))
            if self.channel is not None:
                self.channel.close()
                self.channel = None

    def _serve(self, connection: Connection, fault: tuple[int, Misbehave] | None) -> None:
        for index in itertools.count():
            message = connection.receive()
            assert message is not None
            if message.request == Request.SET_BACKEND_REQ_FD:
                self.channel = socket.socket(fileno=message.fds.pop())
            close_all(message.fds)
            self.asked.append(message)
            if fault is not None and fault[0] == index:
                fault[1](self, connection, message)
                return
            answer = self.answer(message)
            if answer is not None:
                connection.send(answer)
                close_all(answer.fds)
            if message.request == Request.SET_STATUS and to_u64(message) & DeviceStatus.DRIVER_OK:
                self.works.set()

    def answer(self, message: Message) -> Message | None:
        """Answer as one should."""
        fds = []
        match message.request:
            case Request.GET_FEATURES:
                payload = u64(self.features)
            case Request.GET_PROTOCOL_FEATURES:
                payload = u64(WANTED)
            case Request.GET_QUEUE_NUM:
                payload = u64(1)
            case Request.GET_CONFIG:
                size = len(message.payload) - 12
                payload = ConfigAccess(0, self.config[:size].ljust(size, b"\0")).encode()
            case Request.GET_INFLIGHT_FD:
                payload = InflightArea(4096, 0, 1, 128).encode()
                fds = [os.memfd_create("in flight")]
            case Request.GET_VRING_BASE:
                payload = RingState(0, 0).encode()
            case _ if message.needs_reply:
                payload = u64(0)
            case _:
                return None
        return Message(message.request, payload, Flag.REPLY, fds)

    def stay(self, connection: Connection) -> None:
        """Say nothing more, and wait for the other end to go."""
        with contextlib.suppress(DisconnectedError):
            while (message := connection.receive()) is not None:
                close_all(message.fds)


# What it may do instead


def goes(backend: FakeBackend, connection: Connection, message: Message) -> None:
    """Close the connection, which is done by whoever called."""


def says_nothing(backend: FakeBackend, connection: Connection, message: Message) -> None:
    backend.stay(connection)


def says(data: Callable[[Message], bytes]) -> Misbehave:
    def misbehave(backend: FakeBackend, connection: Connection, message: Message) -> None:
        connection.socket.sendall(data(message))
        backend.stay(connection)

    return misbehave


def header(request: int, flags: int, size: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in (request, flags, size))


FAULTS: dict[str, Misbehave] = {
    "goes": goes,
    "says nothing": says_nothing,
    "says half of it": says(lambda it: header(it.request, 5, 8) + bytes(7)),
    "says nonsense": says(lambda it: b"\xff" * 64),
    "says zeroes": says(lambda it: bytes(64)),
    "answers another request": says(lambda it: header(Request.SEND_RARP, 5, 8) + bytes(8)),
    "does not call it a reply": says(lambda it: header(it.request, 1, 8) + bytes(8)),
    "says too much": says(lambda it: header(it.request, 5, PAYLOAD_MAX + 1)),
    "says too little": says(lambda it: header(it.request, 5, 1) + b"\1"),
    "says nothing in an answer": says(lambda it: header(it.request, 5, 0)),
    "refuses": says(lambda it: header(it.request, 5, 8) + u64(1)),
}


@pytest.fixture(autouse=True)
def _short_answer_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend_module, "ANSWER_TIME", 0.3)


@pytest.fixture(autouse=True, scope="module")
def _the_signal_is_there() -> None:
    """Make what a process has once, and keeps: the file that signals are written from."""
    eventfd = os.eventfd(0)
    eventfds.signal(eventfd)
    os.close(eventfd)


@pytest.fixture(autouse=True)
def _what_others_left_stays() -> Iterator[None]:
    """Collect no garbage, which may hold files: what a test finds open is there at its end."""
    gc.disable()
    yield
    gc.enable()


def assert_one_sentence(error: ConfigError) -> None:
    assert str(error).startswith("The vhost-user backend ")
    assert str(error).endswith(".")
    assert "\n" not in str(error)


# At start-up


@pytest.mark.parametrize("at", range(STARTING))
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_device_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, fault: Misbehave, at: int
) -> None:
    before = Holdings.now()
    path = tmp_path / "blk.sock"
    # What has no acknowledgement yet, SET_OWNER and SET_PROTOCOL_FEATURES, cannot be refused: what
    # is said instead is taken for the next answer. So is the rest.
    with FakeBackend(path, (at, fault)):
        if fault is FAULTS["refuses"] and at == 6:
            # A number of queues is a number of queues.
            open_blk(path).close()
        else:
            with pytest.raises(ConfigError) as raised:
                open_blk(path)
            assert_one_sentence(raised.value)
    assert Holdings.now() == before


def offered_on(path: Path, device: VhostUserDevice) -> set[str]:
    """Name the device type's feature bits that go on to a driver."""
    prefix = "VIRTIO_BLK_F_" if "blk" in path.name else "VIRTIO_NET_F_"
    names = {name: bit for name, bit in load_index().features.items() if name.startswith(prefix)}
    return {name for name, bit in names.items() if has_feature(device.features, bit)}


def test_a_disk_offers_no_field_beyond_its_configuration_space(tmp_path: Path) -> None:
    path = tmp_path / "blk.sock"
    with FakeBackend(path, features=(1 << 64) - 1), contextlib.closing(open_blk(path)) as device:
        names = offered_on(path, device)
        last = "VIRTIO_BLK_F_WRITE_ZEROES"
        assert last in names
        assert not names & {"VIRTIO_BLK_F_SECURE_ERASE", "VIRTIO_BLK_F_ZONED"}
        assert not any(device.features >> bit & 1 for bit in range(24, 50))


def test_a_net_offers_nothing_that_takes_a_control_queue(tmp_path: Path) -> None:
    path = tmp_path / "net.sock"
    with (
        FakeBackend(path, features=(1 << 64) - 1),
        contextlib.closing(open_net(path, b"\2\0\0\0\0\1")) as device,
    ):
        names = offered_on(path, device)
        assert {"VIRTIO_NET_F_GUEST_USO4", "VIRTIO_NET_F_GUEST_USO6"} <= names
        taking = (
            "CTRL",
            "RSS",
            "HASH",
            "COAL",
            "MQ",
            "ANNOUNCE",
            "STATUS",
            "MTU",
            "SPEED",
            "STATS",
        )
        assert [name for name in names if any(word in name for word in taking)] == []


def test_a_net_without_an_address_offers_none(tmp_path: Path) -> None:
    path = tmp_path / "net.sock"
    with (
        FakeBackend(path, features=(1 << 64) - 1),
        contextlib.closing(open_net(path, None)) as device,
    ):
        assert "VIRTIO_NET_F_MAC" not in offered_on(path, device)


def test_a_backend_that_offers_too_little_is_one_sentence(tmp_path: Path) -> None:
    before = Holdings.now()
    features = OFFERED & ~(1 << Feature.VIRTIO_F_VERSION_1)
    with FakeBackend(tmp_path / "blk.sock", features=features):
        with pytest.raises(ConfigError, match="VIRTIO_F_VERSION_1") as raised:
            open_blk(tmp_path / "blk.sock")
        assert_one_sentence(raised.value)
    assert Holdings.now() == before


def test_descriptors_that_nobody_asked_for_are_closed(tmp_path: Path) -> None:
    def misbehave(backend: FakeBackend, connection: Connection, message: Message) -> None:
        reader, writer = os.pipe()
        answer = Message(message.request, u64(OFFERED), Flag.REPLY, [reader, writer])
        connection.send(answer)
        close_all(answer.fds)
        backend.stay(connection)

    before = Holdings.now()
    with (
        FakeBackend(tmp_path / "blk.sock", (0, misbehave)),
        pytest.raises(ConfigError, match="2 file descriptors"),
    ):
        open_blk(tmp_path / "blk.sock")
    assert Holdings.now() == before


def test_a_backend_that_accepts_nobody_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "blk.sock"
    with full_socket(path), pytest.raises(ConfigError) as failure:
        open_blk(path)
    assert_one_sentence(failure.value)


# Later on


class Notifiers:
    """A queue's eventfds."""

    def __init__(self) -> None:
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def delegate(self) -> None:
        pass

    def reclaim(self) -> None:
        pass


class Vm(Closing):
    """What a device of somebody else's has around it: memory, a driver's ring, a loop."""

    gate = None

    def __init__(self, path: Path) -> None:
        self.memory = GuestMemory.allocate(1 << 20)
        self.driver = DriverQueue(self.memory, 16, Allocator(0, 1 << 20))
        self._notifiers = Notifiers()
        self.config_changes = threading.Event()
        self.broken: list[str] = []
        self.loop = EventLoop("vm")
        self.device = open_blk(path)
        self.loop.start()
        with self.device.lock:
            self.device.attach(self, self.loop, may_block=False)

    def start(self, features: int = 0) -> None:
        """Do what the transport does at FEATURES_OK and DRIVER_OK, with these features as well."""
        with self.device.lock:
            self.device.negotiated(FEATURES | features)
            self.device.activate({0: SplitQueue(self.memory, 16, self.driver.areas)})

    def close(self) -> None:
        self.loop.call(self.device.close, "close")
        self.loop.close()
        self.memory.close()
        os.close(self._notifiers.kick)
        os.close(self._notifiers.call)
        if self.loop.failure is not None:
            raise self.loop.failure

    def turn(self) -> None:
        """Let the loop go round."""
        for _ in range(2):
            self.loop.call(lambda: None, "turn")

    # DeviceHost

    def used_buffer_notification(self, queue: Virtqueue) -> None:
        pass

    def config_changed(self, *, notify: bool = True) -> None:
        self.config_changes.set()

    def needs_reset(self, reason: str) -> None:
        self.broken.append(reason)

    def notifiers(self, index: int) -> Notifiers:
        return self._notifiers


def assert_works(vm: Vm, backend: FakeBackend, reconnects: int) -> None:
    assert backend.works.wait(PATIENCE), "no backend works"
    vm.turn()
    with vm.device.lock:
        assert vm.device.facts() == {"backend": "connected", "reconnects": reconnects}


def test_a_backend_is_told_the_device_status_and_driver_ok_when_its_rings_are_set_up(
    tmp_path: Path,
) -> None:
    """DPDK's net_vhost and Open vSwitch start no ring before."""
    path = tmp_path / "blk.sock"
    with FakeBackend(path) as backend, Vm(path) as vm:
        vm.start()
        assert_works(vm, backend, 0)
    told = [
        to_u64(message) if message.request == Request.SET_STATUS else message.request
        for message in backend.asked
        if message.request in (Request.SET_STATUS, Request.SET_MEM_TABLE, Request.SET_VRING_ENABLE)
    ]
    assert told == [0x03, 0x0B, Request.SET_MEM_TABLE, Request.SET_VRING_ENABLE, 0x0F]


def test_a_backend_is_told_of_no_feature_that_it_does_not_offer(tmp_path: Path) -> None:
    path = tmp_path / "blk.sock"
    with FakeBackend(path) as backend, Vm(path) as vm:
        vm.start(feature_mask([Feature.VIRTIO_F_RING_RESET]))
        assert_works(vm, backend, 0)
    told = [to_u64(one) for one in backend.asked if one.request == Request.SET_FEATURES]
    assert told
    assert [features & ~backend.features for features in told] == [0] * len(told)


def test_a_backend_gets_its_own_in_flight_area_back_before_a_ring_starts(tmp_path: Path) -> None:
    """libvhost-user has it only then."""
    path = tmp_path / "blk.sock"
    with FakeBackend(path) as backend, Vm(path) as vm:
        vm.start()
        assert_works(vm, backend, 0)
    asked = [message.request for message in backend.asked]
    begin = asked.index(Request.GET_INFLIGHT_FD)
    assert asked[begin + 1] == Request.SET_INFLIGHT_FD
    assert asked.index(Request.SET_VRING_NUM) > begin
    assert InflightArea.decode(backend.asked[begin + 1]) == InflightArea(4096, 0, 1, 128)


LATER = ["goes", "says nothing", "says nonsense", "answers another request", "refuses"]


@pytest.mark.parametrize("at", range(STARTING, RUNNING))
@pytest.mark.parametrize("fault", LATER)
def test_another_backend_is_looked_for(tmp_path: Path, fault: str, at: int) -> None:
    before = Holdings.now()
    path = tmp_path / "blk.sock"
    with FakeBackend(path, (at, FAULTS[fault])) as backend, Vm(path) as vm:
        vm.start()
        assert_works(vm, backend, 1)
    assert Holdings.now() == before


@pytest.mark.parametrize("at", range(RUNNING))
def test_a_backend_that_comes_and_goes_at_any_point_is_one_of_many(tmp_path: Path, at: int) -> None:
    path = tmp_path / "blk.sock"
    with FakeBackend(path, (RUNNING - 1, goes), (at, goes)) as backend, Vm(path) as vm:
        vm.start()
        # One that has not come as far as to be taken does not count.
        assert backend.works.wait(PATIENCE)
        vm.turn()
        assert vm.device.facts()["backend"] == "connected"


def test_the_loop_goes_on_while_a_backend_that_says_nothing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def holds(backend: FakeBackend, connection: Connection, message: Message) -> None:
        backend.holds.set()
        backend.release.wait(PATIENCE)

    before = Holdings.now()
    path = tmp_path / "blk.sock"
    with FakeBackend(path, (RUNNING - 1, goes), (0, holds)) as backend, Vm(path) as vm:
        monkeypatch.setattr(frontend_module, "ANSWER_TIME", PATIENCE)
        vm.start()
        assert backend.holds.wait(PATIENCE)
        vm.turn()
        assert not backend.release.is_set()
        backend.release.set()
        assert_works(vm, backend, 1)
    assert Holdings.now() == before


def test_a_vm_ends_while_a_backend_that_says_nothing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Holdings.now()
    path = tmp_path / "blk.sock"

    def holds(backend: FakeBackend, connection: Connection, message: Message) -> None:
        backend.holds.set()
        backend.stay(connection)

    with FakeBackend(path, (RUNNING - 1, goes), (0, holds)) as backend:
        with Vm(path) as vm:
            # Nobody waits as long as that.
            monkeypatch.setattr(frontend_module, "ANSWER_TIME", 1000)
            vm.start()
            assert backend.holds.wait(PATIENCE)
        assert not backend.release.is_set()
    assert Holdings.now() == before


def test_one_with_fewer_features_is_left(tmp_path: Path) -> None:
    path = tmp_path / "blk.sock"

    with FakeBackend(path, (RUNNING - 1, goes)) as backend, Vm(path) as vm:
        backend.features = OFFERED & ~(1 << Feature.VIRTIO_F_EVENT_IDX)
        vm.start()
        with vm.device.lock:
            assert vm.device.facts()["backend"] == "gone"
        assert not backend.works.is_set()
        backend.features = OFFERED
        assert_works(vm, backend, 1)


@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_another_backend_is_looked_for_again_when_no_file_could_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    class Sockets:
        """The module, but for one call that fails once, when it is armed."""

        armed = False

        def __getattr__(self, name: str) -> object:
            if name == call and self.armed:
                self.armed = False
                return fails
            return getattr(socket, name)

    def fails(*arguments: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = Holdings.now()
    path = tmp_path / "blk.sock"
    sockets = Sockets()
    with FakeBackend(path, (RUNNING - 1, goes)) as backend, Vm(path) as vm:
        monkeypatch.setattr(frontend_module, "socket", sockets)
        sockets.armed = True
        vm.start()
        assert_works(vm, backend, 1)
        assert not sockets.armed
    assert Holdings.now() == before


def test_it_is_missed_by_a_process_with_many_files_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that select(2) does not take.
    fd = 1500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, fd + 1), hard))

    def connect_high(path: Path) -> socket.socket:
        with connect(path) as stream:
            return socket.socket(fileno=os.dup2(stream.fileno(), fd, inheritable=False))

    monkeypatch.setattr(device_module, "connect", connect_high)
    path = tmp_path / "blk.sock"
    try:
        with FakeBackend(path) as backend, Vm(path) as vm:
            vm.start()
            assert_works(vm, backend, 0)
            backend.works.clear()
            # As if it had closed its end.
            with socket.socket(fileno=os.dup(fd)) as end:
                end.shutdown(socket.SHUT_RD)
            assert_works(vm, backend, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("capacity", [b"", b"\7"], ids=["the same", "another"])
def test_the_driver_is_told_of_another_backends_configuration(
    tmp_path: Path, capacity: bytes
) -> None:
    def goes_for_another(backend: FakeBackend, connection: Connection, message: Message) -> None:
        backend.config = capacity

    path = tmp_path / "blk.sock"
    with FakeBackend(path, (RUNNING - 1, goes_for_another)) as backend, Vm(path) as vm:
        vm.start()
        assert_works(vm, backend, 1)
        assert vm.device.config_space().startswith(capacity)
        assert vm.config_changes.is_set() == bool(capacity)


@pytest.mark.parametrize(
    "data",
    [
        header(BackendRequest.CONFIG_CHANGE_MSG, 1, 0)[:-1],
        header(BackendRequest.IOTLB_MSG, 1, 0),
        header(99, 1 | Flag.NEED_REPLY, 0),
    ],
    ids=["half a message", "a request that is none", "one to be answered"],
)
def test_what_it_says_by_itself_holds_nobody_up(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "blk.sock"
    with FakeBackend(path) as backend, Vm(path) as vm:
        vm.start()
        assert_works(vm, backend, 0)
        assert backend.channel is not None
        backend.channel.sendall(data)
        vm.turn()
        assert not vm.config_changes.is_set()
        assert_works(vm, backend, 0)


def test_nonsense_that_it_says_by_itself_ends_its_session(tmp_path: Path) -> None:
    path = tmp_path / "blk.sock"
    with FakeBackend(path) as backend, Vm(path) as vm:
        vm.start()
        assert_works(vm, backend, 0)
        backend.works.clear()
        assert backend.channel is not None
        backend.channel.sendall(b"\xff" * 64)
        assert_works(vm, backend, 1)


def test_an_error_that_it_takes_back_is_an_error_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "blk.sock"
    with FakeBackend(path) as backend, Vm(path) as vm:
        vm.start()
        assert_works(vm, backend, 0)
        (error,) = vm.device._errors

        def write_and_read_again() -> None:
            os.eventfd_write(error, 1)
            vm.device._error_reader(0, error)(select.EPOLLIN)
            vm.device._error_reader(0, error)(select.EPOLLIN)

        vm.loop.call(write_and_read_again, "error")
        assert len(vm.broken) == 2


def test_it_cannot_take_the_guests_memory_away() -> None:
    with GuestMemory.allocate(1 << 20) as memory:
        fd = memory.regions[0].fd
        for size in (0, 2 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)

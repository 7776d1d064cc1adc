"""The VM's side of a socket device that a backend serves: which rings are whose, and its events."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.unit.test_control import NoAccelerator
from tests.unit.test_vhost_user_bad_backends import OFFERED, FakeBackend, goes
from tests.unit.vsock_bench import CID, EVENT, RX, TX
from virtiopy.accel.base import Accelerator
from virtiopy.cli.attachments import build, mode_of, parse
from virtiopy.devices.registry import entry_named
from virtiopy.devices.vsock.features import VsockFeature
from virtiopy.errors import ConfigError
from virtiopy.memory import GuestMemory
from virtiopy.spec import feature_mask
from virtiopy.transport.driver import MmioDriver
from virtiopy.vhost.user.messages import (
    Flag,
    Message,
    ProtocolFeature,
    Request,
    RingState,
    to_u64,
)
from virtiopy.vhost.user.vsock import VhostUserVsock, open_vsock
from virtiopy.virtqueue.driver import Allocator, Piece
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode

MEMORY = 1 << 20
FEATURES = OFFERED | feature_mask(VsockFeature)


class VsockBackend(FakeBackend):
    """Serves a socket device of the guest with context ID CID."""

    def __init__(self, path: Path, *faults: tuple[int, object]) -> None:
        super().__init__(path, *faults, features=FEATURES)  # type: ignore[arg-type]
        self.config = CID.to_bytes(8, "little")

    def answer(self, message: Message) -> Message | None:
        if message.request == Request.GET_VRING_BASE:
            ring = RingState.decode(message).index
            return Message(message.request, RingState(ring, 0).encode(), Flag.REPLY)
        return super().answer(message)

    def rings(self, request: Request) -> list[int]:
        """Return the rings that messages of this kind were about."""
        return [message.payload[0] for message in self.asked if message.request == request]


class Rig:
    """A machine with the device, and its driver."""

    def __init__(self, path: Path) -> None:
        self.memory = GuestMemory.allocate(MEMORY)
        accelerator: Accelerator = NoAccelerator()  # type: ignore[assignment]
        self.machine = Machine(self.memory, accelerator, console=lambda data: None)
        self.device = open_vsock(path)
        self.slot = self.machine.add_device(self.device, "vsock0", IoMode.VHOST_USER)
        self.driver = MmioDriver(self.slot.transport, self.memory, Allocator(0x1000, MEMORY))

    def close(self) -> None:
        self.machine.close()
        self.memory.close()

    def supply_event(self) -> int:
        """Give the device a buffer for an event; returns its address."""
        address = self.driver.allocator.take(4)
        self.memory.write(address, b"\xee" * 4)
        self.driver.queues[EVENT].add([Piece(address, 4, writable=True)])
        with self.device.lock:
            self.device.handle(self.device.queues[EVENT])
        return address


@contextlib.contextmanager
def open_rig(path: Path) -> Iterator[Rig]:
    rig = Rig(path)
    try:
        yield rig
    finally:
        rig.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vsock.sock"


def test_the_context_id_and_the_features_are_the_backends(path: Path) -> None:
    with VsockBackend(path), contextlib.closing(open_vsock(path)) as device:
        assert device.config_space() == CID.to_bytes(8, "little")
        assert device.features == feature_mask(VsockFeature)
        assert device.facts()["guest_cid"] == CID


def test_the_backend_has_rx_and_tx_and_no_event_queue(path: Path) -> None:
    with VsockBackend(path) as backend, open_rig(path) as rig:
        rig.driver.start()
        assert backend.works.wait(PATIENCE)
        assert sorted(backend.rings(Request.SET_VRING_KICK)) == [RX, TX]
        rig.driver.reset()
        assert sorted(backend.rings(Request.GET_VRING_BASE)) == [RX, TX]
    kicks = [to_u64(one) & 0xFF for one in backend.asked if one.request == Request.SET_VRING_CALL]
    assert EVENT not in kicks


def test_an_event_buffer_stays_with_the_device_while_all_is_well(path: Path) -> None:
    with VsockBackend(path) as backend, open_rig(path) as rig:
        rig.driver.start()
        assert backend.works.wait(PATIENCE)
        rig.supply_event()
        assert rig.driver.queues[EVENT].take_all_used() == []


def test_the_driver_is_told_that_its_connections_are_over_when_another_backend_takes_over(
    path: Path,
) -> None:
    # The first goes when it is given a ring's kick.
    at = 20
    with VsockBackend(path, (at, goes)) as backend, open_rig(path) as rig:
        rig.machine.loop.start()
        rig.driver.start()
        assert backend.works.wait(PATIENCE)
        # The loop has gone on with the new one once this is done there.
        for _ in range(2):
            rig.machine.loop.call(lambda: None, "turn")
        address = rig.supply_event()
        [used] = rig.driver.queues[EVENT].take_all_used()
        assert used.length == 4
        assert rig.memory.read(address, 4) == bytes(4)
        assert rig.device.reconnects == 1


def test_a_backend_without_a_configuration_space_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = "tests.unit.test_vhost_user_bad_backends.WANTED"
    monkeypatch.setattr(wanted, 1 << ProtocolFeature.REPLY_ACK)
    with VsockBackend(path), pytest.raises(ConfigError, match="no context ID to tell"):
        open_vsock(path)


def test_the_command_lines_device_is_in_the_one_mode_that_there_is(path: Path) -> None:
    entry = entry_named("vsock")
    options = parse(entry, f"vhost-user={path}")
    assert mode_of(entry, options, "trapped").mode == "vhost-user"
    with VsockBackend(path):
        device = build(entry, options)
        assert isinstance(device, VhostUserVsock)
        device.close()

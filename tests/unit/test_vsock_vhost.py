"""A socket device whose rings vhost-vsock works, on a model of the kernel's ioctls."""

import errno
import os
from collections.abc import Iterator

import pytest

from tests.openfiles import open_files
from tests.unit.test_control import NoAccelerator
from tests.unit.test_vhost_kernel import FakeKernel
from tests.unit.vsock_bench import CID, EVENT, RX, TX
from virtiopy.accel.base import Accelerator
from virtiopy.devices.vsock import SocketType, Vsock, VsockFeature
from virtiopy.devices.vsock.delegation import GuestBacking
from virtiopy.errors import ConfigError, HostError
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature, feature_mask
from virtiopy.transport.driver import MmioDriver
from virtiopy.vhost.kernel.vsock import VhostPackets, VhostVsock
from virtiopy.vhost.kernel.workers import open_vhost
from virtiopy.virtqueue.driver import Allocator, Piece
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode

MEMORY = 1 << 20
SEQPACKET = VsockFeature.VIRTIO_VSOCK_F_SEQPACKET
#: What Linux 6.1's vhost-vsock has of ours.
FEATURES = feature_mask([SEQPACKET, Feature.VIRTIO_F_VERSION_1, Feature.VIRTIO_F_EVENT_IDX])
RUN, CID_SET = ("VSOCK_SET_RUNNING",), ("VSOCK_SET_GUEST_CID",)


class Rig:
    """A machine with a socket device, and its driver's side."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mode: IoMode = IoMode.VHOST) -> None:
        self.kernel = FakeKernel(features=FEATURES, bases={RX: 0, TX: 0})
        monkeypatch.setattr(
            "virtiopy.vhost.kernel.vsock.VhostVsock",
            lambda: VhostVsock("/dev/null", ioctl=self.kernel.ioctl),
        )
        self.memory = GuestMemory.allocate(MEMORY)
        accelerator: Accelerator = NoAccelerator()  # type: ignore[assignment]
        self.machine = Machine(self.memory, accelerator, console=lambda data: None)
        self.device = Vsock(CID)
        self.slot = self.machine.add_device(self.device, "vsock0", mode)
        self.driver = MmioDriver(self.slot.transport, self.memory, Allocator(0x1000, MEMORY))

    def close(self) -> None:
        self.machine.close()
        self.memory.close()

    def take_calls(self) -> list[tuple[object, ...]]:
        calls, self.kernel.calls = self.kernel.calls, []
        return calls

    def is_delegated(self) -> bool:
        return bool(self.device.facts()["delegated"])

    def event(self) -> bytes:
        """Give the device a buffer for an event; returns what is in it."""
        address = self.driver.allocator.take(4)
        self.memory.write(address, b"\xee" * 4)
        self.driver.queues[EVENT].add([Piece(address, 4, writable=True)])
        self.device.handle(self.device.queues[EVENT])
        return self.memory.read(address, 4)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig(monkeypatch)
    yield rig
    rig.close()


def test_all_files_are_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    open_at_the_end = []
    # What the first of a process opens for good is open before the second.
    for _ in range(2):
        rig = Rig(monkeypatch)
        rig.driver.start()
        rig.close()
        open_at_the_end.append(open_files())
    assert open_at_the_end[0] == open_at_the_end[1]


def test_the_kernel_has_both_rings_once_the_driver_has_set_them_up(rig: Rig) -> None:
    assert rig.take_calls() == [("SET_OWNER",), CID_SET]
    rig.driver.start()
    calls = rig.take_calls()
    assert calls[0] == ("SET_FEATURES", FEATURES)
    assert calls[1][0] == "SET_MEM_TABLE"
    rings = [call[1] for call in calls if call[0] == "SET_VRING_KICK"]
    assert rings == [RX, TX]
    assert calls[-1] == RUN
    assert rig.is_delegated()


def test_each_ring_is_kicked_as_its_kick_may_have_gone_to_the_device(rig: Rig) -> None:
    rig.driver.start()
    for index in (RX, TX):
        notifiers = rig.slot.transport.lifecycle.notifiers(index)
        assert notifiers is not None
        assert os.eventfd_read(notifiers.kick) == 1


def test_what_the_kernel_lacks_is_not_offered(rig: Rig) -> None:
    offered = rig.driver.offered_features()
    assert offered & feature_mask(VsockFeature) == feature_mask([SEQPACKET])
    assert not offered & feature_mask([Feature.VIRTIO_F_INDIRECT_DESC])


def test_a_reset_stops_the_rings(rig: Rig) -> None:
    rig.driver.start()
    rig.take_calls()
    rig.driver.reset()
    calls = rig.take_calls()
    assert calls[0] == RUN
    assert [call[:2] for call in calls if call[0] == "GET_VRING_BASE"] == [
        ("GET_VRING_BASE", TX),
        ("GET_VRING_BASE", RX),
    ]
    assert not rig.is_delegated()
    rig.driver.start()
    assert rig.is_delegated()


def test_rings_that_are_reclaimed_go_on_where_the_kernel_left_them(rig: Rig) -> None:
    rig.driver.start()
    rig.kernel.bases = {RX: 3, TX: 5}
    rig.slot.change_mode(IoMode.IOEVENTFD)
    bases = [rig.device.queues[ring].state.vring_base for ring in (RX, TX)]
    assert bases == [3, 5]
    # The kernel's connections are over: the driver is told.
    assert rig.event() == bytes(4)
    rig.slot.change_mode(IoMode.VHOST)
    assert rig.is_delegated()


def test_a_mode_changed_from_the_devices_own_ends_its_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, IoMode.IOEVENTFD)
    try:
        rig.driver.start()
        with pytest.raises(HostError, match="vhost lacks features"):
            rig.slot.change_mode("vhost")
        rig.driver.start([SEQPACKET])
        assert rig.event() == b"\xee" * 4
        rig.slot.change_mode("vhost")
        assert rig.driver.queues[EVENT].take_all_used()
        assert rig.slot.mode is IoMode.VHOST
    finally:
        rig.close()


def test_another_cid_is_the_kernels_too(rig: Rig) -> None:
    rig.driver.start()
    rig.take_calls()
    rig.device.change_cid(77)
    names = [call[0] for call in rig.take_calls()]
    assert names.index("VSOCK_SET_GUEST_CID") > names.index("VSOCK_SET_RUNNING")
    assert names[-1] == "VSOCK_SET_RUNNING"
    assert rig.event() == bytes(4)
    assert rig.is_delegated()


def test_a_cid_that_another_guest_has_is_the_users_fault(rig: Rig) -> None:
    rig.driver.start()
    rig.kernel.refusals = {"VHOST_VSOCK_SET_GUEST_CID": errno.EADDRINUSE}
    with pytest.raises(ConfigError, match="Another guest of this host has the CID 77"):
        rig.device.change_cid(77)
    assert rig.device.guest_cid == CID
    assert rig.is_delegated()


def test_a_ring_that_the_kernel_finds_broken_needs_a_reset(rig: Rig) -> None:
    rig.driver.start()
    worker = rig.device._packets.worker
    assert worker is not None
    queue = rig.driver.queues[TX]
    head = queue.place([Piece(0x1000, 100)])
    queue.write_descriptor(head, 1 << 40, 100, 0, 0)
    queue.make_available(head)
    os.eventfd_write(worker.errors[TX], 1)
    rig.machine.loop.call_soon(rig.machine.loop.stop, "stop")
    rig.machine.loop.start()
    rig.machine.loop.stop()
    assert rig.driver.status & DeviceStatus.DEVICE_NEEDS_RESET
    assert not rig.is_delegated()
    rig.driver.start()
    assert rig.is_delegated()


def test_rings_that_the_kernel_refuses_are_the_devices(rig: Rig) -> None:
    rig.kernel.refusals = {"VHOST_VSOCK_SET_RUNNING": errno.ENOMEM}
    rig.driver.start()
    assert not rig.is_delegated()
    assert "VHOST_VSOCK_SET_RUNNING fails" in str(rig.device.facts()["delegation_refused"])
    assert rig.slot.mode is IoMode.IOEVENTFD


def test_a_program_does_not_reach_a_guest_that_the_kernel_has(rig: Rig) -> None:
    class Socket:
        closed = False

        def close(self) -> None:
            self.closed = True

    rig.driver.start()
    program = Socket()
    rig.device.connect(1000, SocketType.STREAM, program)  # type: ignore[arg-type]
    assert program.closed


def test_a_cid_that_is_taken_leaves_nothing_open() -> None:
    kernel = FakeKernel(features=FEATURES)
    kernel.refusals = {"VHOST_VSOCK_SET_GUEST_CID": errno.EADDRINUSE}
    with GuestMemory.allocate(MEMORY) as memory:
        before = open_files()
        vhost = VhostVsock("/dev/null", ioctl=kernel.ioctl)
        with pytest.raises(ConfigError, match="use another one"):
            VhostPackets(memory, CID, vhost=vhost)
        assert open_files() == before


def test_a_missing_device_is_told_with_its_remedies() -> None:
    with pytest.raises(HostError, match=r"modprobe vhost_vsock.*mode=ioeventfd\.$"):
        VhostVsock("/dev/no-vhost-here")


def test_the_device_behind_decides_which_vhost_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel(features=FEATURES)
    monkeypatch.setattr(
        "virtiopy.vhost.kernel.vsock.VhostVsock",
        lambda: VhostVsock("/dev/null", ioctl=kernel.ioctl),
    )
    with GuestMemory.allocate(MEMORY) as memory:
        worker = open_vhost(memory, GuestBacking(CID))
        assert isinstance(worker, VhostPackets)
        worker.close()

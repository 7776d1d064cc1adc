import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.openfiles import open_files
from virtiopy._native import ffi, lib
from virtiopy.devices.delegation import DelegatedQueue
from virtiopy.errors import ConfigError, HostError
from virtiopy.memory import HOLE_END, HOLE_START, AddressError, GuestMemory, Region
from virtiopy.spec import Feature, feature_mask
from virtiopy.vhost.kernel.net import VhostNet
from virtiopy.vhost.kernel.pair import VhostPair
from virtiopy.vhost.vring import Vring
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece
from virtiopy.virtqueue.queue import QueueAreas, QueueError, QueueState
from virtiopy.virtqueue.split import SplitQueue

VERSION_1 = feature_mask([Feature.VIRTIO_F_VERSION_1])
EVENT_IDX = feature_mask([Feature.VIRTIO_F_EVENT_IDX])
PACKED = feature_mask([Feature.VIRTIO_F_RING_PACKED])
CSUM = 1

ADDRESSES = QueueAreas(0x1000, 0x2000, 0x3000)

_STATES = [
    "VHOST_SET_VRING_NUM",
    "VHOST_SET_VRING_BASE",
    "VHOST_GET_VRING_BASE",
    "VHOST_SET_VRING_BUSYLOOP_TIMEOUT",
]
_FILES = [
    "VHOST_SET_VRING_KICK",
    "VHOST_SET_VRING_CALL",
    "VHOST_SET_VRING_ERR",
    "VHOST_NET_SET_BACKEND",
]
_OTHERS = [
    "VHOST_GET_FEATURES",
    "VHOST_SET_FEATURES",
    "VHOST_SET_OWNER",
    "VHOST_RESET_OWNER",
    "VHOST_SET_MEM_TABLE",
    "VHOST_SET_VRING_ADDR",
    "VHOST_VSOCK_SET_GUEST_CID",
    "VHOST_VSOCK_SET_RUNNING",
]
_TAPS = ["TUNGETIFF", "TUNGETVNETHDRSZ"]
NAMES = {getattr(lib, name): name for name in (*_STATES, *_FILES, *_OTHERS, *_TAPS)}


@dataclass
class FakeKernel:
    """Takes the ioctls as vhost does, writes down what they say, and refuses what it is told."""

    features: int = VERSION_1 | EVENT_IDX
    #: What a tap answers.
    tap_flags: int = lib.IFF_TAP | lib.IFF_VNET_HDR
    header_size: int = 12
    bases: dict[int, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[object, ...]] = field(default_factory=list)

    def ioctl(self, fd: int, request: int, argument: int) -> int:
        name = NAMES[request]
        if name in self.refusals:
            return -self.refusals[name]
        short = name.removeprefix("VHOST_")
        if name == "VHOST_GET_FEATURES":
            ffi.cast("uint64_t *", argument)[0] = self.features
        elif name == "VHOST_SET_FEATURES":
            self.calls.append((short, ffi.cast("uint64_t *", argument)[0]))
        elif name in _STATES:
            state = ffi.cast("struct vhost_vring_state *", argument)
            if name == "VHOST_GET_VRING_BASE":
                state.num = self.bases[state.index]
            self.calls.append((short, state.index, state.num))
        elif name in _FILES:
            file = ffi.cast("struct vhost_vring_file *", argument)
            self.calls.append((short, file.index, file.fd))
        elif name == "VHOST_SET_VRING_ADDR":
            ring = ffi.cast("struct vhost_vring_addr *", argument)
            parts = ring.desc_user_addr, ring.avail_user_addr, ring.used_user_addr
            self.calls.append((short, ring.index, ring.flags, parts))
        elif name == "VHOST_SET_MEM_TABLE":
            table = ffi.cast("struct vhost_memory *", argument)
            for index in range(table.nregions):
                entry = table.regions[index]
                where = entry.guest_phys_addr, entry.memory_size, entry.userspace_addr
                self.calls.append((short, *where, entry.flags_padding))
        elif name == "TUNGETIFF":
            request_ = ffi.cast("struct ifreq *", argument)
            request_.ifr_name = b"t0"
            request_.ifr_flags = self.tap_flags
        elif name == "TUNGETVNETHDRSZ":
            ffi.cast("int *", argument)[0] = self.header_size
        else:
            self.calls.append((short,))
        return 0


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(1 << 20) as memory:
        yield memory


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def vhost(kernel: FakeKernel) -> Iterator[VhostNet]:
    with VhostNet("/dev/null", ioctl=kernel.ioctl) as vhost:
        kernel.calls.clear()
        yield vhost


def host(memory: GuestMemory, address: int) -> int:
    return memory.regions[0].host_address + address


def test_a_ring_starts_with_its_backend_as_the_last_step(
    vhost: VhostNet, kernel: FakeKernel, memory: GuestMemory
) -> None:
    vhost.set_memory(memory)
    kernel.calls.clear()

    vhost.start_ring(1, Vring(128, ADDRESSES, QueueState(77), kick=10, call=11, error=12), tap=13)

    parts = tuple(host(memory, address) for address in (0x1000, 0x2000, 0x3000))
    assert set(kernel.calls[:-1]) == {
        ("SET_VRING_NUM", 1, 128),
        ("SET_VRING_BASE", 1, 77),
        ("SET_VRING_ADDR", 1, 0, parts),
        ("SET_VRING_ERR", 1, 12),
        ("SET_VRING_CALL", 1, 11),
        ("SET_VRING_KICK", 1, 10),
    }
    assert kernel.calls[-1] == ("NET_SET_BACKEND", 1, 13)


def test_a_ring_is_stopped_before_its_index_is_read(vhost: VhostNet, kernel: FakeKernel) -> None:
    kernel.bases[0] = 65535

    assert vhost.stop_ring(0) == QueueState(65535)

    assert kernel.calls[:2] == [("NET_SET_BACKEND", 0, -1), ("GET_VRING_BASE", 0, 65535)]
    assert set(kernel.calls[2:]) == {
        ("SET_VRING_KICK", 0, -1),
        ("SET_VRING_CALL", 0, -1),
        ("SET_VRING_ERR", 0, -1),
    }


def test_the_memory_table_has_each_region_where_it_is(vhost: VhostNet, kernel: FakeKernel) -> None:
    fd = os.memfd_create("regions")
    os.ftruncate(fd, 0x4000)
    low = Region.map(HOLE_START - 0x1000, 0x1000, fd, 0)
    high = Region.map(HOLE_END, 0x3000, fd, 0x1000)
    with GuestMemory([high, low]) as memory:
        vhost.set_memory(memory)
    os.close(fd)

    assert kernel.calls == [
        ("SET_MEM_TABLE", HOLE_START - 0x1000, 0x1000, low.host_address, 0),
        ("SET_MEM_TABLE", HOLE_END, 0x3000, high.host_address, 0),
    ]


def test_a_ring_that_spans_regions_is_the_drivers_fault(vhost: VhostNet) -> None:
    fd = os.memfd_create("regions")
    os.ftruncate(fd, 0x3000)
    # Neighbours for the guest, not for us.
    regions = [Region.map(0, 0x1000, fd, 0x2000), Region.map(0x1000, 0x2000, fd, 0)]
    with GuestMemory(regions) as memory:
        vhost.set_memory(memory)
        with pytest.raises(QueueError, match="not contiguous"):
            vhost.set_addresses(0, 16, QueueAreas(0xFF0, 0x100, 0x200))
    os.close(fd)


@pytest.mark.parametrize("part", ["descriptor", "driver", "device"])
def test_a_ring_outside_memory_is_the_drivers_fault(
    vhost: VhostNet, kernel: FakeKernel, memory: GuestMemory, part: str
) -> None:
    parts = {"descriptor": 0x1000, "driver": 0x2000, "device": 0x3000}
    vhost.set_memory(memory)
    kernel.calls.clear()
    with pytest.raises(AddressError):
        vhost.set_addresses(0, 16, QueueAreas(**parts | {part: memory.size - 8}))
    assert kernel.calls == []


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_a_queue_size_that_is_none_is_the_drivers_fault(vhost: VhostNet, size: int) -> None:
    with pytest.raises(QueueError, match="power of 2"):
        vhost.set_size(0, size)


def test_vhost_is_told_of_the_features_that_are_its_business(
    vhost: VhostNet, kernel: FakeKernel
) -> None:
    vhost.set_features(VERSION_1 | EVENT_IDX | CSUM)
    assert kernel.calls == [("SET_FEATURES", VERSION_1 | EVENT_IDX)]


def test_a_negotiated_feature_that_vhost_lacks_is_refused(
    vhost: VhostNet, kernel: FakeKernel
) -> None:
    with pytest.raises(HostError, match="lacks features 0x400000000"):
        vhost.set_features(VERSION_1 | PACKED)
    assert kernel.calls == []


def test_what_can_be_offered_leaves_out_what_only_vhost_could_do() -> None:
    device = VERSION_1 | EVENT_IDX | PACKED | CSUM
    assert VhostNet.offered_with(device, VERSION_1) == VERSION_1 | CSUM
    assert VhostNet.offered_with(VERSION_1, VERSION_1 | EVENT_IDX) == VERSION_1


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        ("VHOST_SET_MEM_TABLE", errno.E2BIG, "max_mem_regions"),
        ("VHOST_SET_VRING_NUM", errno.EBUSY, "stop it first"),
        ("VHOST_NET_SET_BACKEND", errno.EFAULT, "set_memory"),
        ("VHOST_SET_VRING_KICK", errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_refusal_names_the_ioctl_and_a_remedy(
    memory: GuestMemory, name: str, number: int, words: str
) -> None:
    kernel = FakeKernel(refusals={name: number})

    def set_up(vhost: VhostNet) -> None:
        vhost.set_memory(memory)
        vhost.start_ring(0, Vring(16, ADDRESSES, QueueState(), kick=10, call=11), tap=13)

    with (
        VhostNet("/dev/null", ioctl=kernel.ioctl) as vhost,
        pytest.raises(HostError, match=words) as raised,
    ):
        set_up(vhost)
    assert str(raised.value).startswith(f"{name} fails (")
    assert str(raised.value).endswith(".")


def test_a_backend_that_is_no_tap_is_the_users_fault() -> None:
    kernel = FakeKernel(refusals={"VHOST_NET_SET_BACKEND": errno.ENOTSOCK})
    with (
        VhostNet("/dev/null", ioctl=kernel.ioctl) as vhost,
        pytest.raises(ConfigError, match="no tap"),
    ):
        vhost.set_backend(0, 13)


@pytest.mark.parametrize(
    "kernel",
    [
        FakeKernel(features=EVENT_IDX),
        FakeKernel(refusals={"VHOST_SET_OWNER": errno.ENOMEM}),
        FakeKernel(refusals={"VHOST_GET_FEATURES": errno.ENOTTY}),
    ],
)
def test_a_vhost_that_cannot_be_used_is_closed_again(kernel: FakeKernel) -> None:
    before = open_files()
    with pytest.raises(HostError):
        VhostNet("/dev/null", ioctl=kernel.ioctl)
    assert open_files() == before


def test_a_missing_device_is_told_with_its_remedies() -> None:
    with pytest.raises(HostError, match=r"modprobe vhost_net.*vhost=off\.$"):
        VhostNet("/dev/no-vhost-here")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, r"may not be opened by this user: run as root, or use vhost=off\.$"),
        (errno.EPERM, r"may not be opened by this user: run as root, or use vhost=off\.$"),
        (errno.EBUSY, r"cannot be opened \(Device or resource busy\): use vhost=off\.$"),
    ],
)
def test_a_device_that_does_not_open_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match=words):
        VhostNet()


def test_a_vhost_without_a_feature_that_is_needed_is_told_with_the_remedy() -> None:
    kernel = FakeKernel(features=EVENT_IDX)
    with pytest.raises(HostError, match=r"knows no virtio 1 .*since 4\.0, or vhost=off\.$"):
        VhostNet("/dev/null", ioctl=kernel.ioctl)


def test_a_busy_poll_timeout_is_checked(vhost: VhostNet) -> None:
    with pytest.raises(ConfigError, match="0 to 4294967295"):
        vhost.set_busy_poll(0, -1)


def make_given(memory: GuestMemory, ring: int, kick: int) -> DelegatedQueue:
    driver = DriverQueue(memory, 16, Allocator(0x1000 + ring * 0x1000, memory.size))
    for _ in range(5):
        driver.add([Piece(0x8000, 64, writable=True)])
    queue = SplitQueue(memory, 16, driver.areas)
    queue.push_many([(chain, 0) for chain in queue.pop_many(2)])
    assert len(queue.pop_many(2)) == 2
    queue.unpop(2)
    return DelegatedQueue(ring, queue, kick, call=11)


def test_a_pair_that_was_given_goes_on_where_vhost_left_it(
    memory: GuestMemory, kernel: FakeKernel
) -> None:
    kick = os.eventfd(0)
    vhost = VhostNet("/dev/null", ioctl=kernel.ioctl)
    with VhostPair(memory, 13, vhost=vhost) as pair:
        given = [make_given(memory, ring, kick) for ring in range(2)]
        pair.delegate(given, VERSION_1)
        assert pair.active
        assert [call for call in kernel.calls if call[0] == "SET_VRING_BASE"] == [
            ("SET_VRING_BASE", 0, 2),
            ("SET_VRING_BASE", 1, 2),
        ]

        kernel.bases = {0: 4, 1: 3}
        pair.reclaim()
        assert not pair.active
        assert [g.queue.state for g in given] == [QueueState(4), QueueState(3)]
        assert [len(g.queue.pop_many()) for g in given] == [1, 2]
    os.close(kick)


def test_a_pair_of_which_one_is_refused_stays_where_it_was(
    memory: GuestMemory, kernel: FakeKernel
) -> None:
    kick = os.eventfd(0)
    kernel.bases = {0: 2}
    vhost = VhostNet("/dev/null", ioctl=kernel.ioctl)
    with (
        GuestMemory.allocate(2 << 20) as more,
        VhostPair(memory, 13, vhost=vhost) as pair,
    ):
        good = make_given(memory, 0, kick)
        driver = DriverQueue(more, 16, Allocator(memory.size, more.size))
        outside = DelegatedQueue(1, SplitQueue(more, 16, driver.areas), kick, call=11)

        with pytest.raises(AddressError):
            pair.delegate([good, outside], VERSION_1)

        assert not pair.active
        assert ("NET_SET_BACKEND", 0, -1) in kernel.calls
        assert len(good.queue.pop_many()) == 3
    os.close(kick)


def test_a_pair_with_chains_in_flight_is_not_given(memory: GuestMemory, kernel: FakeKernel) -> None:
    vhost = VhostNet("/dev/null", ioctl=kernel.ioctl)
    with VhostPair(memory, 13, vhost=vhost) as pair:
        given = make_given(memory, 0, 10)
        given.queue.pop()
        with pytest.raises(ValueError, match="in flight"):
            pair.delegate([given], VERSION_1)
        assert not pair.active

"""A device's life apart from its transport: what is refused is told, and all can be watched."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from tests.unit.net.rig import MAC, FakeLink
from virtiopy.devices.base import SharedMemoryRegion, VirtioDevice
from virtiopy.devices.net import Net
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId, DeviceStatus, Feature, feature_mask
from virtiopy.transport.driver import MmioDriver, NegotiationError
from virtiopy.transport.interrupts import CONFIG, InterruptSource, LevelInterrupt
from virtiopy.transport.lifecycle import Lifecycle
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.observer import Act, LifecycleObserver, Refusal
from virtiopy.transport.queueconfig import QueueConfig
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.buffers import scatter
from virtiopy.virtqueue.driver import Allocator, Piece
from virtiopy.virtqueue.queue import Chain, Virtqueue

MEMORY_SIZE = 1 << 20


class Filler(VirtioDevice):
    """Fills each buffer with 0x5A."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY
    queue_sizes = (8, 4)

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        return scatter(chain.writable, b"\x5a" * 4)


class Watcher(LifecycleObserver):
    """Keeps what it sees, in words."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.refusals: list[Refusal] = []

    def take(self) -> list[str]:
        seen, self.seen = self.seen, []
        return seen

    def status_written(self, before: int, written: int) -> None:
        self.seen.append(f"status {before} -> {written}")

    def features_accepted(self, offered: int, accepted: int) -> None:
        self.seen.append(f"features {accepted:#x}")

    def refused(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)
        self.seen.append(f"refused {refusal.act}")

    def queue_configured(self, index: int, config: QueueConfig) -> None:
        self.seen.append(f"queue {index} of {config.size}")

    def queue_disabled(self, index: int) -> None:
        self.seen.append(f"queue {index} disabled")

    def queue_was_reset(self, index: int) -> None:
        self.seen.append(f"queue {index} reset")

    def kicked(self, index: int) -> None:
        self.seen.append(f"kick {index}")

    def activated(self) -> None:
        self.seen.append("activated")

    def config_changed(self, *, notify: bool) -> None:
        self.seen.append("configuration" if notify else "configuration, quietly")

    def interrupt_raised(self, source: InterruptSource) -> None:
        self.seen.append(f"interrupt {'config' if source is CONFIG else source}")

    def interrupt_acknowledged(self, events: int) -> None:
        self.seen.append(f"acknowledged {events}")

    def needs_reset(self, reason: str) -> None:
        self.seen.append("needs reset")

    def was_reset(self) -> None:
        self.seen.append("reset")


@dataclass
class Bench:
    """A device behind registers, watched."""

    memory: GuestMemory
    device: VirtioDevice = field(default_factory=Filler)

    def __post_init__(self) -> None:
        self.transport = MmioTransport(self.device, self.memory, LevelInterrupt(lambda level: None))
        self.watcher = Watcher()
        self.lifecycle.observers.append(self.watcher)
        self.driver = MmioDriver(self.transport, self.memory, Allocator(0x1000, MEMORY_SIZE))

    @property
    def lifecycle(self) -> Lifecycle:
        return self.transport.lifecycle

    def told(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        """Take the warnings that were logged since the last call."""
        found = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        caplog.clear()
        return found


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        yield memory


@pytest.fixture
def bench(memory: GuestMemory) -> Bench:
    return Bench(memory)


# What is refused is told in one sentence, with the section


def test_a_driver_that_does_not_accept_version_1_is_told_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.driver.set_status(DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER)
    bench.driver.set_status(DeviceStatus.FEATURES_OK)
    assert bench.told(caplog) == [
        "entropy: the driver does not accept VIRTIO_F_VERSION_1 (6.1); FEATURES_OK stays clear"
    ]


def test_features_that_were_not_offered_are_named(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NegotiationError):
        bench.driver.negotiate([Feature.VIRTIO_F_RING_PACKED, 60])
    assert bench.told(caplog) == [
        "entropy: the driver accepts VIRTIO_F_RING_PACKED, feature bit 60, which the device does "
        "not offer (2.2.1); FEATURES_OK stays clear"
    ]


def test_features_that_need_others_are_named_with_what_they_need(
    memory: GuestMemory, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(memory, Net(FakeLink(), mac=MAC))
    # GUEST_TSO4 without GUEST_CSUM
    with pytest.raises(NegotiationError):
        bench.driver.negotiate([7])
    assert bench.told(caplog) == [
        "network: the driver accepts VIRTIO_NET_F_GUEST_TSO4 without VIRTIO_NET_F_GUEST_CSUM "
        "(2.2.2); FEATURES_OK stays clear"
    ]


def test_a_queue_above_queue_size_max_is_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.driver.negotiate()
    bench.driver.write(Register.QueueSize, 2048)
    bench.driver.write(Register.QueueReady, 1)
    bench.driver.set_status(DeviceStatus.DRIVER_OK)
    assert bench.told(caplog) == [
        "entropy needs a reset: the driver makes queue 0 of size 2048, above the 8 that it may "
        "have (4.2.2.2)"
    ]


@pytest.mark.parametrize(
    ("index", "ready", "told"),
    [
        (0, False, "kicks queue 0, which is not ready (4.2.2.2)"),
        (7, False, "kicks queue 7; the device has 2 (4.2.3.3)"),
        (0, None, "kicks queue 0 before it sets DRIVER_OK (3.1.1)"),
    ],
)
def test_a_kick_that_no_queue_takes_is_told(
    bench: Bench,
    caplog: pytest.LogCaptureFixture,
    index: int,
    ready: bool | None,
    told: str,
) -> None:
    bench.driver.negotiate()
    if ready is None:
        bench.driver.set_up_queue(0, 8)
    else:
        bench.driver.set_status(DeviceStatus.DRIVER_OK)
    bench.driver.kick(index)
    assert bench.told(caplog) == [f"entropy: the driver {told}; the kick is ignored"]


REFUSED_WRITES = {
    "a register of a ready queue": (
        [(Register.QueueSize, 2)],
        "the driver writes QueueSize of queue 0, which is ready (4.2.2.2); it stays as it is",
    ),
    "a queue that is none": (
        [(Register.QueueSel, 9), (Register.QueueReady, 1)],
        "the driver makes queue 9 ready; the device has 2 (4.2.3.2)",
    ),
    "features after FEATURES_OK": (
        [(Register.DriverFeatures, 0)],
        "the driver writes DriverFeatures after FEATURES_OK (2.2.1); the features stay as they are",
    ),
    "a status bit cleared": (
        [(Register.Status, DeviceStatus.DRIVER_OK | DeviceStatus.FEATURES_OK)],
        "the driver clears ACKNOWLEDGE, DRIVER (2.1.1); the bits stay set",
    ),
    "a read-only register": (
        [(Register.ConfigGeneration, 1)],
        "the driver writes 4 bytes at 0xfc (ConfigGeneration) (4.2.2.2); nothing is written",
    ),
    "a legacy register": (
        [(0x40, 1)],
        "the driver writes 4 bytes at 0x40: QueuePFN of a legacy device (4.2.4); "
        "nothing is written",
    ),
    "a configuration space that is not there": (
        [(Register.Config, 1)],
        "the driver writes 4 bytes at 0x0 of a configuration space of 0 (2.5); nothing is written",
    ),
}


@pytest.mark.parametrize(("writes", "told"), REFUSED_WRITES.values(), ids=REFUSED_WRITES)
def test_a_write_that_changes_nothing_is_told(
    bench: Bench, caplog: pytest.LogCaptureFixture, writes: list[tuple[int, int]], told: str
) -> None:
    bench.driver.start()
    bench.driver.write(Register.QueueSel, 0)
    for register, value in writes:
        bench.driver.write(register, value)
    assert bench.told(caplog) == [f"entropy: {told}"]


@pytest.mark.parametrize(
    ("access", "told"),
    [
        (("writes", 0x24, 1), "1 byte at 0x24 (DriverFeaturesSel) (4.2.2.2); nothing is written"),
        (("writes", 0x90, 8), "8 bytes at 0x90 (QueueDriverLow) (4.2.2.2); two writes of 4 bytes"),
        (
            ("reads", 0x70, 1),
            "1 byte at 0x70 (Status) (4.2.2.2); it reads the bytes that lie there",
        ),
        (("reads", 0x101, 8), "8 bytes at 0x101 (Config) (4.2.2.2); it reads the bytes"),
    ],
)
def test_an_access_of_a_width_that_is_forbidden_is_told(
    bench: Bench, caplog: pytest.LogCaptureFixture, access: tuple[str, int, int], told: str
) -> None:
    does, offset, size = access
    if does == "reads":
        bench.transport.read(offset, size)
    else:
        bench.transport.write(offset, bytes(size))
    (line,) = bench.told(caplog)
    assert line.startswith(f"entropy: the driver {does} {told}")


def test_a_sound_driver_is_told_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        bench.driver.start()
        buffer = bench.driver.allocator.take(4)
        bench.driver.queues[0].add([Piece(buffer, 4, writable=True)])
        assert [used.length for used in bench.driver.collect(0)] == [4]
        bench.driver.interrupts()
        bench.driver.write(Register.QueueSel, 1)
        bench.driver.write(Register.QueueReset, 1)
    bench.driver.reset()
    assert bench.told(caplog) == []
    assert bench.watcher.refusals == []


# What happens can be watched


def test_an_observer_sees_each_step_of_a_life_in_order(bench: Bench) -> None:
    negotiated = bench.driver.negotiate([Feature.VIRTIO_F_RING_RESET])
    bench.driver.set_up_queue(0, 8)
    bench.driver.set_status(DeviceStatus.DRIVER_OK)
    assert bench.watcher.take() == [
        *("status 0 -> 0", "reset", "status 0 -> 1", "status 1 -> 3", "status 3 -> 11"),
        *(f"features {negotiated:#x}", "queue 0 of 8", "status 11 -> 15", "activated"),
    ]
    buffer = bench.driver.allocator.take(4)
    bench.driver.queues[0].add([Piece(buffer, 4, writable=True)])
    bench.driver.kick(0)
    bench.driver.interrupts()
    assert bench.watcher.take() == ["kick 0", "interrupt 0", "acknowledged 1"]
    bench.lifecycle.config_changed(notify=False)
    bench.lifecycle.config_changed()
    bench.driver.write(Register.QueueReady, 0)
    bench.driver.write(Register.QueueReset, 1)
    bench.lifecycle.needs_reset("for the test")
    assert bench.watcher.take() == [
        *("configuration, quietly", "configuration", "interrupt config"),
        *("queue 0 disabled", "queue 0 reset", "needs reset", "interrupt config"),
    ]
    bench.driver.kick(0)
    assert bench.watcher.take() == []


def test_an_observer_is_given_the_act_and_the_section(bench: Bench) -> None:
    bench.driver.kick(0)
    assert [(found.act, found.section) for found in bench.watcher.refusals] == [(Act.KICK, "3.1.1")]


# What is offered


def test_the_offer_is_the_devices_to_make_and_stays_until_a_reset(bench: Bench) -> None:
    device = bench.device
    device.offered = lambda features: features & ~feature_mask([29])  # type: ignore[method-assign]
    bench.driver.reset()
    assert not bench.driver.offered_features() >> 29 & 1
    device.offered = lambda features: features  # type: ignore[method-assign]
    assert not bench.driver.offered_features() >> 29 & 1
    bench.driver.reset()
    assert bench.driver.offered_features() >> 29 & 1


# Shared memory regions (2.10)


def test_the_driver_finds_a_shared_memory_region_by_its_id(bench: Bench) -> None:
    bench.device.shared_memory = {3: SharedMemoryRegion(0x12_3456_7000, 0x1_0000_2000)}
    found = []
    for identifier in (2, 3):
        bench.driver.write(Register.SHMSel, identifier)
        found.append(
            [
                bench.driver.read(low) | bench.driver.read(low + 4) << 32
                for low in (Register.SHMBaseLow, Register.SHMLenLow)
            ]
        )
    assert found == [[(1 << 64) - 1] * 2, [0x12_3456_7000, 0x1_0000_2000]]

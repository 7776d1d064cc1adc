"""Virtio over MMIO, version 2 (4.2), and the device status state machine behind it (2.1)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtiopy.devices.base import VirtioDevice
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId, DeviceStatus, Feature, feature_mask
from virtiopy.transport.driver import MmioDriver, NegotiationError, Registers
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue.buffers import gather, scatter, total
from virtiopy.virtqueue.driver import Allocator, Piece, Used
from virtiopy.virtqueue.queue import Chain, QueueState, Virtqueue
from virtiopy.virtqueue.split import SplitQueue

MEMORY_SIZE = 1 << 20
FAKE_FEATURE = 3
QUEUE_SIZES = [8, 4]
CONFIG = bytes(range(0xC0, 0xCC))

ACKNOWLEDGE = DeviceStatus.ACKNOWLEDGE
DRIVER = DeviceStatus.DRIVER
FEATURES_OK = DeviceStatus.FEATURES_OK
DRIVER_OK = DeviceStatus.DRIVER_OK
NEEDS_RESET = DeviceStatus.DEVICE_NEEDS_RESET
FAILED = DeviceStatus.FAILED
ALL_STEPS = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK

VERSION_1 = Feature.VIRTIO_F_VERSION_1
RING_RESET = Feature.VIRTIO_F_RING_RESET
OFFERED = feature_mask(
    [
        FAKE_FEATURE,
        Feature.VIRTIO_F_INDIRECT_DESC,
        Feature.VIRTIO_F_EVENT_IDX,
        VERSION_1,
        RING_RESET,
    ]
)

# 4.2.2, by direction. What a fresh device shows in the readable ones:
READABLE = {
    0x000: 0x7472_6976,
    0x004: 2,
    0x008: DeviceId.ENTROPY,
    0x00C: int.from_bytes(b"VPY1", "little"),
    0x010: OFFERED & 0xFFFF_FFFF,
    0x034: QUEUE_SIZES[0],
    0x044: 0,
    0x060: 0,
    0x070: 0,
    0x0B0: 0xFFFF_FFFF,
    0x0B4: 0xFFFF_FFFF,
    0x0B8: 0xFFFF_FFFF,
    0x0BC: 0xFFFF_FFFF,
    0x0C0: 0,
    0x0FC: 0,
}
WRITE_ONLY = [0x014, 0x020, 0x024, 0x030, 0x038, 0x050, 0x064]
WRITE_ONLY += [0x080, 0x084, 0x090, 0x094, 0x0A0, 0x0A4, 0x0AC]
READ_WRITE = [0x044, 0x070, 0x0C0]
READ_ONLY = [offset for offset in READABLE if offset not in READ_WRITE]
UNDEFINED = [
    offset for offset in range(0, 0x100, 4) if offset not in READABLE and offset not in WRITE_ONLY
]


class FakeDevice(VirtioDevice):
    """Fills each buffer with 0x5A, and records what the transport asks of it."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY

    def __init__(self) -> None:
        super().__init__()
        self.features = 1 << FAKE_FEATURE
        self.queue_sizes = QUEUE_SIZES
        self.config = bytearray(CONFIG)
        self.calls: list[tuple[object, ...]] = []
        self.willing = True

    def accepts(self, driver_features: int) -> bool:
        return self.willing

    def negotiated(self, driver_features: int) -> None:
        super().negotiated(driver_features)
        self.calls.append(("negotiated", driver_features))

    def config_space(self) -> bytes:
        return bytes(self.config)

    def write_config(self, offset: int, data: bytes) -> bool:
        self.calls.append(("write_config", offset, data))
        return True

    def activate(self, queues: Mapping[int, Virtqueue]) -> None:
        super().activate(queues)
        self.calls.append(("activate", *queues))

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        super().start_queue(index, queue)
        self.calls.append(("start_queue", index))

    def stop_queue(self, index: int) -> None:
        super().stop_queue(index)
        self.calls.append(("stop_queue", index))

    def reset(self) -> None:
        super().reset()
        self.calls.append(("reset",))

    def handle(self, queue: Virtqueue) -> None:
        self.calls.append(("handle", queue.index))
        super().handle(queue)

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        self.calls.append(("serve", queue.index, gather(chain.readable)))
        return scatter(chain.writable, b"\x5a" * total(chain.writable))


@dataclass
class Bench:
    """A device behind its registers, and what its interrupt line did."""

    memory: GuestMemory
    device: FakeDevice
    transport: MmioTransport
    driver: MmioDriver
    levels: list[bool]

    @property
    def line(self) -> bool:
        return bool(self.levels) and self.levels[-1]

    def read(self, offset: int) -> int:
        return self.driver.read(offset)

    def write(self, offset: int, value: int) -> None:
        self.driver.write(offset, value)

    def take_calls(self) -> list[tuple[object, ...]]:
        calls = list(self.device.calls)
        self.device.calls.clear()
        return calls

    def offer(self, index: int = 0, length: int = 4) -> int:
        """Make a device-writable buffer available; returns where it is."""
        address = self.driver.allocator.take(length)
        self.memory.write(address, bytes(length))
        self.driver.queues[index].add([Piece(address, length, writable=True)])
        return address

    def serves(self, index: int = 0) -> bool:
        """Say whether queue `index` gets a buffer filled."""
        address = self.offer(index)
        used = self.driver.collect(index)
        return [u.length for u in used] == [4] and self.memory.read(address, 4) == b"\x5a" * 4

    def set_up(
        self, index: int, *, size: int | None = None, descriptors: int | None = None
    ) -> None:
        """Write the registers of a queue as 4.2.3.2 says, but for what is given."""
        self.write(Register.QueueSel, index)
        allocate = self.driver.allocator.take
        parts = [allocate(0x100, 16), allocate(0x100, 2), allocate(0x100, 4)]
        if descriptors is not None:
            parts[0] = descriptors
        self.write(Register.QueueSize, QUEUE_SIZES[index] if size is None else size)
        for low, address in zip((0x080, 0x090, 0x0A0), parts, strict=True):
            self.write(low, address & 0xFFFF_FFFF)
            self.write(low + 4, address >> 32)
        self.write(Register.QueueReady, 1)


@contextmanager
def bench_of(
    wrap: Callable[[MmioTransport], Registers] = lambda transport: transport,
) -> Iterator[Bench]:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        device, levels = FakeDevice(), list[bool]()
        transport = MmioTransport(device, memory, LevelInterrupt(levels.append))
        driver = MmioDriver(wrap(transport), memory, Allocator(0x1000, MEMORY_SIZE))
        yield Bench(memory, device, transport, driver, levels)
        # A broken device would keep views of the memory.
        transport.lifecycle.reset()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with bench_of() as bench:
        yield bench


@pytest.fixture
def running(bench: Bench) -> Bench:
    bench.driver.start()
    bench.take_calls()
    return bench


# The register layout (4.2.2)


@pytest.mark.parametrize(("offset", "value"), READABLE.items(), ids=hex)
def test_a_fresh_device_shows_the_value_that_the_layout_gives(
    bench: Bench, offset: int, value: int
) -> None:
    assert bench.read(offset) == value


def test_the_registers_have_the_names_of_the_specification(bench: Bench) -> None:
    names = {offset: bench.transport.register_name(offset) for offset in (0, 0x34, 0xC0, 0xFC)}
    assert names == {
        0: "MagicValue",
        0x34: "QueueSizeMax",
        0xC0: "QueueReset",
        0xFC: ("ConfigGeneration"),
    }


def test_any_offset_from_0x100_on_is_named_config(bench: Bench) -> None:
    assert {bench.transport.register_name(offset) for offset in (0x100, 0x101, 0xFFF)} == {"Config"}


def test_an_undefined_offset_is_named_by_its_number(bench: Bench) -> None:
    assert bench.transport.register_name(0x28) == "undefined 0x028"


@pytest.mark.parametrize("offset", WRITE_ONLY, ids=hex)
def test_a_write_only_register_reads_as_zero_whatever_was_written(
    bench: Bench, offset: int
) -> None:
    bench.write(offset, 1)
    assert bench.read(offset) == 0


@pytest.mark.parametrize("offset", READ_ONLY, ids=hex)
def test_writing_a_read_only_register_does_not_change_it(bench: Bench, offset: int) -> None:
    bench.write(offset, ~READABLE[offset] & 0xFFFF_FFFF)
    assert bench.read(offset) == READABLE[offset]


@pytest.mark.parametrize("offset", UNDEFINED, ids=hex)
def test_an_undefined_offset_reads_as_zero_whatever_was_written(bench: Bench, offset: int) -> None:
    bench.write(offset, 0xFFFF_FFFF)
    assert bench.read(offset) == 0


def lying_there(bench: Bench, offset: int, size: int) -> bytes:
    """Return bytes of registers, each read as it should be."""
    words = [bench.transport.read(at, 4) for at in range(0, Register.Config, 4)]
    return (b"".join(words) + CONFIG)[offset : offset + size].ljust(size, b"\0")


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("offset", READABLE, ids=hex)
def test_a_control_register_reads_as_its_bytes_in_any_width_but_32_bits(
    running: Bench, offset: int, size: int
) -> None:
    assert running.transport.read(offset, size) == lying_there(running, offset, size)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("offset", READABLE, ids=hex)
def test_a_misaligned_read_of_control_registers_gives_the_bytes_that_lie_there(
    running: Bench, offset: int, step: int, size: int
) -> None:
    expected = lying_there(running, offset + step, size)
    assert running.transport.read(offset + step, size) == expected


def test_a_store_of_8_bytes_at_a_multiple_of_8_is_two_of_4_bytes(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.transport.write(Register.QueueDescLow, (0x1_2345_6780).to_bytes(8, "little"))
    bench.transport.write(Register.Config, bytes(range(8)))
    config = bench.transport.lifecycle.queue_config(0)
    assert config is not None
    assert config.descriptor_area == 0x1_2345_6780
    assert bench.take_calls()[-2:] == [
        ("write_config", 0, bytes(range(4))),
        ("write_config", 4, bytes(range(4, 8))),
    ]


class Noisy:
    """Does everything that 4.2.2.2 forbids around each access that it lets through."""

    def __init__(self, transport: MmioTransport) -> None:
        self._transport = transport

    def read(self, offset: int, size: int) -> bytes:
        self._make_noise()
        return self._transport.read(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._make_noise()
        self._transport.write(offset, data)
        self._make_noise()

    def _make_noise(self) -> None:
        for byte in (b"\0", b"\1", b"\xff"):
            for offset in range(0x100):
                widths = {0: (1, 2), 4: (1, 2, 8)}.get(offset % 8, (1, 2, 4, 8))
                for size in widths:
                    self._transport.write(offset, byte * size)
            for offset in (*READ_ONLY, *UNDEFINED):
                self._transport.write(offset, byte * 4)
            for offset, size in ((0x100, 3), (0x102, 3), (0x102, 8)):
                self._transport.write(offset, byte * size)
        for offset in range(0x100):
            for size in (1, 2, 4, 8):
                self._transport.read(offset, size)


@pytest.mark.thorough
def test_forbidden_accesses_between_all_others_change_nothing_and_do_not_reach_the_device() -> None:
    calls = []
    for wrap in (lambda transport: transport, Noisy):
        with bench_of(wrap) as bench:
            bench.driver.start(queue_size=2)
            assert bench.serves(1)
            assert bench.driver.interrupts() == Interrupt.USED_BUFFER
            calls.append(bench.take_calls())
    assert calls[0] == calls[1]


# Feature bits (2.2)


@pytest.mark.parametrize("word", [0, 1])
def test_device_features_sel_selects_32_bits_of_the_offer(bench: Bench, word: int) -> None:
    bench.write(Register.DeviceFeaturesSel, word)
    assert bench.read(Register.DeviceFeatures) == OFFERED >> 32 * word & 0xFFFF_FFFF


@pytest.mark.parametrize("word", [2, 3, 31, 0x8000_0000, 0xFFFF_FFFF])
def test_no_feature_beyond_bit_63_is_offered(bench: Bench, word: int) -> None:
    bench.write(Register.DeviceFeaturesSel, word)
    assert bench.read(Register.DeviceFeatures) == 0


def test_the_device_is_told_what_was_negotiated(bench: Bench) -> None:
    bench.driver.negotiate([FAKE_FEATURE])
    assert bench.take_calls()[-1] == ("negotiated", feature_mask([FAKE_FEATURE, VERSION_1]))


def test_a_word_of_driver_features_written_twice_holds_the_second_value(bench: Bench) -> None:
    bench.driver.write_features(OFFERED)
    bench.driver.write_features(1 << VERSION_1)
    bench.driver.set_status(FEATURES_OK)
    assert bench.device.driver_features == 1 << VERSION_1


@pytest.mark.parametrize("bit", [0, 31, 33, 34, 41, 63])
def test_a_feature_that_is_not_offered_is_refused(bench: Bench, bit: int) -> None:
    with pytest.raises(NegotiationError):
        bench.driver.negotiate([bit])


def test_features_without_version_1_are_refused(bench: Bench) -> None:
    bench.driver.set_status(ACKNOWLEDGE, DRIVER)
    bench.driver.write_features(1 << FAKE_FEATURE)
    bench.driver.set_status(FEATURES_OK)
    assert bench.driver.status == ACKNOWLEDGE | DRIVER


@pytest.mark.parametrize("word", [2, 3, 4, 31, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
def test_a_feature_beyond_bit_63_is_refused(bench: Bench, word: int) -> None:
    bench.driver.write_features(1 << VERSION_1)
    bench.write(Register.DriverFeaturesSel, word)
    bench.write(Register.DriverFeatures, 1)
    bench.driver.set_status(FEATURES_OK)
    assert bench.driver.status == 0


def test_a_feature_beyond_bit_63_is_not_forgotten_when_another_word_is_written(
    bench: Bench,
) -> None:
    bench.driver.write_features(1 << VERSION_1)
    for word, value in ((5, 1), (7, 0)):
        bench.write(Register.DriverFeaturesSel, word)
        bench.write(Register.DriverFeatures, value)
    bench.driver.set_status(FEATURES_OK)
    assert bench.driver.status == 0


@pytest.mark.parametrize("word", [2, 3, 0xFFFF_FFFF])
def test_writing_zero_beyond_bit_63_asks_for_nothing(bench: Bench, word: int) -> None:
    bench.driver.write_features(OFFERED)
    bench.write(Register.DriverFeaturesSel, word)
    bench.write(Register.DriverFeatures, 0)
    bench.driver.set_status(FEATURES_OK)
    assert bench.device.driver_features == OFFERED


def test_what_the_device_does_not_accept_is_refused(bench: Bench) -> None:
    bench.device.willing = False
    with pytest.raises(NegotiationError):
        bench.driver.negotiate()


def test_a_refused_driver_is_not_announced_to_the_device(bench: Bench) -> None:
    bench.device.willing = False
    with pytest.raises(NegotiationError):
        bench.driver.negotiate()
    assert "negotiated" not in [name for name, *_ in bench.take_calls()]


def test_a_driver_that_was_refused_may_ask_for_less(bench: Bench) -> None:
    with pytest.raises(NegotiationError):
        bench.driver.negotiate([0])
    bench.driver.write_features(1 << VERSION_1)
    bench.driver.set_status(FEATURES_OK)
    assert bench.driver.status == ACKNOWLEDGE | DRIVER | FEATURES_OK


def test_driver_features_are_fixed_once_features_ok_is_set(bench: Bench) -> None:
    bench.driver.negotiate([])
    bench.driver.write_features(OFFERED)
    bench.write(Register.Status, ALL_STEPS)
    assert (
        bench.transport.lifecycle.driver_features == bench.device.driver_features == 1 << VERSION_1
    )


def test_all_that_is_offered_is_accepted(bench: Bench) -> None:
    assert bench.driver.negotiate() == OFFERED


def test_the_same_features_are_accepted_again_after_a_reset(bench: Bench) -> None:
    bench.driver.negotiate()
    assert bench.driver.negotiate() == OFFERED


# The device status field (2.1, 3.1.1)


def test_the_status_shows_each_step_of_initialization(bench: Bench) -> None:
    seen = [bench.driver.status]
    for step in (ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK):
        if step == FEATURES_OK:
            bench.driver.write_features(1 << VERSION_1)
        bench.driver.set_status(step)
        seen.append(bench.driver.status)
    assert seen == [0, 1, 3, 11, 15]


def test_the_device_hears_of_each_step_once(bench: Bench) -> None:
    bench.driver.start([])
    bench.write(Register.Status, ALL_STEPS)
    assert bench.take_calls() == [("reset",), ("negotiated", 1 << VERSION_1), ("activate", 0, 1)]


def test_features_ok_and_driver_ok_may_come_in_one_write(bench: Bench) -> None:
    bench.driver.write_features(1 << VERSION_1)
    bench.write(Register.Status, ALL_STEPS)
    assert bench.driver.status == ALL_STEPS


def test_driver_ok_without_features_ok_is_ignored(bench: Bench) -> None:
    bench.write(Register.Status, ACKNOWLEDGE | DRIVER | DRIVER_OK)
    assert bench.driver.status == ACKNOWLEDGE | DRIVER
    assert bench.take_calls() == []


def test_driver_ok_beside_a_refused_features_ok_is_ignored(bench: Bench) -> None:
    bench.write(Register.Status, ALL_STEPS)
    assert bench.driver.status == ACKNOWLEDGE | DRIVER
    assert bench.take_calls() == []


@pytest.mark.parametrize("kept", [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK])
def test_the_driver_cannot_clear_a_status_bit(running: Bench, kept: DeviceStatus) -> None:
    running.write(Register.Status, kept)
    assert running.driver.status == ALL_STEPS


def test_the_driver_can_set_failed(running: Bench) -> None:
    running.driver.set_status(FAILED)
    assert running.driver.status == ALL_STEPS | FAILED


@pytest.mark.parametrize("bits", [16, 32, NEEDS_RESET, 0x100, 0xFFFF_FF00])
def test_the_driver_cannot_set_other_bits(running: Bench, bits: int) -> None:
    running.write(Register.Status, running.driver.status | bits)
    assert running.driver.status == ALL_STEPS


def test_only_zero_resets_not_a_write_whose_low_byte_is_zero(running: Bench) -> None:
    running.write(Register.Status, 0x100)
    assert running.driver.status == ALL_STEPS


def test_the_driver_cannot_clear_device_needs_reset(running: Bench) -> None:
    running.transport.lifecycle.needs_reset("for the test")
    running.write(Register.Status, ALL_STEPS)
    assert running.driver.status == ALL_STEPS | NEEDS_RESET


def test_a_running_driver_is_interrupted_when_the_device_needs_a_reset(running: Bench) -> None:
    running.transport.lifecycle.needs_reset("for the test")
    assert running.read(Register.InterruptStatus) == Interrupt.CONFIG_CHANGE
    assert running.line


def test_a_driver_that_is_not_up_is_not_interrupted_when_the_device_needs_a_reset(
    bench: Bench,
) -> None:
    bench.driver.negotiate()
    bench.transport.lifecycle.needs_reset("for the test")
    assert bench.driver.status & NEEDS_RESET
    assert bench.levels == []


def test_a_device_that_needs_a_reset_before_driver_ok_does_not_run_after_it(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, 4)
    bench.transport.lifecycle.needs_reset("for the test")
    bench.driver.set_status(DRIVER_OK)
    assert not bench.serves()


def test_no_used_buffer_notification_leaves_before_driver_ok(bench: Bench) -> None:
    bench.driver.negotiate()
    queue = bench.driver.set_up_queue(0, 4)
    bench.transport.lifecycle.used_buffer_notification(SplitQueue(bench.memory, 4, queue.areas))
    assert bench.read(Register.InterruptStatus) == 0
    assert bench.levels == []


# Reset (2.4, 4.2.2.1)


def _acknowledged(bench: Bench) -> None:
    bench.driver.set_status(ACKNOWLEDGE)


def _driver_found(bench: Bench) -> None:
    bench.driver.set_status(ACKNOWLEDGE, DRIVER)


def _negotiated(bench: Bench) -> None:
    bench.driver.negotiate()


def _queues_ready(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, 8)
    bench.driver.set_up_queue(1, 4)


def _up(bench: Bench) -> None:
    bench.driver.start()


def _interrupting(bench: Bench) -> None:
    bench.driver.start()
    assert bench.serves()
    bench.transport.lifecycle.config_changed()


def _failed(bench: Bench) -> None:
    bench.driver.start()
    bench.driver.set_status(FAILED)


def _broken(bench: Bench) -> None:
    bench.driver.start()
    bench.transport.lifecycle.needs_reset("for the test")


STEPS = [
    _acknowledged,
    _driver_found,
    _negotiated,
    _queues_ready,
    _up,
    _interrupting,
    _failed,
    _broken,
]


@pytest.mark.parametrize("step", STEPS)
def test_a_reset_clears_what_the_driver_sees(bench: Bench, step: Callable[[Bench], None]) -> None:
    step(bench)
    bench.driver.reset()
    seen = {name: bench.read(name) for name in (Register.Status, Register.InterruptStatus)}
    assert seen == {Register.Status: 0, Register.InterruptStatus: 0}
    for index in range(2):
        bench.write(Register.QueueSel, index)
        assert bench.read(Register.QueueReady) == 0
    assert not bench.line


@pytest.mark.parametrize("step", STEPS)
def test_a_reset_forgets_the_driver(bench: Bench, step: Callable[[Bench], None]) -> None:
    step(bench)
    bench.take_calls()
    bench.driver.reset()
    assert bench.take_calls() == [("reset",)]
    assert bench.device.queues == {}
    assert bench.transport.lifecycle.driver_features == 0


@pytest.mark.parametrize("step", STEPS)
def test_the_device_works_after_a_reset(bench: Bench, step: Callable[[Bench], None]) -> None:
    step(bench)
    bench.driver.start()
    assert bench.driver.status == ALL_STEPS
    assert bench.serves(0)
    assert bench.serves(1)


def test_a_kick_after_a_reset_touches_no_queue(running: Bench) -> None:
    running.offer()
    queue = running.driver.queues[0]
    running.write(Register.Status, 0)
    running.take_calls()
    running.driver.kick(0)
    assert queue.take_all_used() == []
    assert running.take_calls() == []


def test_a_used_buffer_notification_after_a_reset_goes_nowhere(running: Bench) -> None:
    queue = running.device.queues[0]
    running.driver.reset()
    running.transport.lifecycle.used_buffer_notification(queue)
    assert not running.line


def test_the_queues_of_the_last_driver_are_not_the_next_ones(running: Bench) -> None:
    queue = running.driver.queues[0]
    running.offer()
    running.driver.negotiate()
    running.driver.set_status(DRIVER_OK)
    running.driver.kick(0)
    assert queue.take_all_used() == []


def test_a_reset_gives_selectors_and_features_their_first_values(bench: Bench) -> None:
    for register in (Register.DeviceFeaturesSel, Register.DriverFeaturesSel, Register.QueueSel):
        bench.write(register, 1)
    bench.write(Register.DriverFeatures, 1)
    bench.driver.reset()
    assert bench.read(Register.DeviceFeatures) == OFFERED & 0xFFFF_FFFF
    assert bench.read(Register.QueueSizeMax) == QUEUE_SIZES[0]
    bench.write(Register.DriverFeatures, 1 << FAKE_FEATURE)
    assert bench.transport.lifecycle.driver_features == 1 << FAKE_FEATURE


def test_a_reset_gives_the_queue_size_its_first_value(bench: Bench) -> None:
    bench.write(Register.QueueSize, 0)
    bench.driver.negotiate()
    queue = bench.driver.set_up_queue(0, 8)
    bench.write(Register.QueueReady, 0)
    bench.write(Register.QueueSize, 2)
    bench.driver.negotiate()
    for low, address in (
        (Register.QueueDescLow, queue.areas.descriptor),
        (Register.QueueDriverLow, queue.areas.driver),
        (Register.QueueDeviceLow, queue.areas.device),
    ):
        bench.write(low, address)
    bench.write(Register.QueueReady, 1)
    bench.driver.set_status(DRIVER_OK)
    assert bench.device.queues[0].size == QUEUE_SIZES[0]


# Configuration space (2.5) and ConfigGeneration


def test_config_generation_changes_when_the_configuration_does(running: Bench) -> None:
    seen = [running.read(Register.ConfigGeneration)]
    for _ in range(3):
        running.transport.lifecycle.config_changed()
        seen.append(running.read(Register.ConfigGeneration))
    assert len(set(seen)) == 4


def test_config_generation_stays_while_nothing_changes(running: Bench) -> None:
    before = running.read(Register.ConfigGeneration)
    running.driver.read_config(0, 4)
    assert running.serves()
    assert running.read(Register.ConfigGeneration) == before


def test_config_generation_wraps_at_32_bits(bench: Bench) -> None:
    bench.transport.lifecycle.config_generation = 0xFFFF_FFFF
    bench.transport.lifecycle.config_changed()
    assert bench.read(Register.ConfigGeneration) == 0


def test_a_change_of_configuration_interrupts_a_driver_that_is_up(running: Bench) -> None:
    running.transport.lifecycle.config_changed()
    assert running.driver.interrupts() == Interrupt.CONFIG_CHANGE


def test_a_change_of_configuration_does_not_interrupt_a_driver_that_is_not_up(
    bench: Bench,
) -> None:
    bench.driver.negotiate()
    bench.transport.lifecycle.config_changed()
    assert bench.levels == []


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("offset", range(8))
def test_the_configuration_reads_in_8_16_and_32_bits_at_any_byte(
    bench: Bench, offset: int, size: int
) -> None:
    assert bench.transport.read(0x100 + offset, size) == CONFIG[offset : offset + size]


def test_the_configuration_can_be_read_before_features_ok(bench: Bench) -> None:
    assert bench.driver.read_config(0, 8) == int.from_bytes(CONFIG[:8], "little")


def test_a_configuration_read_over_the_end_is_filled_with_zeroes(bench: Bench) -> None:
    assert bench.transport.read(0x100 + 10, 4) == CONFIG[10:] + bytes(2)


@pytest.mark.parametrize("offset", [12, 13, 0x800, 0xEFC])
def test_a_configuration_read_past_the_end_is_zero(bench: Bench, offset: int) -> None:
    assert bench.transport.read(0x100 + offset, 4) == bytes(4)


@pytest.mark.parametrize("size", [3, 8])
def test_the_configuration_reads_as_its_bytes_in_any_other_width(bench: Bench, size: int) -> None:
    assert bench.transport.read(0x100, size) == CONFIG[:size]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_configuration_write_reaches_the_device(bench: Bench, size: int) -> None:
    bench.transport.write(0x104, b"\x77" * size)
    assert bench.take_calls() == [("write_config", 4, b"\x77" * size)]


@pytest.mark.parametrize(("offset", "size"), [(9, 4), (11, 2), (12, 1), (0xEFF, 1)])
def test_a_configuration_write_past_the_end_does_not_reach_the_device(
    bench: Bench, offset: int, size: int
) -> None:
    bench.transport.write(0x100 + offset, bytes(size))
    assert bench.take_calls() == []


# Queues: set-up (4.2.3.2)


@pytest.mark.parametrize(("index", "size"), [(0, 8), (1, 4), (2, 0), (0xFFFF, 0), (1 << 31, 0)])
def test_queue_size_max_is_zero_for_a_queue_that_is_absent(
    bench: Bench, index: int, size: int
) -> None:
    assert bench.driver.queue_size_max(index) == size


def test_writes_to_the_registers_of_an_absent_queue_are_ignored(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.write(Register.QueueSel, 2)
    for register in (Register.QueueSize, Register.QueueDescHigh, Register.QueueReady):
        bench.write(register, 1)
    bench.write(Register.QueueReset, 1)
    assert bench.read(Register.QueueReady) == 0
    bench.driver.start()
    assert bench.serves(0)


def test_queue_ready_reads_back_for_the_selected_queue(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(1, 4)
    seen = []
    for index in range(3):
        bench.write(Register.QueueSel, index)
        seen.append(bench.read(Register.QueueReady))
    assert seen == [0, 1, 0]


def test_the_addresses_of_a_queue_have_64_bits(bench: Bench) -> None:
    bench.driver.negotiate()
    for low in (Register.QueueDescLow, Register.QueueDriverLow, Register.QueueDeviceLow):
        bench.write(low, low)
        bench.write(low + 4, 1)
    bench.write(Register.QueueReady, 1)
    queue = bench.transport.lifecycle.queue_config(0)
    assert queue is not None
    areas = (queue.descriptor_area, queue.driver_area, queue.device_area)
    assert areas == (0x1_0000_0080, 0x1_0000_0090, 0x1_0000_00A0)


def test_the_halves_of_an_address_can_be_written_in_either_order(bench: Bench) -> None:
    bench.write(Register.QueueDescHigh, 0xFFFF_FFFF)
    bench.write(Register.QueueDescLow, 0x1000)
    bench.write(Register.QueueDescHigh, 0)
    queue = bench.transport.lifecycle.queue_config(0)
    assert queue is not None
    assert queue.descriptor_area == 0x1000


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_queue_may_have_any_power_of_2_up_to_queue_size_max(bench: Bench, size: int) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, size)
    bench.driver.set_status(DRIVER_OK)
    assert [bench.serves() for _ in range(10)] == [True] * 10


def test_the_driver_may_leave_a_queue_out(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(1, 4)
    bench.driver.set_status(DRIVER_OK)
    assert bench.take_calls()[-1] == ("activate", 1)
    assert bench.serves(1)


def _offer_indirect(bench: Bench) -> list[Used]:
    table, buffer = bench.driver.allocator.take(16, 16), bench.driver.allocator.take(4)
    queue = bench.driver.queues[0]
    queue.add([Piece(buffer, 4, writable=True)], direct=0, table=table)
    return bench.driver.collect(0)


def test_indirect_descriptors_work_where_they_were_negotiated(bench: Bench) -> None:
    bench.driver.start([Feature.VIRTIO_F_INDIRECT_DESC])
    assert [used.length for used in _offer_indirect(bench)] == [4]


def test_indirect_descriptors_are_refused_where_they_were_not_negotiated(bench: Bench) -> None:
    bench.driver.start([])
    assert [used.length for used in _offer_indirect(bench)] == [0]
    assert ("serve", 0, b"") not in bench.take_calls()


def test_used_event_holds_the_interrupt_back_where_it_was_negotiated(bench: Bench) -> None:
    bench.driver.start([Feature.VIRTIO_F_EVENT_IDX])
    bench.driver.queues[0].used_event[0] = 1
    lines = [(bench.serves(), bench.line) for _ in range(2)]
    assert lines == [(True, False), (True, True)]


def test_used_event_means_nothing_where_it_was_not_negotiated(bench: Bench) -> None:
    bench.driver.start([])
    bench.driver.queues[0].used_event[0] = 1
    assert bench.serves()
    assert bench.line


BAD_QUEUES: dict[str, Callable[[Bench], None]] = {
    "size above the maximum": lambda bench: bench.set_up(0, size=16),
    "huge size": lambda bench: bench.set_up(0, size=0xFFFF_FFFF),
    "size 0": lambda bench: bench.set_up(0, size=0),
    "size no power of 2": lambda bench: bench.set_up(0, size=6),
    "descriptors outside memory": lambda bench: bench.set_up(0, descriptors=MEMORY_SIZE),
    "descriptors partly outside memory": lambda bench: bench.set_up(
        0, descriptors=MEMORY_SIZE - 16
    ),
    "descriptors at the top of the address space": lambda bench: bench.set_up(
        0, descriptors=0xFFFF_FFFF_FFFF_FFF0
    ),
    "misaligned descriptors": lambda bench: bench.set_up(0, descriptors=0x1008),
}
bad_queues = pytest.mark.parametrize("set_up", BAD_QUEUES.values(), ids=BAD_QUEUES)


@bad_queues
def test_a_queue_that_cannot_be_makes_the_device_need_a_reset_at_driver_ok(
    bench: Bench, set_up: Callable[[Bench], None]
) -> None:
    bench.driver.negotiate()
    set_up(bench)
    assert not bench.driver.status & NEEDS_RESET
    bench.driver.set_status(DRIVER_OK)
    assert bench.driver.status == ALL_STEPS | NEEDS_RESET
    assert bench.read(Register.InterruptStatus) == Interrupt.CONFIG_CHANGE
    assert bench.line


@bad_queues
def test_a_queue_that_cannot_be_makes_a_running_device_need_a_reset(
    bench: Bench, set_up: Callable[[Bench], None]
) -> None:
    bench.driver.negotiate()
    bench.driver.set_status(DRIVER_OK)
    set_up(bench)
    assert bench.driver.status == ALL_STEPS | NEEDS_RESET
    assert bench.driver.interrupts() == Interrupt.CONFIG_CHANGE
    assert bench.take_calls()[-1] == ("activate",)


@bad_queues
def test_beside_a_queue_that_cannot_be_no_other_is_served(
    bench: Bench, set_up: Callable[[Bench], None]
) -> None:
    bench.driver.negotiate()
    set_up(bench)
    bench.driver.set_up_queue(1, 4)
    bench.driver.set_status(DRIVER_OK)
    assert not bench.serves(1)


@bad_queues
def test_the_device_works_after_the_reset_that_a_bad_queue_needs(
    bench: Bench, set_up: Callable[[Bench], None]
) -> None:
    bench.driver.negotiate()
    set_up(bench)
    bench.driver.set_status(DRIVER_OK)
    bench.driver.start()
    assert bench.driver.status == ALL_STEPS
    assert bench.serves()


LOCKED = [Register.QueueSize, Register.QueueDescLow, Register.QueueDescHigh]
LOCKED += [Register.QueueDriverLow, Register.QueueDriverHigh]
LOCKED += [Register.QueueDeviceLow, Register.QueueDeviceHigh]


@pytest.mark.parametrize("register", LOCKED)
def test_the_registers_of_a_ready_queue_are_locked(bench: Bench, register: Register) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, 4)
    bench.write(register, 1)
    bench.driver.set_status(DRIVER_OK)
    assert [bench.serves() for _ in range(3)] == [True] * 3


def test_a_queue_may_be_made_ready_after_driver_ok(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_status(DRIVER_OK)
    bench.driver.set_up_queue(0, 4)
    assert bench.take_calls()[-1] == ("start_queue", 0)
    assert bench.serves()


# Queues: stopping and resetting them (4.2.2, 2.6.1)


def test_queue_ready_0_stops_the_queue(running: Bench) -> None:
    running.write(Register.QueueSel, 0)
    running.write(Register.QueueReady, 0)
    assert running.read(Register.QueueReady) == 0
    assert running.take_calls() == [("stop_queue", 0)]
    assert not running.serves(0)
    assert running.serves(1)


def test_a_stopped_queue_can_be_set_up_again(running: Bench) -> None:
    running.write(Register.QueueSel, 0)
    running.write(Register.QueueReady, 0)
    running.driver.set_up_queue(0, 2)
    assert running.serves()


def test_writing_1_to_queue_ready_twice_starts_the_queue_once(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_status(DRIVER_OK)
    bench.driver.set_up_queue(0, 4)
    assert bench.serves()
    bench.take_calls()
    bench.write(Register.QueueReady, 1)
    assert bench.take_calls() == []
    assert bench.serves()


def test_a_queue_stopped_before_driver_ok_is_not_started_by_it(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, 4)
    bench.write(Register.QueueReady, 0)
    bench.driver.set_status(DRIVER_OK)
    assert bench.take_calls()[-1] == ("activate",)


def test_queue_reset_stops_the_selected_queue_alone(running: Bench) -> None:
    running.write(Register.QueueSel, 0)
    running.write(Register.QueueReset, 1)
    assert (running.read(Register.QueueReset), running.read(Register.QueueReady)) == (0, 0)
    assert running.take_calls() == [("stop_queue", 0)]
    assert not running.serves(0)
    assert running.serves(1)


def test_a_queue_that_was_reset_starts_anew_with_other_parameters(running: Bench) -> None:
    assert running.serves()
    running.write(Register.QueueSel, 0)
    running.write(Register.QueueReset, 1)
    running.driver.set_up_queue(0, 2)
    queue = running.device.queues[0]
    assert (queue.size, queue.state) == (2, QueueState())
    assert [running.serves() for _ in range(3)] == [True] * 3


def test_queue_reset_gives_the_queue_size_its_first_value(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.write(Register.QueueSize, 2)
    bench.write(Register.QueueReset, 1)
    queue = bench.transport.lifecycle.queue_config(0)
    assert queue is not None
    assert queue.size == QUEUE_SIZES[0]


def test_queue_reset_is_ignored_unless_it_was_negotiated(bench: Bench) -> None:
    bench.driver.start([])
    bench.take_calls()
    bench.write(Register.QueueSel, 0)
    bench.write(Register.QueueReset, 1)
    assert bench.read(Register.QueueReady) == 1
    assert bench.take_calls() == []
    assert bench.serves()


def test_queue_reset_is_ignored_before_it_is_negotiated(bench: Bench) -> None:
    bench.driver.write_features(feature_mask([VERSION_1, RING_RESET]))
    bench.driver.set_up_queue(0, 4)
    bench.write(Register.QueueReset, 1)
    assert bench.read(Register.QueueReady) == 1


@pytest.mark.parametrize("value", [0, 2, 0xFFFF_FFFF])
def test_only_1_resets_a_queue(running: Bench, value: int) -> None:
    running.write(Register.QueueSel, 0)
    running.write(Register.QueueReset, value)
    assert running.serves()


def test_queue_reset_does_not_mend_a_device_that_needs_a_reset(running: Bench) -> None:
    running.transport.lifecycle.needs_reset("for the test")
    running.write(Register.QueueSel, 0)
    running.write(Register.QueueReset, 1)
    running.driver.set_up_queue(0, 4)
    assert not running.serves()


# Kicks (4.2.3.3) and interrupts (4.2.3.4)


def test_a_kick_reaches_the_queue_that_it_names(running: Bench) -> None:
    running.driver.kick(1)
    running.driver.kick(0)
    assert running.take_calls() == [("handle", 1), ("handle", 0)]


@pytest.mark.parametrize("index", [2, 0xFFFF, 0x1_0000, 0xFFFF_FFFF])
def test_a_kick_of_an_absent_queue_is_ignored(running: Bench, index: int) -> None:
    running.write(Register.QueueNotify, index)
    assert running.take_calls() == []


def test_a_kick_of_a_queue_that_is_not_ready_is_ignored(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(1, 4)
    bench.driver.set_status(DRIVER_OK)
    bench.take_calls()
    bench.driver.kick(0)
    assert bench.take_calls() == []


def test_a_kick_before_driver_ok_consumes_no_buffer(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, 4)
    bench.take_calls()
    bench.offer()
    assert bench.driver.collect(0) == []
    assert bench.take_calls() == []


def test_a_buffer_offered_before_driver_ok_is_used_at_the_next_kick(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, 4)
    bench.offer()
    bench.driver.kick(0)
    bench.driver.set_status(DRIVER_OK)
    assert bench.driver.collect(0) == [Used(0, 4)]


def test_a_kick_of_a_device_that_needs_a_reset_is_ignored(running: Bench) -> None:
    running.transport.lifecycle.needs_reset("for the test")
    assert not running.serves()
    assert running.take_calls() == []


def test_a_broken_ring_makes_the_device_need_a_reset(running: Bench) -> None:
    queue = running.driver.queues[0]
    queue.available.idx = queue.size + 1
    running.driver.kick(0)
    assert running.driver.status == ALL_STEPS | NEEDS_RESET
    assert running.driver.interrupts() == Interrupt.CONFIG_CHANGE


def test_a_used_buffer_raises_the_line_until_it_is_acknowledged(running: Bench) -> None:
    assert running.serves()
    assert (running.read(Register.InterruptStatus), running.line) == (1, True)
    running.write(Register.InterruptACK, Interrupt.USED_BUFFER)
    assert (running.read(Register.InterruptStatus), running.line) == (0, False)


def test_the_line_stays_up_until_the_last_event_is_acknowledged(running: Bench) -> None:
    assert running.serves()
    running.transport.lifecycle.config_changed()
    assert running.read(Register.InterruptStatus) == 3
    running.write(Register.InterruptACK, Interrupt.USED_BUFFER)
    assert (running.read(Register.InterruptStatus), running.line) == (2, True)
    running.write(Register.InterruptACK, Interrupt.CONFIG_CHANGE)
    assert (running.read(Register.InterruptStatus), running.line) == (0, False)


def test_what_came_since_interrupt_status_was_read_gets_an_edge_of_its_own(
    running: Bench,
) -> None:
    running.transport.lifecycle.used_buffer_notification(running.device.queues[0])
    seen = running.read(Register.InterruptStatus)
    running.transport.lifecycle.config_changed()
    del running.levels[:]
    running.write(Register.InterruptACK, seen)
    assert running.levels == [False, True]
    assert running.read(Register.InterruptStatus) == Interrupt.CONFIG_CHANGE


def test_acknowledging_what_did_not_happen_changes_nothing(running: Bench) -> None:
    assert running.serves()
    running.write(Register.InterruptACK, 0xFFFF_FFFE)
    assert (running.read(Register.InterruptStatus), running.line) == (1, True)


def test_reading_interrupt_status_acknowledges_nothing(running: Bench) -> None:
    assert running.serves()
    running.read(Register.InterruptStatus)
    assert (running.read(Register.InterruptStatus), running.line) == (1, True)


def test_acknowledging_with_the_line_low_leaves_it_alone(running: Bench) -> None:
    running.write(Register.InterruptACK, 3)
    assert running.levels == []


def test_a_buffer_that_comes_before_kicks_are_asked_for_again_needs_none(
    running: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2.7.10: notify() is called for the buffer, and once more before handle() asks for kicks.
    calls: list[Virtqueue] = []

    def notify(queue: Virtqueue) -> None:
        calls.append(queue)
        if len(calls) == 2:
            running.offer()

    monkeypatch.setattr(running.device, "notify", notify)
    running.offer()
    assert [used.length for used in running.driver.collect(0)] == [4, 4]


# Shared memory (4.2.2)


@pytest.mark.parametrize("region", [0, 1, 0xFF, 0xFFFF_FFFF])
def test_there_is_no_shared_memory_region(bench: Bench, region: int) -> None:
    bench.write(Register.SHMSel, region)
    registers = (Register.SHMLenLow, Register.SHMLenHigh, Register.SHMBaseLow, Register.SHMBaseHigh)
    assert {bench.read(register) for register in registers} == {0xFFFF_FFFF}


# Whatever the guest does


registers = st.sampled_from(sorted(Register))
offsets = st.one_of(registers, st.integers(0, 0xFFF))
#: Values that mean something somewhere are likelier than chance would have them.
words = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 8, 11, 15, 0x1000, 0x2000, 0x3000, MEMORY_SIZE - 64]),
    st.integers(0, 0xFFFF_FFFF),
)
accesses = st.one_of(
    st.tuples(st.just("write"), registers, words.map(lambda word: word.to_bytes(4, "little"))),
    st.tuples(
        st.just("write"),
        offsets,
        st.sampled_from([1, 2, 4, 8]).flatmap(lambda n: st.binary(min_size=n, max_size=n)),
    ),
    st.tuples(st.just("read"), offsets, st.sampled_from([1, 2, 4, 8]).map(bytes)),
    st.tuples(st.just("initialize"), st.just(0), st.just(b"")),
    st.tuples(st.just("corrupt"), st.integers(0, 0x3FF), st.binary(min_size=1, max_size=16)),
)


@given(st.lists(accesses, max_size=40))
def test_whatever_the_driver_does_it_can_reset_the_device_and_go_on(
    script: list[tuple[str, int, bytes]],
) -> None:
    with bench_of() as bench:
        for what, offset, data in script:
            if what == "read":
                assert len(bench.transport.read(offset, len(data))) == len(data)
            elif what == "write":
                bench.transport.write(offset, data)
            elif what == "initialize":
                bench.driver.start()
            else:
                # The rings of the first initialization, if there was one.
                bench.memory.write(0x1000 + offset, data)
            assert bench.line == bool(bench.transport.interrupt.events)
        bench.driver.start()
        assert bench.driver.status == ALL_STEPS
        assert bench.serves(0)
        assert bench.serves(1)

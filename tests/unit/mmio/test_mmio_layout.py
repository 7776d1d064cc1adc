"""Virtio over MMIO (4.2): the register layout (4.2.2)."""

import pytest

from tests.unit.mmio.bench import CONFIG, OFFERED, QUEUE_SIZES, WRITE_ONLY, Bench, bench_of
from virtiopy.spec import DeviceId
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Interrupt, Register

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
READ_WRITE = [0x044, 0x070, 0x0C0]
READ_ONLY = [offset for offset in READABLE if offset not in READ_WRITE]
UNDEFINED = [
    offset for offset in range(0, 0x100, 4) if offset not in READABLE and offset not in WRITE_ONLY
]


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

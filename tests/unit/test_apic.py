import pytest

from virtiopy.accel.tcg.apic import (
    IOREGSEL,
    IOWIN,
    LEGACY_PORTS,
    ApicRegister,
    InterruptChips,
    IoApicRegister,
    LocalApic,
)

ENABLED = 1 << 8 | 0xFF
MASKED = 1 << 16
LEVEL = 1 << 15
REMOTE_IRR = 1 << 14
LOGICAL = 1 << 11


def make_local_apic() -> tuple[LocalApic, list[int]]:
    ended: list[int] = []
    apic = LocalApic(ended.append)
    apic.write(ApicRegister.SPURIOUS_INTERRUPT_VECTOR, ENABLED)
    return apic, ended


def test_a_request_is_pending_until_acknowledged_and_in_service_until_its_end() -> None:
    apic, _ = make_local_apic()

    apic.request(0x41, level=False)
    assert apic.pending() == 0x41
    assert apic.read(ApicRegister.INTERRUPT_REQUEST + 0x20) == 1 << 1

    assert apic.acknowledge() == 0x41
    assert apic.pending() is None
    assert apic.read(ApicRegister.IN_SERVICE + 0x20) == 1 << 1
    assert apic.read(ApicRegister.PROCESSOR_PRIORITY) == 0x40

    apic.write(ApicRegister.EOI, 0)
    assert apic.read(ApicRegister.IN_SERVICE + 0x20) == 0
    assert apic.read(ApicRegister.PROCESSOR_PRIORITY) == 0


def test_only_a_higher_class_interrupts_a_handler() -> None:
    apic, _ = make_local_apic()
    apic.request(0x41, level=False)
    apic.acknowledge()

    apic.request(0x4F, level=False)
    assert apic.pending() is None
    apic.request(0x50, level=False)
    assert apic.acknowledge() == 0x50
    apic.write(ApicRegister.EOI, 0)
    apic.write(ApicRegister.EOI, 0)
    assert apic.acknowledge() == 0x4F


def test_the_task_priority_holds_its_class_and_those_below_off() -> None:
    apic, _ = make_local_apic()
    apic.write(ApicRegister.TASK_PRIORITY, 0x40)
    apic.request(0x4F, level=False)
    assert apic.pending() is None
    apic.request(0x50, level=False)
    assert apic.pending() == 0x50
    apic.write(ApicRegister.TASK_PRIORITY, 0)
    assert apic.acknowledge() == 0x50


def test_a_second_request_of_a_vector_in_service_is_kept() -> None:
    apic, _ = make_local_apic()
    apic.request(0x41, level=False)
    apic.acknowledge()
    apic.request(0x41, level=False)
    apic.write(ApicRegister.EOI, 0)
    assert apic.acknowledge() == 0x41


def test_a_disabled_apic_takes_no_request() -> None:
    apic = LocalApic(lambda vector: None)
    apic.request(0x41, level=False)
    assert apic.pending() is None


@pytest.mark.parametrize("vector", [0, 15])
def test_an_illegal_vector_is_not_taken(vector: int) -> None:
    apic, _ = make_local_apic()
    apic.request(vector, level=False)
    assert apic.pending() is None


def test_the_end_of_a_level_triggered_interrupt_alone_is_broadcast() -> None:
    apic, ended = make_local_apic()
    apic.write(ApicRegister.EOI, 0)
    for vector, level in ((0x41, False), (0x52, True)):
        apic.request(vector, level=level)
        apic.acknowledge()
        apic.write(ApicRegister.EOI, 0)
    assert ended == [0x52]


def test_a_register_that_is_not_modelled_reads_as_0() -> None:
    apic, _ = make_local_apic()
    apic.write(0x380, 1000)
    assert apic.read(0x380) == 0


def make_chips(gsi: int, low: int, high: int = 0) -> InterruptChips:
    """Chips whose pin `gsi` is routed by an entry of these two halves."""
    chips = InterruptChips()
    chips.local_apic.write(ApicRegister.SPURIOUS_INTERRUPT_VECTOR, ENABLED)
    for half, value in ((1, high), (0, low)):
        chips.io_apic.write(IOREGSEL, IoApicRegister.REDIRECTION_TABLE + 2 * gsi + half)
        chips.io_apic.write(IOWIN, value)
    return chips


def read_entry(chips: InterruptChips, gsi: int) -> int:
    chips.io_apic.write(IOREGSEL, IoApicRegister.REDIRECTION_TABLE + 2 * gsi)
    return chips.io_apic.read(IOWIN)


def test_the_ioapic_says_that_it_has_24_pins() -> None:
    chips = InterruptChips()
    chips.io_apic.write(IOREGSEL, IoApicRegister.VERSION)
    assert chips.io_apic.read(IOREGSEL) == IoApicRegister.VERSION
    assert chips.io_apic.read(IOWIN) >> 16 == 23


def test_an_entry_is_masked_after_reset() -> None:
    assert read_entry(InterruptChips(), 23) == MASKED


def test_a_rising_edge_is_one_interrupt_however_long_the_line_is_high() -> None:
    chips = make_chips(16, 0x41)
    chips.io_apic.set_line(16, True)
    assert chips.local_apic.acknowledge() == 0x41
    chips.local_apic.write(ApicRegister.EOI, 0)
    chips.io_apic.set_line(16, True)
    assert chips.local_apic.pending() is None

    chips.io_apic.set_line(16, False)
    chips.io_apic.set_line(16, True)
    assert chips.local_apic.pending() == 0x41


def test_an_edge_at_a_masked_pin_is_lost() -> None:
    chips = make_chips(16, MASKED | 0x41)
    chips.io_apic.set_line(16, True)
    chips.io_apic.write(IOWIN, 0x41)
    assert chips.local_apic.pending() is None


def test_a_level_is_sent_again_after_its_end_while_the_line_is_high() -> None:
    chips = make_chips(16, LEVEL | 0x41)
    chips.io_apic.set_line(16, True)
    assert chips.local_apic.acknowledge() == 0x41
    assert read_entry(chips, 16) & REMOTE_IRR

    chips.local_apic.write(ApicRegister.EOI, 0)
    assert chips.local_apic.acknowledge() == 0x41
    chips.io_apic.set_line(16, False)
    chips.local_apic.write(ApicRegister.EOI, 0)
    assert chips.local_apic.pending() is None
    assert not read_entry(chips, 16) & REMOTE_IRR


def test_a_level_at_a_masked_pin_is_sent_when_unmasked() -> None:
    chips = make_chips(16, MASKED | LEVEL | 0x41)
    chips.io_apic.set_line(16, True)
    chips.io_apic.write(IOWIN, LEVEL | 0x41)
    assert chips.local_apic.pending() == 0x41


@pytest.mark.parametrize(
    ("low", "destination", "arrives"),
    [
        (0x41, 0, True),
        (0x41, 0xFF, True),
        (0x41, 3, False),
        (LOGICAL | 0x41, 0x02, True),
        (LOGICAL | 0x41, 0x01, False),
        (1 << 8 | 0x41, 0, True),  # lowest priority
        (4 << 8 | 0x41, 0, False),  # NMI: there is none
    ],
)
def test_a_message_goes_where_its_entry_says(low: int, destination: int, arrives: bool) -> None:
    chips = make_chips(16, low, destination << 24)
    chips.local_apic.write(ApicRegister.LOGICAL_DESTINATION, 0x02 << 24)
    chips.io_apic.set_line(16, True)
    assert (chips.local_apic.pending() is not None) == arrives


def test_the_read_only_bits_of_an_entry_stay() -> None:
    chips = make_chips(16, LEVEL | 0x41)
    chips.io_apic.set_line(16, True)
    chips.io_apic.write(IOWIN, LEVEL | 0x42)
    assert read_entry(chips, 16) == LEVEL | REMOTE_IRR | 0x42


def test_the_old_ports_read_as_written() -> None:
    chips = InterruptChips()
    for port in LEGACY_PORTS:
        chips.write_port(port, port & 0xFF)
    assert all(chips.read_port(port) == port & 0xFF for port in LEGACY_PORTS)

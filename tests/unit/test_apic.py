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
    apic.write(0x3F0, 1000)
    assert apic.read(0x3F0) == 0


class Clock:
    """The time, in nanoseconds, as the test has it."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


PERIODIC = 1 << 17


def make_timer(entry: int, divide: int = 0xB) -> tuple[LocalApic, Clock]:
    """A local APIC whose timer counts nanoseconds, divided as is said: by 1."""
    clock = Clock()
    apic = LocalApic(lambda vector: None, clock)
    apic.write(ApicRegister.SPURIOUS_INTERRUPT_VECTOR, ENABLED)
    apic.write(ApicRegister.LVT_TIMER, entry)
    apic.write(ApicRegister.DIVIDE_CONFIGURATION, divide)
    return apic, clock


def test_a_one_shot_timer_interrupts_once() -> None:
    apic, clock = make_timer(0x41)
    apic.write(ApicRegister.INITIAL_COUNT, 1000)
    assert apic.deadline == clock.now + 1000

    clock.now += 999
    apic.run_timer()
    assert apic.read(ApicRegister.CURRENT_COUNT) == 1
    assert apic.pending() is None
    clock.now += 1
    apic.run_timer()
    assert apic.acknowledge() == 0x41
    assert apic.deadline is None
    clock.now += 10_000
    apic.run_timer()
    assert apic.read(ApicRegister.CURRENT_COUNT) == 0
    assert apic.read(ApicRegister.INTERRUPT_REQUEST + 0x20) == 0


def test_a_periodic_timer_keeps_its_beat_and_tells_missed_ones_once() -> None:
    apic, clock = make_timer(0x41 | PERIODIC)
    start = clock.now
    apic.write(ApicRegister.INITIAL_COUNT, 1000)

    clock.now = start + 1001
    apic.run_timer()
    assert apic.acknowledge() == 0x41
    apic.write(ApicRegister.EOI, 0)
    assert apic.deadline == start + 2000
    clock.now = start + 5500
    apic.run_timer()
    assert apic.acknowledge() == 0x41
    assert apic.deadline == start + 6000


@pytest.mark.parametrize(
    ("configuration", "divisor"),
    [(0x0, 2), (0x1, 4), (0x2, 8), (0x3, 16), (0x8, 32), (0x9, 64), (0xA, 128), (0xB, 1)],
)
def test_the_timer_divides_its_clock(configuration: int, divisor: int) -> None:
    apic, clock = make_timer(0x41, configuration)
    apic.write(ApicRegister.INITIAL_COUNT, 10)
    assert apic.deadline == clock.now + 10 * divisor
    assert apic.read(ApicRegister.DIVIDE_CONFIGURATION) == configuration


def test_a_masked_timer_runs_and_interrupts_nobody() -> None:
    apic, clock = make_timer(0x41 | MASKED)
    apic.write(ApicRegister.INITIAL_COUNT, 10)
    clock.now += 10
    apic.run_timer()
    assert apic.pending() is None
    assert apic.deadline is None


def test_an_initial_count_of_0_stops_the_timer() -> None:
    apic, _ = make_timer(0x41)
    apic.write(ApicRegister.INITIAL_COUNT, 10)
    apic.write(ApicRegister.INITIAL_COUNT, 0)
    assert apic.deadline is None


SELF, ALL, OTHERS = 1 << 18, 2 << 18, 3 << 18
NMI = 4 << 8


@pytest.mark.parametrize(
    ("command", "destination", "comes"),
    [
        pytest.param(SELF | 0x41, 0, True, id="self"),
        pytest.param(ALL | 0x41, 0, True, id="all"),
        pytest.param(OTHERS | 0x41, 0, False, id="others"),
        pytest.param(0x41, 0, True, id="by its ID"),
        pytest.param(0x41, 1, False, id="another's ID"),
        pytest.param(0x41, 0xFF, True, id="everybody's"),
        pytest.param(SELF | NMI | 0x41, 0, False, id="an NMI"),
    ],
)
def test_an_interrupt_command_reaches_those_whom_it_names(
    command: int, destination: int, comes: bool
) -> None:
    apic, _ = make_local_apic()
    apic.write(ApicRegister.INTERRUPT_COMMAND_HIGH, destination << 24)
    apic.write(ApicRegister.INTERRUPT_COMMAND, command)
    assert apic.pending() == (0x41 if comes else None)


@pytest.mark.parametrize("offset", range(0, 0x1000, 0x10))
def test_rubbish_in_any_register_raises_nothing(offset: int) -> None:
    apic, _ = make_local_apic()
    for value in (0, 0xFFFF_FFFF, 0x5A5A_5A5A):
        apic.write(offset, value)
        apic.read(offset)
        apic.run_timer()


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

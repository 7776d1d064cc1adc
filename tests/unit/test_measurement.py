import threading
import time
from collections import Counter

import pytest

from tests.patience import timed
from virtiopy.metrics.exitlog import ADDRESSES_MAX, ExitKind, ExitLog
from virtiopy.metrics.measurement import (
    MEASUREMENTS_MAX,
    PORT_NAME,
    Measurement,
    MeasurementPort,
)

KICK = ExitKind("MMIO", "net0", "QueueNotify", "write")
MARK = ExitKind("IO", PORT_NAME, "mark", "write")
BEGIN, END = b"\x01", b"\x00"


class Rig:
    """A port, and counters that grow when the test says so."""

    def __init__(self) -> None:
        self.exits = self.log = ExitLog()
        self.kernel: Counter[str] = Counter()
        self.reading_takes = 0.0  # seconds
        #: The rig is the one vCPU, too, and runs on the thread that made it.
        self.thread: threading.Thread | None = threading.current_thread()
        self.port = MeasurementPort([self], loop="devices")

    def statistics(self) -> dict[str, int]:
        _work_for(self.reading_takes)
        return dict(self.kernel)

    def mark(self, value: bytes) -> None:
        # As the machine does: the exit is counted, then it is answered.
        self.log.count(MARK)
        self.kernel["exits"] += 1
        self.port.write(0, value)

    def kick(self) -> None:
        self.log.count(KICK)
        self.kernel["exits"] += 1


def test_what_happens_between_the_marks_is_measured_and_nothing_else() -> None:
    rig = Rig()
    rig.kick()
    rig.mark(BEGIN)
    for _ in range(3):
        rig.kick()
    rig.mark(END)
    rig.kick()

    [measured] = rig.port.measurements
    assert measured.exits == {KICK: 3}
    assert measured.seconds > 0


def test_an_empty_measurement_takes_the_marks_out_of_the_kernels_count() -> None:
    rig = Rig()
    for kicks in (0, 3):
        rig.mark(BEGIN)
        for _ in range(kicks):
            rig.kick()
        rig.mark(END)

    marks, measured = rig.port.measurements
    assert (marks.kernel["exits"], measured.kernel["exits"]) == (1, 4)
    assert measured.without(marks).kernel["exits"] == 3
    assert measured.without(marks).exits == {KICK: 3}


def test_a_count_never_gets_negative_by_the_marks() -> None:
    marks, measured = (
        Measurement(Counter(), {"fpu_reload": n}, 0.0, {"vcpu": 0.0}) for n in (2, 1)
    )
    assert measured.without(marks).kernel == {"fpu_reload": 0}


def test_an_end_without_a_begin_is_nothing() -> None:
    rig = Rig()
    rig.mark(END)
    assert rig.port.measurements == []


def test_a_second_begin_begins_again() -> None:
    rig = Rig()
    rig.mark(BEGIN)
    rig.kick()
    rig.mark(BEGIN)
    rig.mark(END)

    [measured] = rig.port.measurements
    assert measured.exits == {}


def _work_for(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_cpu_time_is_told_by_thread() -> None:
    rig = Rig()
    go, done, over = threading.Event(), threading.Event(), threading.Event()

    def loop() -> None:
        go.wait()
        _work_for(0.05)
        done.set()
        over.wait()

    thread = threading.Thread(target=loop, name="devices")
    thread.start()
    rig.mark(BEGIN)
    _work_for(0.02)
    go.set()
    done.wait()
    rig.mark(END)
    over.set()
    thread.join()

    [measured] = rig.port.measurements
    spent = measured.cpu_seconds
    assert spent["loop"] >= 0.05
    assert 0.02 <= spent["vcpu"] <= measured.seconds
    assert (spent["workers"], spent["vhost"]) == (0, 0)


@timed
def test_time_that_reading_the_counters_takes_is_left_out() -> None:
    rig = Rig()
    rig.reading_takes = 0.1
    rig.mark(BEGIN)
    rig.mark(END)

    [measured] = rig.port.measurements
    assert measured.cpu_seconds["vcpu"] < 0.1


@pytest.mark.thorough
def test_marks_without_end_are_kept_up_to_a_number_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    for _ in range(MEASUREMENTS_MAX + 10):
        rig.mark(BEGIN)
        rig.mark(END)
    assert len(rig.port.measurements) == MEASUREMENTS_MAX
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_what_all_cpus_did_is_measured_and_their_time_added_up() -> None:
    first, second = Rig(), Rig()
    port = MeasurementPort([first, second], loop="devices")
    port.write(0, BEGIN)
    first.kick()
    for _ in range(2):
        second.kick()
    _work_for(0.02)
    port.write(0, END)

    [measured] = port.measurements
    assert measured.exits == {KICK: 3}
    assert measured.kernel["exits"] == 3
    # Both rigs are on this thread, whose time counts for each.
    assert measured.cpu_seconds["vcpu"] >= 0.04


def test_addresses_without_a_device_are_counted_one_by_one_up_to_a_number() -> None:
    log = ExitLog()
    for address in range(ADDRESSES_MAX + 10):
        log.count_unassigned("MMIO", address, "read")
    log.count_unassigned("MMIO", 0, "read")
    log.count_unassigned("IO", 1 << 20, "write")
    assert log.counts[ExitKind("MMIO", "unassigned", "0x0", "read")] == 2
    assert log.counts[ExitKind("MMIO", "unassigned", "other addresses", "read")] == 10
    assert log.counts[ExitKind("IO", "unassigned", "other addresses", "write")] == 1
    assert len(log.counts) == ADDRESSES_MAX + 2

"""The MMIO registers (4.2)."""

import pytest

from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.targets.hosts import BalloonHost, ConsoleHost, NetHost
from virtiopy.spec import DeviceStatus
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.registers import Interrupt, Register

RING_RESET = "VIRTIO_F_RING_RESET"


@pytest.mark.clause("4.2.2.1:1")
def test_magic_value(registers: MmioDriver) -> None:
    assert registers.read(Register.MagicValue) == 0x74726976


@pytest.mark.clause("4.2.2.1:2")
def test_version_is_2(registers: MmioDriver) -> None:
    assert registers.read(Register.Version) == 2


@pytest.mark.clause("4.2.2.1:3")
def test_the_bit_of_a_used_buffer_stays_set_until_it_is_acknowledged(
    session: Session, driver: DeviceDriver, registers: MmioDriver
) -> None:
    driver.start()
    driver.good()
    session.wait("InterruptStatus", lambda: registers.read(Register.InterruptStatus))
    for _ in range(3):
        assert registers.read(Register.InterruptStatus) & Interrupt.USED_BUFFER
    registers.write(Register.InterruptACK, Interrupt.USED_BUFFER)
    assert not registers.read(Register.InterruptStatus) & Interrupt.USED_BUFFER


@pytest.mark.clause("4.2.2.1:4")
def test_no_bit_of_interrupt_status_is_set_without_an_event(
    session: Session, driver: DeviceDriver, registers: MmioDriver
) -> None:
    session.start()
    session.never(
        "InterruptStatus shows an event, and there was none",
        lambda: registers.read(Register.InterruptStatus),
    )


def change_configuration(session: Session) -> None:
    """Have the host's side change a field of the configuration space."""
    host = session.host
    if isinstance(host, BalloonHost):
        host.set_target(1 << 20)
    elif isinstance(host, NetHost):
        host.link.set_up(up=False)
    elif isinstance(host, ConsoleHost):
        host.terminals[0].resize(132, 50)
    else:
        raise NotApplicableError("the suite cannot change the device's configuration")


@pytest.mark.clause("4.2.2.1:3", "4.2.2.1:6")
def test_a_configuration_change_moves_config_generation_and_is_notified(
    session: Session, driver: DeviceDriver, registers: MmioDriver
) -> None:
    driver.start()
    before = registers.read(Register.ConfigGeneration)
    change_configuration(session)
    session.wait("a configuration change notification", session.take_config_change)
    assert registers.read(Register.ConfigGeneration) != before
    assert not registers.read(Register.InterruptStatus) & Interrupt.CONFIG_CHANGE


@pytest.mark.clause("4.2.2.1:5")
def test_a_reset_clears_interrupt_status_and_every_queue_ready(
    session: Session, driver: DeviceDriver, registers: MmioDriver
) -> None:
    driver.start()
    driver.good()
    session.wait("InterruptStatus", lambda: registers.read(Register.InterruptStatus))
    count = session.queue_count
    session.reset()
    assert registers.read(Register.InterruptStatus) == 0
    for index in range(count):
        registers.write(Register.QueueSel, index)
        assert registers.read(Register.QueueReady) == 0, f"queue {index}"


@pytest.mark.clause("4.2.2.1:7")
@pytest.mark.parametrize("was_ready", [False, True], ids=["never ready", "ready before"])
def test_a_queue_that_is_not_ready_is_not_touched(
    session: Session, driver: DeviceDriver, registers: MmioDriver, *, was_ready: bool
) -> None:
    session.negotiate()
    queue = session.new_queue(driver.main_queue)
    session.queues[driver.main_queue] = queue
    registers.announce_queue(driver.main_queue, queue)
    if not was_ready:
        registers.write(Register.QueueReady, 0)
    registers.set_status(DeviceStatus.DRIVER_OK)
    if was_ready:
        driver.good()
        registers.write(Register.QueueSel, driver.main_queue)
        registers.write(Register.QueueReady, 0)
    used = queue.used_idx
    sent = driver.place(driver.good_request())
    queue.make_available(sent.head)
    session.kick(driver.main_queue)
    session.never("a queue was served that is not ready", lambda: queue.used_idx != used)


@pytest.mark.clause("4.2.2.1:8")
@pytest.mark.feature(RING_RESET)
def test_queue_reset_reads_0_after_a_device_reset(
    session: Session, driver: DeviceDriver, registers: MmioDriver
) -> None:
    driver.start()
    session.reset()
    for index in range(session.queue_count):
        registers.write(Register.QueueSel, index)
        assert registers.read(Register.QueueReset) == 0


@pytest.mark.clause("4.2.2.1:9")
@pytest.mark.feature(RING_RESET)
def test_queue_reset_reads_0_after_the_queue_is_enabled(
    session: Session, driver: DeviceDriver, registers: MmioDriver
) -> None:
    driver.start()
    for index in session.queues:
        registers.write(Register.QueueSel, index)
        assert registers.read(Register.QueueReset) == 0


@pytest.mark.clause("4.2.2.1:10", "4.2.2.1:11", "4.2.2.1:12")
@pytest.mark.feature(RING_RESET)
def test_writing_1_to_queue_reset_resets_the_queue(
    session: Session, driver: DeviceDriver, registers: MmioDriver
) -> None:
    driver.start()
    driver.good()
    registers.write(Register.QueueSel, driver.main_queue)
    registers.write(Register.QueueReset, 1)

    def done() -> bool:
        reading = registers.read(Register.QueueReset)
        assert reading in {0, 1}, f"QueueReset reads as {reading}"
        return reading == 0

    session.wait("the end of the queue's reset", done)
    assert registers.read(Register.QueueReady) == 0
    session.set_up_queue(driver.main_queue)
    driver.good()

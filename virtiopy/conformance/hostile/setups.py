"""What no driver may do before its device is live: status, features, queues (3.1, 4.2)."""

from collections.abc import Callable
from dataclasses import dataclass

from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.memory import END, HOLE
from virtiopy.spec import DeviceStatus
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.queue import QueueAreas

ACKNOWLEDGE, DRIVER = DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER
FEATURES_OK, DRIVER_OK = DeviceStatus.FEATURES_OK, DeviceStatus.DRIVER_OK

#: A queue that no device has, and more than any can have.
NO_QUEUES = (63, 1 << 16, 0xFFFF_FFFF)


@dataclass(slots=True, frozen=True)
class Steps:
    """What is done to a device out of any order: a name, and the section abused."""

    name: str
    section: str
    do: Callable[[Session], None]


def statuses(*values: int) -> Callable[[Session], None]:
    """Return what resets the device and writes these values to Status, with kicks in between."""

    def do(session: Session) -> None:
        session.write_status(0)
        for value in values:
            session.write_status(value)
            session.kick(0)

    return do


def live(*values: int) -> Callable[[Session], None]:
    """Return what writes these values to Status of a device that runs."""

    def do(session: Session) -> None:
        session.start()
        for value in values:
            session.write_status(value)
            session.kick(0)

    return do


def features_late(session: Session) -> None:
    """Write other features when the device has taken some, and when it is live."""
    session.negotiate()
    session.write_features(0)
    session.set_up_queue(0)
    session.driver_ok()
    session.write_features((1 << 64) - 1)
    session.kick(0)


def every_feature(session: Session) -> None:
    """Ask for every feature that there can be, and go on as if the device had taken them."""
    registers = session.registers
    session.reset()
    session.set_status(ACKNOWLEDGE, DRIVER)
    for word in (0, 1, 2, 3, 1000, 0xFFFF_FFFF):
        registers.write(Register.DriverFeaturesSel, word)
        registers.write(Register.DriverFeatures, 0xFFFF_FFFF)
    session.set_status(FEATURES_OK)
    session.set_up_queue(0)
    session.set_status(DRIVER_OK)
    session.kick(0)


def kicks_of_no_queue(session: Session) -> None:
    """Kick queues that are not there."""
    session.start()
    for index in NO_QUEUES:
        session.kick(index)


def kicks_without_queues(session: Session) -> None:
    """Kick queues that were not set up, before DRIVER_OK and after."""
    session.negotiate()
    count = session.queue_count
    for index in range(count):
        session.kick(index)
    session.driver_ok()
    for index in range(count):
        session.kick(index)


def no_queue_set_up(session: Session) -> None:
    """Set up, start and reset queues that are not there."""
    registers = session.registers
    session.start()
    for index in NO_QUEUES:
        queue = session.new_queue(0, 8)
        registers.announce_queue(index, queue)
        session.kick(index)
        registers.write(Register.QueueReset, 1)
        registers.write(Register.QueueReady, 0)


def queues_changed(session: Session) -> None:
    """Write sizes and addresses of queues that are ready."""
    registers = session.registers
    session.start()
    for index in range(session.queue_count):
        registers.write(Register.QueueSel, index)
        for register in (Register.QueueSize, Register.QueueDescLow, Register.QueueDriverHigh):
            registers.write(register, 0xFFFF_FFF0)
        registers.write(Register.QueueReady, 0xFFFF_FFFF)
        session.kick(index)


def ready_on_and_off(session: Session) -> None:
    """Make queues ready and not, over and over, while the device runs."""
    registers = session.registers
    session.start()
    for index in range(session.queue_count):
        registers.write(Register.QueueSel, index)
        for turn in range(6):
            registers.write(Register.QueueReady, turn & 1)
            session.kick(index)


def acknowledged(session: Session) -> None:
    """Acknowledge interrupts that were not, and cannot be."""
    registers = session.registers
    session.start()
    for value in (0xFFFF_FFFF, 0, 1 << 31):
        registers.write(Register.InterruptACK, value)


STATUSES = (
    Steps("driver-ok-at-once", "3.1.1", statuses(DRIVER_OK)),
    Steps("driver-ok-without-features-ok", "3.1.1", statuses(1, 3, 3 | DRIVER_OK)),
    Steps("features-ok-without-features", "3.1.1", statuses(1, 3, 3 | FEATURES_OK, 15)),
    Steps("every-bit-at-once", "2.1", statuses(0xFF)),
    Steps("bits-that-are-none", "2.1", statuses(0xFFFF_FF00, 0xFFFF_FFFF)),
    Steps("bits-backwards", "3.1.1", statuses(DRIVER_OK, FEATURES_OK, DRIVER, ACKNOWLEDGE)),
    Steps("failed-at-once", "2.1", statuses(DeviceStatus.FAILED)),
    Steps("bits-cleared-when-live", "2.1.1", live(ACKNOWLEDGE, DRIVER, 15, 7, 11)),
    Steps("failed-when-live", "2.1", live(DeviceStatus.FAILED | 15)),
    Steps("needs-reset-by-the-driver", "2.1", live(DeviceStatus.DEVICE_NEEDS_RESET | 15)),
    Steps("driver-ok-again-and-again", "3.1.1", live(15, 15, DRIVER_OK)),
    Steps("suspended-without-the-feature", "3.4", live(DeviceStatus.SUSPEND | 15)),
    Steps("reset-again-and-again", "2.4", live(0, 0, 0)),
    Steps("features-after-features-ok", "3.1.1", features_late),
    Steps("every-feature-there-can-be", "2.2.1", every_feature),
    Steps("kicks-of-no-queue", "4.2.2", kicks_of_no_queue),
    Steps("kicks-of-queues-not-set-up", "2.7.13.4", kicks_without_queues),
    Steps("no-queue-set-up", "4.2.2", no_queue_set_up),
    Steps("queues-changed-when-ready", "4.2.2.2", queues_changed),
    Steps("ready-on-and-off", "4.2.2.2", ready_on_and_off),
    Steps("interrupts-that-were-none", "4.2.2.2", acknowledged),
)


@dataclass(slots=True, frozen=True)
class Rings:
    """A virtqueue as no driver may announce it: what becomes of a good one's registers."""

    name: str
    section: str
    size: Callable[[int], int] = lambda most: min(most, 8)
    parts: Callable[[QueueAreas], QueueAreas] = lambda parts: parts


def table(change: Callable[[int], int]) -> Callable[[QueueAreas], QueueAreas]:
    """Return what moves the descriptor table."""
    return lambda p: QueueAreas(change(p.descriptor), p.driver, p.device)


def available(change: Callable[[int], int]) -> Callable[[QueueAreas], QueueAreas]:
    """Return what moves the available ring."""
    return lambda p: QueueAreas(p.descriptor, change(p.driver), p.device)


def used(change: Callable[[int], int]) -> Callable[[QueueAreas], QueueAreas]:
    """Return what moves the used ring."""
    return lambda p: QueueAreas(p.descriptor, p.driver, change(p.device))


def to(address: int) -> Callable[[int], int]:
    """Return what moves a part to an address."""
    return lambda before: address


def by(offset: int) -> Callable[[int], int]:
    """Return what moves a part by so many bytes."""
    return lambda before: before + offset


ALL_RINGS = (
    Rings("size-0", "2.7", lambda most: 0),
    Rings("size-3", "2.7", lambda most: 3),
    Rings("size-above-the-most", "4.2.2.2", lambda most: 2 * most),
    Rings("size-65536", "2.7", lambda most: 1 << 16),
    Rings("size-ffffffff", "2.7", lambda most: 0xFFFF_FFFF),
    Rings("table-misaligned", "2.7.1", parts=table(by(8))),
    Rings("available-misaligned", "2.7.1", parts=available(by(1))),
    Rings("used-misaligned", "2.7.1", parts=used(by(2))),
    Rings("table-in-hole", "2.7", parts=table(to(HOLE))),
    Rings("available-into-hole", "2.7", parts=available(to(HOLE - 2))),
    Rings("used-into-hole", "2.7", parts=used(to(HOLE - 8))),
    Rings("table-past-end", "2.7", parts=table(to(END - 16))),
    Rings("available-wraps-2-to-64", "2.7", parts=available(to((1 << 64) - 2))),
    Rings("used-at-the-top", "2.7", parts=used(to((1 << 64) - 4))),
    Rings("parts-all-the-same", "2.7", parts=lambda p: QueueAreas(*[p.descriptor] * 3)),
    Rings("used-over-available", "2.7", parts=lambda p: used(to(p.driver & ~3))(p)),
    Rings("available-over-table", "2.7", parts=lambda p: available(to(p.descriptor))(p)),
)


def announce(rings: Rings, session: Session, driver: DeviceDriver, index: int) -> None:
    """Announce one queue so, set DRIVER_OK, make something available, and kick."""
    session.trace.note(f"queue {index}: {rings.name} ({rings.section})")
    session.negotiate()
    queue = session.new_queue(index, 8)
    queue.make_available(queue.place([session.room(64)]))
    most = session.queue_size_max(index)
    queue.size = rings.size(most)
    queue.areas = rings.parts(queue.areas)
    session.announce_queue(queue)
    # What it would do for a good request means nothing.
    del session.queues[index]
    session.driver_ok()
    session.kick(index)

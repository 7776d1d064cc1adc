"""SCSI host devices: events (5.6.6.3)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.scsi import EVENTQ, ScsiDriver
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.targets.scsi import IMAGE_SIZE

#: Bit 31 of `event`, and the types.
MISSED = 1 << 31
NO_EVENT, TRANSPORT_RESET, PARAM_CHANGE = 0, 1, 3

RESCAN, REMOVED = 1, 2

#: CAPACITY DATA HAS CHANGED: 2Ah and 09h.
CAPACITY_CHANGED = 0x092A

HOTPLUG, CHANGE = "VIRTIO_SCSI_F_HOTPLUG", "VIRTIO_SCSI_F_CHANGE"


def no_event(session: Session, what: str) -> None:
    """See that the device uses no buffer of the eventq."""
    session.never(what, session.queues[EVENTQ].take_used)


@pytest.mark.clause("5.6.6.3.2:1", "5.6.6.3.2:2")
@pytest.mark.feature(HOTPLUG)
def test_an_event_that_was_lost_is_told_with_bit_31(scsi: ScsiDriver) -> None:
    host = scsi.scsi_host
    scsi.start()
    host.plug(1, 0)
    piece = scsi.offer_event()
    # It may be told by itself, or with the next event.
    host.plug(1, 1)
    event = scsi.take_event(piece)
    assert event.event & MISSED, f"event {event.event:#x} does not say that one was lost"
    assert event.event & ~MISSED in {NO_EVENT, TRANSPORT_RESET}, f"event {event.event:#x}"


@pytest.mark.clause("5.6.6.3.2:1")
@pytest.mark.feature(HOTPLUG)
def test_an_event_before_which_none_was_lost_has_no_bit_31(scsi: ScsiDriver) -> None:
    host = scsi.scsi_host
    scsi.start()
    plugged = scsi.offer_event()
    host.plug(1, 0)
    event = scsi.take_event(plugged)
    same((event.event, event.reason), (TRANSPORT_RESET, RESCAN), "the event of a new unit")
    same(event.lun[:2], bytes([1, 1]), "its target")
    unplugged = scsi.offer_event()
    host.unplug(1, 0)
    event = scsi.take_event(unplugged)
    same((event.event, event.reason), (TRANSPORT_RESET, REMOVED), "the event of one that went")


@pytest.mark.clause("5.6.6.3.2:1")
@pytest.mark.feature(HOTPLUG)
def test_it_is_told_once_that_events_were_lost(scsi: ScsiDriver) -> None:
    host = scsi.scsi_host
    scsi.start()
    host.plug(1, 0)
    pieces = [scsi.offer_event(), scsi.offer_event()]
    host.plug(1, 1)
    event = scsi.take_event(pieces[0])
    assert event.event & MISSED, f"event {event.event:#x} does not say that one was lost"
    if event.event & ~MISSED != NO_EVENT:
        host.plug(1, 2)
    same(scsi.take_event(pieces[1]).event, TRANSPORT_RESET, "the event after that")


@pytest.mark.clause("5.6.6.3.2:3")
@pytest.mark.parametrize("plug", [True, False], ids=["plug", "unplug"])
def test_without_hotplug_no_unit_is_said_to_come_or_go(
    session: Session, scsi: ScsiDriver, plug: bool
) -> None:
    host = scsi.scsi_host
    if not plug:
        host.plug(1, 0)
    scsi.start(without=[HOTPLUG])
    scsi.offer_event()
    if plug:
        host.plug(1, 0)
    else:
        host.unplug(1, 0)
    no_event(session, "a transport reset that was not asked for")


@pytest.mark.clause("5.6.6.3.2:4")
@pytest.mark.feature(CHANGE)
def test_a_disks_capacity_is_told_and_a_discs_is_not(session: Session, scsi: ScsiDriver) -> None:
    host = scsi.scsi_host
    scsi.start()
    piece = scsi.offer_event()
    host.resize_disc(2 * IMAGE_SIZE)
    no_event(session, "a parameter change of an MMC device")
    host.resize(2 * IMAGE_SIZE)
    event = scsi.take_event(piece)
    same((event.event, event.reason), (PARAM_CHANGE, CAPACITY_CHANGED), "the event of a disk")
    same(event.lun, bytes([1]) + bytes(7), "its address")

"""Basic facilities (2, 3, 6): status, features, reset, the configuration space."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.clauses.features import FEATURES, lacking, names, of_device, valid_subset
from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.report.verdict import Judge, Verdict
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.memory import changed
from virtiopy.conformance.sessions.vhostuser import VhostUserSession
from virtiopy.spec import DeviceId, DeviceStatus, Feature, feature_mask, has_feature

VERSION_1 = Feature.VIRTIO_F_VERSION_1

#: VIRTIO_F_NOTIFY_ON_EMPTY and VIRTIO_F_ANY_LAYOUT, which a transitional device may offer (6.3):
#: its VMM decides whether the device of a vhost-user backend is one.
TRANSITIONAL = feature_mask([24, 27])

#: The same of device types: VIRTIO_NET_F_GSO (5.1.3.2); VIRTIO_BLK_F_BARRIER and SCSI (5.2.3.1).
LEGACY = {DeviceId.NETWORK: feature_mask([6]), DeviceId.BLOCK: feature_mask([0, 7])}

#: How far beyond what is allowed the available ring's index is moved.
JUMP = 0x4000


# What every other test stands on


@pytest.mark.clause("2.6:1", "2.7.8:1", "2.6:2")
def test_requests_are_carried_out_one_by_one_and_several_at_once(driver: DeviceDriver) -> None:
    driver.start()
    for _ in range(20):
        for request in driver.requests():
            driver.do(request)
    for count in (2, 3, 5, 8):
        sent = driver.place_some(driver.good_request() for _ in range(count))
        driver.offer(*sent)
        for one in sent:
            driver.finish(one)


@pytest.mark.clause("2.6:1", "2.7.8:1")
def test_requests_are_carried_out_where_the_rings_wrap(driver: DeviceDriver) -> None:
    driver.start(queue_size=8)
    for _ in range(20):
        for request in driver.requests():
            driver.do(request)


@pytest.mark.clause("2.6:3")
def test_no_memory_is_written_but_buffers_and_the_devices_part_of_the_queue(
    session: Session, driver: DeviceDriver
) -> None:
    driver.start()
    for request in driver.requests():
        sent = driver.place(request)
        before = session.memory.snapshot()
        driver.offer(sent)
        driver.finish(sent)
        after = session.memory.snapshot()
        queues = session.queues.values()
        allowed = [span for queue in queues for span in queue.devices_spans()]
        # The available ring is the driver's, which has offered the request meanwhile.
        allowed += [span for queue in queues for span in queue.drivers_spans()]
        wrong = changed(before, after, [*allowed, *driver.given_away])
        assert wrong is None, f"the device wrote to {wrong:#x}, which is in no buffer of a request"


# Device status (2.1)


@pytest.mark.clause("2.1.2:1")
def test_no_buffer_is_used_before_driver_ok(session: Session, driver: DeviceDriver) -> None:
    session.require_status()
    session.negotiate()
    queue = session.set_up_queue(driver.main_queue)
    sent = driver.place(driver.good_request())
    queue.make_available(sent.head)
    session.kick(driver.main_queue)
    session.never(
        "the device has used a buffer, or sent a notification, before DRIVER_OK",
        lambda: queue.used_idx or session.interrupt_pending,
    )


def break_ring(session: Session, driver: DeviceDriver) -> None:
    """Move the available index farther than the queue has entries, and kick."""
    queue = session.queues[driver.main_queue]
    queue.corrupt_index(JUMP)
    session.kick(driver.main_queue)


@pytest.mark.clause("2.1.2:2")
def test_a_broken_ring_ends_in_device_needs_reset(
    session: Session, driver: DeviceDriver, judge: Judge
) -> None:
    verdict = judge.check(lambda: break_ring(session, driver))
    assert verdict in {Verdict.NEEDS_RESET, Verdict.REJECTED}, (
        f"an index that no driver can have written was {verdict.value}"
    )


@pytest.mark.clause("2.1.2:3")
def test_device_needs_reset_comes_with_a_configuration_change_notification(
    session: Session, driver: DeviceDriver
) -> None:
    session.require_status()
    driver.start()
    session.take_config_change()
    break_ring(session, driver)
    session.wait("DEVICE_NEEDS_RESET", lambda: session.needs_reset)
    session.wait("a configuration change notification", session.take_config_change)


# Feature bits (2.2)


@pytest.mark.clause("2.2.2:1")
def test_no_feature_is_offered_without_what_it_depends_on(session: Session) -> None:
    alone = lacking(session.offered, session.device_id)
    assert not alone, f"offered without what they require: {names(alone, session.device_id)}"


@pytest.mark.clause("2.2.2:2")
def test_any_valid_subset_of_the_features_is_taken(session: Session, driver: DeviceDriver) -> None:
    known = session.wanted(None)
    subsets = {feature_mask([VERSION_1]), known}
    for bit in range(known.bit_length()):
        if has_feature(known, bit) and bit != VERSION_1:
            subsets.add(valid_subset(known & ~(1 << bit), session.device_id))
    for subset in sorted(subsets):
        assert session.accepts(subset), f"refused: {names(subset, session.device_id)}"


@pytest.mark.clause("2.2.2:3")
def test_a_feature_that_was_not_offered_leaves_features_ok_clear(session: Session) -> None:
    session.require_status()
    offered = session.offered
    for bit in range(64):
        if not has_feature(offered, bit):
            assert not session.accepts(offered | 1 << bit), f"bit {bit}, not offered, was taken"


@pytest.mark.clause("2.2.2:4")
def test_no_bit_is_offered_that_means_nothing(session: Session) -> None:
    unknown = session.offered & ~of_device(session.device_id)
    if isinstance(session, VhostUserSession):
        unknown &= ~(TRANSITIONAL | LEGACY.get(session.device_id, 0))
    assert not unknown, f"offered: {names(unknown, session.device_id)}"


@pytest.mark.clause("2.2.2:5")
def test_features_that_were_taken_once_are_taken_again(
    session: Session, driver: DeviceDriver
) -> None:
    first = session.negotiate()
    for _ in range(2):
        session.reset()
        assert session.accepts(first), "features that were taken before are refused"
        driver.start()
        driver.good()


# Reset, section 2.4


@pytest.mark.clause("2.4.1:1")
@pytest.mark.parametrize("step", ["ACKNOWLEDGE", "DRIVER", "FEATURES_OK", "DRIVER_OK"])
def test_a_reset_takes_the_status_to_0(session: Session, driver: DeviceDriver, step: str) -> None:
    session.require_status()
    driver.start()
    driver.good()
    session.reset()
    for bit in DeviceStatus:
        session.set_status(bit)
        if bit.name == step:
            break
    session.write_status(0)
    session.wait("Status 0 after a reset", lambda: session.status == 0)


@pytest.mark.clause("2.4.1:2")
def test_a_device_that_was_reset_touches_no_queue(session: Session, driver: DeviceDriver) -> None:
    session.require_status()
    driver.start()
    queue = session.queues[driver.main_queue]
    sent = driver.place(driver.good_request())
    session.reset()
    queue.make_available(sent.head)
    before = queue.used_part()
    session.kick(driver.main_queue)
    session.never(
        "the device has touched a queue, or sent a notification, after a reset",
        lambda: queue.used_part() != before or session.interrupt_pending,
    )
    driver.start()
    driver.good()


@pytest.mark.clause("2.4.1:2")
def test_a_device_works_again_after_each_reset(session: Session, driver: DeviceDriver) -> None:
    for _ in range(3):
        driver.start()
        driver.good()
        session.reset()


# Configuration space (2.5)


@pytest.mark.clause("2.5.2:1")
def test_configuration_fields_can_be_read_before_features_ok(
    session: Session, driver: DeviceDriver
) -> None:
    size = driver.config_size
    if not size:
        raise NotApplicableError("the device has no configuration space")
    session.reset()
    before = session.read_config(0, size)
    driver.start()
    same(session.read_config(0, size), before, "the configuration space")


# Virtqueue reset (2.6.1)


@pytest.mark.clause("2.6.1.1.1:1")
@pytest.mark.feature("VIRTIO_F_RING_RESET")
def test_a_queue_that_was_reset_is_not_served(session: Session, driver: DeviceDriver) -> None:
    session.require_status()
    driver.start()
    driver.good()
    queue = session.queues[driver.main_queue]
    sent = driver.place(driver.good_request())
    session.reset_queue(driver.main_queue)
    session.take_notifications(driver.main_queue)
    used = queue.used_idx
    queue.make_available(sent.head)
    session.kick(driver.main_queue)
    session.never(
        "a queue that was reset was served, or notified",
        lambda: queue.used_idx != used or session.take_notifications(driver.main_queue),
    )


@pytest.mark.clause("2.6.1.1.1:2", "2.6.1.2.1:1")
@pytest.mark.feature("VIRTIO_F_RING_RESET")
@pytest.mark.parametrize("size", [4, 16, 64])
def test_a_queue_works_from_its_start_after_its_reset(
    session: Session, driver: DeviceDriver, size: int
) -> None:
    session.require_status()
    driver.start()
    for _ in range(5):
        driver.good()
    session.reset_queue(driver.main_queue)
    most = session.queue_size_max(driver.main_queue)
    queue = session.set_up_queue(driver.main_queue, min(size, most))
    for count in range(1, 6):
        driver.good()
        same(queue.used_idx, count, "idx of the used ring")


# Shared memory (2.10)


@pytest.mark.clause("2.10.2:1")
def test_shared_memory_regions(session: Session, driver: DeviceDriver) -> None:
    for region in range(256):
        if (length := session.shared_memory(region)) is not None:
            pytest.fail(f"region {region} has {length} bytes: nothing here knows what is in it")
    raise NotApplicableError("the device has no shared memory region")


# Reserved feature bits (6)


@pytest.mark.clause("6.2:1")
def test_version_1_is_offered(session: Session) -> None:
    assert session.offers(VERSION_1), "VIRTIO_F_VERSION_1 was not offered"


@pytest.mark.clause("6.2:2")
def test_a_driver_without_version_1_is_refused_or_served(
    session: Session, driver: DeviceDriver
) -> None:
    session.require_status()
    session.accepts(session.wanted(None, without=[VERSION_1]))
    driver.start()
    driver.good()


@pytest.mark.clause("6.2:4")
@pytest.mark.feature("VIRTIO_F_ACCESS_PLATFORM")
def test_a_driver_without_access_platform_is_refused_or_served(
    session: Session,
) -> None:
    session.require_status()
    session.accepts(session.wanted(None, without=["VIRTIO_F_ACCESS_PLATFORM"]))
    session.reset()


@pytest.mark.clause("6.2:5")
@pytest.mark.feature("VIRTIO_F_IN_ORDER")
def test_in_order_uses_buffers_in_the_order_they_came(
    session: Session, driver: DeviceDriver
) -> None:
    driver.start([*session_features(session), "VIRTIO_F_IN_ORDER"])
    sent = driver.place_some(driver.good_request() for _ in range(8))
    driver.offer(*sent)
    used = session.wait_used(driver.main_queue, len(sent))
    # The last of a batch may stand for all of it (2.7.9), and then is the only one.
    heads = [one.head for one in used]
    same(heads, [one.head for one in sent][-len(heads) :], "the order of used buffers, by head,")


def session_features(session: Session) -> list[int]:
    """Return the bits that are negotiated by default."""
    return [bit for bit in range(128) if has_feature(session.wanted(None), bit)]


@pytest.mark.clause("6.2:6")
@pytest.mark.feature("VIRTIO_F_ORDER_PLATFORM")
def test_a_driver_without_order_platform_is_refused_or_served(
    session: Session,
) -> None:
    session.require_status()
    session.accepts(session.wanted(None, without=["VIRTIO_F_ORDER_PLATFORM"]))
    session.reset()


@pytest.mark.clause("6.2:10")
def test_sr_iov_is_not_offered_by_what_is_no_pci_device(session: Session) -> None:
    assert not session.offers(FEATURES["VIRTIO_F_SR_IOV"]), "VIRTIO_F_SR_IOV was offered"

"""Descriptor chains that no driver may make (2.7.4, 2.7.5), on every queue."""

import pytest

from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.hostile.acts import Act, on_each_queue
from virtiopy.conformance.hostile.chains import CHAINS
from virtiopy.conformance.hostile.concurrent import CHANGES
from virtiopy.conformance.hostile.indirect import TABLES, WITHOUT_FEATURE
from virtiopy.conformance.hostile.lives import DEVICE_RESETS, QUEUE_RESETS
from virtiopy.conformance.hostile.rings import RINGS
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.suite.hostile.cases import each
from virtiopy.spec import Feature


@each("act", CHAINS)
def test_a_chain_that_no_driver_may_make(
    act: Act, session: Session, driver: DeviceDriver, judge: Judge
) -> None:
    on_each_queue(act, session, driver, judge)


@pytest.mark.feature("VIRTIO_F_INDIRECT_DESC")
@each("act", TABLES)
def test_an_indirect_table_that_no_driver_may_make(
    act: Act, session: Session, driver: DeviceDriver, judge: Judge
) -> None:
    on_each_queue(act, session, driver, judge)


@each("act", RINGS)
def test_an_available_ring_that_no_driver_may_make(
    act: Act, session: Session, driver: DeviceDriver, judge: Judge
) -> None:
    on_each_queue(act, session, driver, judge)


@each("act", WITHOUT_FEATURE)
def test_an_indirect_table_that_was_not_negotiated(
    act: Act, session: Session, driver: DeviceDriver, judge: Judge
) -> None:
    session.understood &= ~(1 << Feature.VIRTIO_F_INDIRECT_DESC)
    driver.start()
    on_each_queue(act, session, driver, judge)


@each("act", CHANGES)
def test_what_changes_while_the_device_works_it(
    act: Act, session: Session, driver: DeviceDriver, judge: Judge
) -> None:
    on_each_queue(act, session, driver, judge)


@pytest.mark.clause("2.4.1:2")
@each("act", DEVICE_RESETS)
def test_a_reset_at_any_step_of_a_requests_life(
    act: Act, session: Session, driver: DeviceDriver, judge: Judge
) -> None:
    on_each_queue(act, session, driver, judge)


@each("act", QUEUE_RESETS)
def test_a_queue_reset_at_any_step_of_a_requests_life(
    act: Act, session: Session, driver: DeviceDriver, judge: Judge
) -> None:
    on_each_queue(act, session, driver, judge)

"""Every device, before anything else: it comes up, and serves requests."""

import pytest

from virtiopy.conformance.drivers.base import INDIRECT, WHOLE, DeviceDriver, bytewise
from virtiopy.conformance.session import Session


def test_a_good_request_is_served(driver: DeviceDriver) -> None:
    driver.start()
    driver.good()


def test_each_queue_serves_a_request(driver: DeviceDriver) -> None:
    driver.start()
    for request in driver.requests():
        driver.do(request)


def test_requests_are_served_whatever_the_framing(driver: DeviceDriver) -> None:
    driver.start(queue_size=128)
    for request in driver.requests():
        if len(request.readable) + request.room <= 64:
            driver.do(request, bytewise(request))


@pytest.mark.feature("VIRTIO_F_INDIRECT_DESC")
def test_requests_are_served_from_indirect_tables(driver: DeviceDriver) -> None:
    driver.start()
    for request in driver.requests():
        driver.do(request, INDIRECT)


def test_a_device_works_after_a_reset(session: Session, driver: DeviceDriver) -> None:
    for _ in range(3):
        driver.start()
        driver.do(driver.good_request(), WHOLE)
        session.reset()

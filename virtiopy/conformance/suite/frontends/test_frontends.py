"""What the frontends of VMMs do to a backend, each in its own order of messages.

A failure here breaks no sentence by itself: the finding is that the backend does not work with that
frontend. Where a sentence of the protocol's is found broken, that is what is in the way.
"""

from collections.abc import Iterator

import pytest

from virtiopy.conformance.collection import note_subject
from virtiopy.conformance.drivers import driver_of
from virtiopy.conformance.drivers.base import DeviceDriver, Sent
from virtiopy.conformance.frontends.profile import frontends, profile_of, title_of
from virtiopy.conformance.frontends.session import ProfiledSession
from virtiopy.conformance.problems import NotApplicableError, works_with
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.settings import PATIENCE_KEY, SESSION, TRACE
from virtiopy.conformance.targets.target import Target
from virtiopy.errors import ConfigError
from virtiopy.spec import DeviceId

#: Requests that are in flight when a guest is stopped, or its backend left.
SEVERAL = 8


@pytest.fixture(params=frontends())
def guest(request: pytest.FixtureRequest, virtio_target: Target) -> Iterator[ProfiledSession]:
    """Give a session as a frontend has it; its driver has done nothing yet."""
    node = request.node
    patience = node.config.stash[PATIENCE_KEY]
    name: str = request.param
    try:
        served = virtio_target.serve(patience)
    except ConfigError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    profile = profile_of(name, served.device_id)
    if profile is None:
        served.backend.close()
        served.host.close()
        raise NotApplicableError(f"{title_of(name)} has no vhost-user device of this type")
    trace = node.stash[TRACE] = Trace()
    with works_with(profile.title):
        session = ProfiledSession(profile, served, trace, patience)
    node.stash[SESSION] = session
    with session:
        driver_of(session)
        note_subject(node.config, virtio_target, session)
        yield session


def test_a_guest_runs(guest: ProfiledSession) -> None:
    driver = driver_of(guest)
    with works_with(guest.title):
        driver.start()
        for request in driver.requests():
            driver.do(request)
        is_served(guest, driver)
        for one in in_flight(driver):
            driver.finish(one)


def test_a_guest_is_stopped_and_goes_on(guest: ProfiledSession) -> None:
    driver = driver_of(guest)
    with works_with(guest.title):
        driver.start()
        is_served(guest, driver)
        for _ in range(2):
            # Frames of a ring that runs and is not enabled yet are discarded (ring-states:6).
            sent = [] if guest.device_id is DeviceId.NETWORK else in_flight(driver)
            guest.pause()
            guest.resume()
            for one in sent:
                driver.finish(one)
            is_served(guest, driver)


def test_a_device_is_reset_and_set_up_again(guest: ProfiledSession) -> None:
    """As by firmware, then by a bootloader and at last by a kernel, each with its own features."""
    driver = driver_of(guest)
    with works_with(guest.title):
        driver.start([])
        is_served(guest, driver)
        driver.start(without=["VIRTIO_F_EVENT_IDX"])
        is_served(guest, driver)
        driver.start()
        is_served(guest, driver)


def test_a_guest_goes_on_with_a_new_connection(guest: ProfiledSession) -> None:
    driver = driver_of(guest)
    if not driver.can_reconnect or guest.device_id is DeviceId.NETWORK:
        raise NotApplicableError(
            "the device has a state that no new backend knows, or loses frames"
        )
    with works_with(guest.title):
        driver.start()
        is_served(guest, driver)
        sent = in_flight(driver) if guest.keeps_what_is_in_flight else []
        guest.reconnect()
        for one in sent:
            driver.finish(one)
        is_served(guest, driver)


def is_served(guest: ProfiledSession, driver: DeviceDriver) -> None:
    """Have a good request served, and the driver notified of that."""
    queue = guest.queues[driver.main_queue]
    guest.take_notifications(queue.index)
    queue.enable_interrupts()
    driver.good()
    guest.wait_notification(queue.index)


def in_flight(driver: DeviceDriver) -> list[Sent]:
    """Make requests available, and return them."""
    sent = driver.place_some(driver.good_request() for _ in range(SEVERAL))
    driver.offer(*sent)
    return sent

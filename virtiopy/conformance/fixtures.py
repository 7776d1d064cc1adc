"""The fixtures of the suite: what its tests are written with."""

import contextlib
from collections.abc import Iterator
from types import ModuleType

import pytest

from virtiopy.conformance.collection import is_basis, note_backend, note_subject, target_of
from virtiopy.conformance.drivers import DRIVERS, driver_of
from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.effort import Effort
from virtiopy.conformance.outcomes import progress_of
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.raw import RawFrontend
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.sessions.vhostuser import VhostUserSession
from virtiopy.conformance.settings import JUDGE, PATIENCE_KEY, SESSION, THOROUGH, TRACE
from virtiopy.conformance.targets.target import Target
from virtiopy.errors import ConfigError
from virtiopy.transport.driver import MmioDriver


@pytest.fixture
def virtio_target(request: pytest.FixtureRequest) -> Target:
    """Give what is put to the test."""
    return target_of(request.node)


@pytest.fixture
def session(request: pytest.FixtureRequest, virtio_target: Target) -> Iterator[Session]:
    """Give a session with a device that was just made or reset; nothing is negotiated yet.

    The test's marks `feature` and `unless_feature` are looked at here.
    """
    node = request.node
    trace = node.stash[TRACE] = Trace()
    progress = progress_of(node)
    if why := progress.hopeless or progress.cut_short:
        pytest.skip(f"the run of this target was cut short: {why}")
    asked_for = node.config.stash[PATIENCE_KEY]
    patience = asked_for if is_basis(node) else progress.patience(asked_for)
    try:
        session = virtio_target.open(trace, patience)
    except ConfigError as error:
        # The user's, and so for every test.
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    session.hurried = patience < asked_for
    node.stash[SESSION] = session
    with session:
        # It withholds what is not the device's to have negotiated.
        driver_of(session)
        note_subject(node.config, virtio_target, session)
        for mark in node.iter_markers("feature"):
            session.require(*mark.args)
        for mark in node.iter_markers("unless_feature"):
            for name in mark.args:
                if session.offers(name):
                    raise NotApplicableError(f"{name} was offered")
        yield session


@pytest.fixture
def driver(session: Session) -> DeviceDriver:
    """Give the driver of the session's device, whichever type that is; it has done nothing yet."""
    return driver_of(session)


def _driver_of_device(name: str) -> object:
    @pytest.fixture(name=name)
    def give(driver: DeviceDriver) -> DeviceDriver:
        return driver

    return give


#: A plugin with a fixture a device, called as that is, which gives its driver: a test that asks for
#: `blk` is one of block devices. pytest looks for fixtures in modules.
DRIVER_FIXTURES = ModuleType(f"{__name__}.drivers")
for _name in DRIVERS:
    setattr(DRIVER_FIXTURES, _name, _driver_of_device(_name))


@pytest.fixture
def registers(session: Session, driver: DeviceDriver) -> MmioDriver:
    """Give the device's MMIO registers; not applicable where there are none."""
    return session.registers


@pytest.fixture
def vhost_user(session: Session, driver: DeviceDriver) -> VhostUserSession:
    """Give the session, where it is one over vhost-user; not applicable where it is not."""
    if not isinstance(session, VhostUserSession):
        raise NotApplicableError(f"a device over {session.transport} is no vhost-user backend")
    return session


@pytest.fixture
def raw(request: pytest.FixtureRequest, virtio_target: Target) -> Iterator[RawFrontend]:
    """Give a frontend that has said nothing yet, of a backend that was just started or left."""
    node = request.node
    trace = node.stash[TRACE] = Trace()
    patience = node.config.stash[PATIENCE_KEY]
    try:
        served = virtio_target.serve(patience)
    except ConfigError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    with contextlib.ExitStack() as stack:
        stack.callback(served.host.close)
        stack.callback(served.backend.close)
        frontend = stack.enter_context(RawFrontend(served.backend, trace, patience))
        note_backend(node.config, virtio_target, served.device_id)
        yield frontend


@pytest.fixture
def effort(request: pytest.FixtureRequest, session: Session) -> Effort:
    """Give how much random work there is to do."""
    return Effort(session.trace, request.config.stash[THOROUGH])


@pytest.fixture
def judge(request: pytest.FixtureRequest, session: Session, driver: DeviceDriver) -> Judge:
    """Give the judge of how the device takes what its driver does to it; the device is started."""
    driver.start()
    judge = request.node.stash[JUDGE] = Judge(session, driver)
    return judge

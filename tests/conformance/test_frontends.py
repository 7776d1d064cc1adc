"""Sessions as the frontends of VMMs have them: sound backends stand all, a faulty one is named."""

from collections.abc import Callable, Collection, Iterator

import pytest

from tests.conformance.mutants.vhostuser import (
    Faulty,
    ForgetsThatARingWasEnabled,
    KeepsTheFirstCall,
)
from virtiopy.conformance.drivers import driver_of
from virtiopy.conformance.frontends import profile as profiles
from virtiopy.conformance.frontends.session import ProfiledSession
from virtiopy.conformance.problems import WORKS_WITH, BrokenError, NotApplicableError, works_with
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.suite.frontends import test_frontends as suite
from virtiopy.conformance.targets.builders import BUILDERS
from virtiopy.conformance.targets.target import InprocTarget
from virtiopy.errors import ConfigError, PeerError
from virtiopy.vhost.user.backend import Backend
from virtiopy.vhost.user.messages import (
    VHOST_USER_F_PROTOCOL_FEATURES,
    Message,
    Request,
    to_u64,
    u64,
)

# They have over a hundred sessions.
pytestmark = pytest.mark.thorough

#: What the suite has a frontend do.
ACTS: list[Callable[[ProfiledSession], None]] = [
    suite.test_a_guest_runs,
    suite.test_a_guest_is_stopped_and_goes_on,
    suite.test_a_device_is_reset_and_set_up_again,
    suite.test_a_guest_goes_on_with_a_new_connection,
]

#: How long a faulty backend is waited for, and a sound one, seconds.
BRIEF, LONG = 0.3, 60


class WantsAnOwnerFirst(Faulty):
    """Answers nothing before SET_OWNER: so its author's frontend happens to begin."""

    owned = False

    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_OWNER:
            self.owned = True
        elif not self.owned:
            raise PeerError("there is no owner yet")
        return False


class EnablesByMessagesAlone(Faulty):
    """Has its rings disabled until SET_VRING_ENABLE, whatever SET_FEATURES has said."""

    def seen(self, message: Message) -> bool:
        if message.request != Request.SET_FEATURES:
            return False
        return self.again(message, u64(to_u64(message) | 1 << VHOST_USER_F_PROTOCOL_FEATURES))


def played(
    device: str, frontend: str, backend: type[Backend], patience: float
) -> Iterator[Callable[[], None]]:
    """Yield each act, to be done to a backend as a frontend does it."""
    target = InprocTarget(BUILDERS[device], device, served=True, backend=backend)
    for act in ACTS:

        def do(act: Callable[[ProfiledSession], None] = act) -> None:
            served = target.serve(patience)
            found = profiles.profile_of(frontend, served.device_id)
            if found is None:
                served.backend.close()
                served.host.close()
                raise NotApplicableError("it has no such device")
            with works_with(found.title):
                session = ProfiledSession(found, served, Trace(), patience)
            with session:
                driver_of(session)
                act(session)

        yield do


def not_worked_with(device: str, backend: type[Backend]) -> set[str]:
    """Return the frontends that a backend does not work with."""
    found = set()
    for frontend in profiles.frontends():
        for act in played(device, frontend, backend, BRIEF):
            try:
                act()
            except NotApplicableError:
                continue
            except BrokenError as error:
                if error.clause == WORKS_WITH and profiles.title_of(frontend) in str(error):
                    found.add(frontend)
                    break
                raise
    return found


@pytest.mark.parametrize("frontend", profiles.frontends())
@pytest.mark.parametrize("device", ["blk", "net"])
def test_virtiopys_backend_works_with_every_frontend(device: str, frontend: str) -> None:
    done = 0
    for act in played(device, frontend, Backend, LONG):
        try:
            act()
        except NotApplicableError:
            continue
        done += 1
    speaks = {"blk": frontend != "dpdk-virtio-user", "net": frontend != "firecracker"}
    assert bool(done) == speaks[device]


@pytest.mark.parametrize(
    ("device", "backend", "expected"),
    [
        pytest.param(
            *("blk", WantsAnOwnerFirst, {"qemu-before-7.2", "qemu-7.2", "qemu", "libkrun"}),
            marks=pytest.mark.nightly,
        ),
        ("blk", EnablesByMessagesAlone, {"qemu-before-7.2"}),
        pytest.param(
            *("blk", KeepsTheFirstCall, {"qemu-before-7.2"}),
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            *("net", ForgetsThatARingWasEnabled, {"qemu-7.2", "qemu"}), marks=pytest.mark.nightly
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_backend_that_knows_one_order_alone_is_found_by_the_frontends_that_have_another(
    device: str, backend: type[Backend], expected: Collection[str]
) -> None:
    assert not_worked_with(device, backend) == set(expected)


def test_an_unknown_frontend_is_the_users_fault() -> None:
    with pytest.raises(ConfigError, match="There is no frontend crosvm: give all, or qemu"):
        profiles.check_name("crosvm")

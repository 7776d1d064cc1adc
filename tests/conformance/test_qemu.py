"""Why random walks against qemu-storage-daemon fail: each kind, in a session as short as it can be.

Its disk is slow here, so that requests are in flight for as long as a session needs. The answers
are in docs/peers.md, with the sentences and the places in QEMU's source.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.patience import timed
from virtiopy.conformance.checks import stopped_idle
from virtiopy.conformance.drivers import driver_of
from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.problems import BrokenError, LeftError
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.sessions.vhostuser import VhostUserSession
from virtiopy.conformance.suite.test_walks import names_of
from virtiopy.conformance.targets.target import SpawnTarget
from virtiopy.conformance.walks.search import Search
from virtiopy.conformance.walks.steps import ResetQueue, Step, Wait
from virtiopy.conformance.walks.walk import Walk

PROGRAM = "qemu-storage-daemon"

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is missing"),
]

#: Requests a second of the slow disk, and how many are made available.
SLOW, SEVERAL = 5, 6

#: Seconds: what comes takes one of the slow disk's requests, 0.2 s.
PATIENCE = 20.0

#: What has nothing more in flight answers for as many walks.
SEEDS, WALKS = (1, 2, 3), 60


def target(image: Path, *, slow: bool) -> SpawnTarget:
    """Return the daemon, with a disk of SLOW requests a second or as fast as it can be."""
    image.write_bytes(bytes(1 << 21))
    throttled = (
        f"--object throttle-group,id=group,limits.iops-total={SLOW} "
        "--blockdev driver=throttle,node-name=slow,throttle-group=group,file=disk "
    )
    return SpawnTarget(
        f"{PROGRAM} --blockdev driver=file,node-name=disk,filename={image} "
        f"{throttled if slow else ''}--export vhost-user-blk,id=export,writable=on,"
        f"node-name={'slow' if slow else 'disk'},addr.type=unix,addr.path={{socket}}",
        "blk",
    )


@pytest.fixture
def session(tmp_path: Path) -> Iterator[VhostUserSession]:
    """Give a session with the slow disk."""
    found = target(tmp_path / "disk.img", slow=True).open(Trace(), PATIENCE)
    assert isinstance(found, VhostUserSession)
    with found:
        yield found


def with_requests_in_flight(session: VhostUserSession) -> DeviceDriver:
    """Start the device, and make requests available: the first is used, and others are taken."""
    driver = driver_of(session)
    driver.start()
    driver.offer(*driver.place_some(driver.good_request() for _ in range(SEVERAL)))
    queue = session.queues[driver.main_queue]
    session.wait("the first request used", lambda: queue.used_idx)
    return driver


def ends(session: VhostUserSession) -> bool:
    """Wait until the backend has ended the session; it may answer one message more."""
    try:
        session.check_alive()
        session.wait("the end of the session", lambda: False)
    except LeftError:
        return True
    return False


def test_a_ring_is_stopped_with_requests_in_flight(session: VhostUserSession) -> None:
    driver = with_requests_in_flight(session)
    queue = session.queues[driver.main_queue]
    in_flight = session.reset_queue(queue.index)
    with pytest.raises(BrokenError, match=r"stopped with \d requests in flight") as raised:
        stopped_idle(queue, in_flight)
    assert raised.value.clause == "GET_VRING_BASE:2"


def test_a_ring_that_is_stopped_is_written_and_the_session_ends_by_that(
    session: VhostUserSession,
) -> None:
    """A notification is due, and the call eventfd was closed: libvhost-user writes to -1."""
    driver = with_requests_in_flight(session)
    queue = session.queues[driver.main_queue]
    queue.take_all_used()
    queue.enable_interrupts()
    assert session.stop_queue(queue.index) == SEVERAL
    session.wait("a request used in a stopped ring", lambda: queue.used_idx > 1)
    assert ends(session)
    assert 1 < queue.used_idx < SEVERAL, "what is in flight after that is lost"


@timed
def test_a_ring_that_is_set_up_anew_has_what_was_in_flight_before(
    session: VhostUserSession,
) -> None:
    driver = with_requests_in_flight(session)
    index = driver.main_queue
    session.reset_queue(index)
    session.set_up_queue(index, 64)
    queue = session.queues[index]
    session.wait("a request used that was not made available", lambda: queue.used_idx)
    assert queue.next_available == 0


@timed
def test_a_ring_that_is_set_up_with_fewer_entries_than_were_in_flight_breaks(
    session: VhostUserSession,
) -> None:
    """Those in flight are still counted: with one more there are too many for the ring."""
    driver = with_requests_in_flight(session)
    index = driver.main_queue
    session.reset_queue(index)
    session.set_up_queue(index, 4)
    driver.send(driver.good_request())
    assert ends(session)


def test_a_write_to_a_read_only_field_is_acknowledged_and_the_session_ends(
    session: VhostUserSession,
) -> None:
    """What walks had taken for a fault: a backend may leave for that, after its reply, too."""
    driver_of(session).start()
    assert session.frontend.set_config(0, b"\xff\xff"), "the acknowledgement is 0, for success"
    assert ends(session)
    session.reset()
    assert session.read_config(0, 2) == b"\0\x10", "the field is as before"


def waiting(go: Callable[[Sequence[Step], float], None]) -> Callable[[Sequence[Step], float], None]:
    """Have drivers wait for what is in flight before they reset a queue."""

    def patient(steps: Sequence[Step], patience: float) -> None:
        go(
            [
                one
                for step in steps
                for one in ([Wait(step.queue), step] if isinstance(step, ResetQueue) else [step])
            ],
            patience,
        )

    return patient


@pytest.mark.nightly
@pytest.mark.parametrize("seed", SEEDS)
def test_no_walk_fails_that_stops_its_rings_with_nothing_in_flight(
    tmp_path: Path, seed: int
) -> None:
    daemon = target(tmp_path / "disk.img", slow=False)

    def go(steps: Sequence[Step], patience: float) -> None:
        with daemon.open(Trace(), patience) as session:
            Walk(session, driver_of(session)).run(steps)

    with daemon.open(Trace(), PATIENCE) as session:
        features = names_of(session)
    search = Search(waiting(go), PATIENCE, seed)
    assert search.run(features, WALKS) is None, search.failure

"""Balloon devices: the guest's statistics (5.5.6.3)."""

from collections.abc import Mapping

import pytest

from virtiopy.conformance.drivers.balloon import BalloonDriver, Virtqueue
from virtiopy.conformance.effort import Effort
from virtiopy.conformance.sessions.base import Session
from virtiopy.virtqueue.driver import Used

#: Values by tag, and what their tags are called (5.5.6.4).
VALUES = {0: 1 << 40, 1: 22, 4: 333, 5: (1 << 64) - 1, 6: 0, 9: 99}
NAMES = {0: "SWAP_IN", 1: "SWAP_OUT", 4: "MEMFREE", 5: "MEMTOT", 6: "AVAIL", 9: "HTLB_PGFAIL"}

#: The tags from 0 on.
TAGS = ("SWAP_IN", "SWAP_OUT", "MAJFLT", "MINFLT", "MEMFREE", "MEMTOT", "AVAIL", "CACHES")

EXPECTED = {NAMES[tag]: value for tag, value in VALUES.items()}


def check(
    session: Session,
    balloon: BalloonDriver,
    values: dict[int, int],
    expected: Mapping[str, int] = EXPECTED,
) -> None:
    """Answer the host's question with these, and see that it has those of known tags."""
    host = balloon.balloon_host
    balloon.start()
    queue = session.queues[balloon.index_of(Virtqueue.statsq)]

    def give_back() -> Used | None:
        # In vain until the device has taken the buffer.
        host.request_statistics()
        return queue.take_used()

    balloon.supply_statistics(dict.fromkeys(values, 0))
    session.wait("the first buffer used", give_back)
    balloon.supply_statistics(values)
    session.wait(f"statistics {expected}", lambda: host.statistics == expected)
    session.wait("the buffer of the statistics used", give_back)


@pytest.mark.clause("5.5.6.3:1")
@pytest.mark.feature("VIRTIO_BALLOON_F_STATS_VQ")
@pytest.mark.parametrize("number", [1, 2, len(TAGS)])
def test_the_host_has_the_statistics_that_the_driver_gave_last(
    session: Session, balloon: BalloonDriver, effort: Effort, number: int
) -> None:
    for random in effort.rounds():
        values = {tag: random.getrandbits(64) for tag in range(number)}
        check(session, balloon, values, {TAGS[tag]: value for tag, value in values.items()})


@pytest.mark.clause("5.5.6.3.2:2")
@pytest.mark.feature("VIRTIO_BALLOON_F_STATS_VQ")
@pytest.mark.parametrize(
    "tags",
    [(0, 1, 4, 5, 6, 9), (9, 6, 5, 4, 1, 0), (4, 9, 0, 6, 1, 5)],
    ids=["up", "down", "mixed"],
)
def test_statistics_come_in_any_order(
    session: Session, balloon: BalloonDriver, tags: tuple[int, ...]
) -> None:
    check(session, balloon, {tag: VALUES[tag] for tag in tags})


@pytest.mark.clause("5.5.6.3.2:1")
@pytest.mark.feature("VIRTIO_BALLOON_F_STATS_VQ")
@pytest.mark.parametrize("place", [0, 3, 6], ids=["first", "between", "last"])
def test_unknown_tags_are_passed_over(session: Session, balloon: BalloonDriver, place: int) -> None:
    entries = list(VALUES.items())
    entries[place:place] = [(0xFFFE, 7), (0x8000, 8)]
    check(session, balloon, dict(entries))

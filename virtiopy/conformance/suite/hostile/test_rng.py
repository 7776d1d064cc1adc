"""Requests that no driver may make of an entropy device (5.4.6)."""

from virtiopy.conformance.drivers.rng import REQUESTQ, RngDriver
from virtiopy.conformance.hostile.acts import Act, chain, on_queues
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.memory import SPARE
from virtiopy.conformance.suite.hostile.cases import each
from virtiopy.virtqueue.driver import Piece

REQUESTS = (
    Act("nothing-to-write-to", "5.4.6.1", chain(b"please")),
    Act("something-to-read-first", "5.4.6.1", chain(b"please", 64)),
    Act("no-room-at-all", "5.4.6.1", chain(0)),
    Act(
        "eight-mib",
        "5.4.6",
        chain(Piece(SPARE[0], SPARE[1] - SPARE[0], writable=True)),
    ),
    Act("a-byte-forty-times", "5.4.6", chain(*[1] * 40)),
)


@each("act", REQUESTS)
def test_a_request_that_no_driver_may_make(
    act: Act, session: Session, rng: RngDriver, judge: Judge
) -> None:
    on_queues(act, [REQUESTQ], session, rng, judge)

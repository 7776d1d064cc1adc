"""Requests that no driver may make of a block device (5.2.6)."""

from virtiopy.conformance.drivers.blk import BlkDriver, Type, header, segment
from virtiopy.conformance.hostile.acts import Act, chain, on_queues
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.memory import SPARE
from virtiopy.conformance.suite.hostile.cases import each
from virtiopy.virtqueue.driver import Piece

SECTOR = bytes(512)
FAR = 1 << 40
LAST = (1 << 64) - 1

#: 8 MiB that nothing else is in.
HUGE = SPARE[1] - SPARE[0]

REQUESTS = (
    Act("header-of-8-bytes", "5.2.6", chain(header(Type.IN)[:8], 513)),
    Act("header-of-15-bytes", "5.2.6", chain(header(Type.OUT)[:15], 1)),
    Act("no-header", "5.2.6", chain(513)),
    Act("status-alone", "5.2.6", chain(1)),
    Act("header-alone", "5.2.6", chain(header(Type.IN))),
    Act("write-without-status", "5.2.6", chain(header(Type.OUT), SECTOR)),
    Act("read-far-beyond-the-end", "5.2.6", chain(header(Type.IN, FAR), 513)),
    Act("read-of-the-last-sector-of-2-to-64", "5.2.6", chain(header(Type.IN, LAST), 513)),
    Act("read-that-wraps", "5.2.6", chain(header(Type.IN, 1 << 55), 513)),
    Act("write-far-beyond-the-end", "5.2.6", chain(header(Type.OUT, FAR), SECTOR, 1)),
    Act("write-that-wraps", "5.2.6", chain(header(Type.OUT, LAST), SECTOR * 2, 1)),
    Act("type-3", "5.2.6", chain(header(3), 513)),
    Act("type-ffffffff", "5.2.6", chain(header(0xFFFF_FFFF), SECTOR, 513)),
    Act("read-of-half-a-sector", "5.2.6", chain(header(Type.IN), 257)),
    Act("write-of-half-a-sector", "5.2.6", chain(header(Type.OUT), SECTOR[:256], 1)),
    Act("read-of-nothing", "5.2.6", chain(header(Type.IN), 1)),
    Act("write-of-nothing", "5.2.6", chain(header(Type.OUT), 1)),
    Act("read-with-data-to-write", "5.2.6", chain(header(Type.IN), SECTOR, 513)),
    Act("write-with-room-to-read", "5.2.6", chain(header(Type.OUT), 513)),
    Act(
        "huge-write",
        "5.2.6",
        chain(header(Type.OUT), Piece(SPARE[0], HUGE), 1),
    ),
    Act(
        "huge-read",
        "5.2.6",
        chain(header(Type.IN), Piece(SPARE[0], HUGE, writable=True), 1),
    ),
    Act("flush-with-data", "5.2.6", chain(header(Type.FLUSH, LAST), SECTOR, 513)),
    Act("id-in-a-byte", "5.2.6", chain(header(Type.GET_ID), 2)),
    Act("id-in-nothing", "5.2.6", chain(header(Type.GET_ID), 1)),
    Act("lifetime-in-a-byte", "5.2.6", chain(header(Type.GET_LIFETIME), 2)),
    *(
        Act(f"{kind.name.lower()}-{name}", "5.2.6", chain(header(kind), data, 1))
        for kind in (Type.DISCARD, Type.WRITE_ZEROES, Type.SECURE_ERASE)
        for name, data in (
            ("of-nothing", b""),
            ("of-half-a-segment", segment(0, 1)[:8]),
            ("far-beyond-the-end", segment(FAR, 8)),
            ("that-wraps", segment(LAST, 0xFFFF_FFFF)),
            ("of-0-sectors", segment(0, 0)),
            ("with-unknown-flags", segment(8, 8, 0xFFFF_FFFE)),
            ("of-1000-segments", segment(8, 1) * 1000),
        )
    ),
)


@each("act", REQUESTS)
def test_a_request_that_no_driver_may_make(
    act: Act, session: Session, blk: BlkDriver, judge: Judge
) -> None:
    on_queues(act, sorted(session.queues), session, blk, judge)

"""Requests that no driver may make of a file system device (5.11.6)."""

from virtiopy.conformance.drivers.fs import (
    HIPRIO,
    IN_SIZE,
    OUT_SIZE,
    REQUESTQ,
    FsDriver,
    Opcode,
    longs,
    message,
    words,
)
from virtiopy.conformance.hostile.acts import Act, chain, on_queues
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.memory import SPARE
from virtiopy.conformance.suite.hostile.cases import each
from virtiopy.virtqueue.driver import Piece

ROOM = OUT_SIZE + 256
HUGE = SPARE[1] - SPARE[0]
GETATTR, LOOKUP, BATCH_FORGET, STATFS = 3, 1, 42, 17
UNKNOWN = 4000
NO_NODE = 0xFFFF_FFFF_FFFF

REQUESTS = (
    Act("header-of-39-bytes", "5.11.6.1", chain(message(STATFS)[: IN_SIZE - 1], ROOM)),
    Act("nothing-to-read", "5.11.6.1", chain(ROOM)),
    Act("length-of-0", "5.11.6.1", chain(message(STATFS, size=0), ROOM)),
    Act("longer-than-it-is", "5.11.6.1", chain(message(STATFS, size=0xFFFF_FFFF), ROOM)),
    Act("shorter-than-it-is", "5.11.6.1", chain(message(GETATTR, bytes(16), size=41), ROOM)),
    Act("unknown-request", "5.11.6.1", chain(message(UNKNOWN), ROOM)),
    Act("request-ffffffff", "5.11.6.1", chain(message(0xFFFF_FFFF), ROOM)),
    Act("node-that-is-none", "5.11.6.1", chain(message(GETATTR, bytes(16), node=NO_NODE), ROOM)),
    Act("node-0", "5.11.6.1", chain(message(GETATTR, bytes(16), node=0), ROOM)),
    Act("name-without-an-end", "5.11.6.1", chain(message(LOOKUP, b"name"), ROOM)),
    Act("name-of-nothing", "5.11.6.1", chain(message(LOOKUP), ROOM)),
    Act("name-with-a-path", "5.11.6.1", chain(message(LOOKUP, b"../etc/passwd\0"), ROOM)),
    Act("no-answer", "5.11.6.1", chain(message(STATFS))),
    Act("answer-of-15-bytes", "5.11.6.1", chain(message(STATFS), OUT_SIZE - 1)),
    Act("answer-without-its-body", "5.11.6.1", chain(message(STATFS), OUT_SIZE)),
    Act(
        "read-of-4-gib",
        "5.11.6.1",
        chain(message(Opcode.READ, longs(0, 0) + words(0xFFFF_FFFF, 0) + bytes(16)), ROOM),
    ),
    Act(
        "write-of-what-is-not-there",
        "5.11.6.1",
        chain(message(Opcode.WRITE, longs(0, 0) + words(0xFFFF_FFFF, 0) + bytes(16)), ROOM),
    ),
    Act("huge-room", "5.11.6.1", chain(message(STATFS), Piece(SPARE[0], HUGE, writable=True))),
    Act("huge-request", "5.11.6.1", chain(message(STATFS), Piece(SPARE[0], HUGE), ROOM)),
)

HIGH_PRIORITY = (
    Act("forget-in-too-few-bytes", "5.11.6.2", chain(message(Opcode.FORGET)[: IN_SIZE - 1])),
    Act("forget-of-a-node-that-is-none", "5.11.6.2", chain(message(2, longs(1), node=NO_NODE))),
    Act(
        "forget-of-more-than-there-were",
        "5.11.6.2",
        chain(message(Opcode.FORGET, longs(0xFFFF_FFFF_FFFF_FFFF))),
    ),
    Act(
        "forgets-that-are-not-there",
        "5.11.6.2",
        chain(message(BATCH_FORGET, words(~0 & 0xFFFF_FFFF, 0))),
    ),
    Act("unknown-request", "5.11.6.2", chain(message(UNKNOWN), ROOM)),
)


@each("act", REQUESTS)
def test_a_request_that_no_driver_may_make(
    act: Act, session: Session, fs: FsDriver, judge: Judge
) -> None:
    on_queues(act, [REQUESTQ], session, fs, judge)


@each("act", HIGH_PRIORITY)
def test_a_high_priority_request_that_no_driver_may_make(
    act: Act, session: Session, fs: FsDriver, judge: Judge
) -> None:
    on_queues(act, [HIPRIO], session, fs, judge)

"""File system devices: their queues, and reading and writing (5.11)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.fs import (
    NUM_REQUEST_QUEUES_AT,
    REQUESTQ,
    FsDriver,
    Opcode,
    longs,
)
from virtiopy.conformance.sessions.base import Session

#: No DAX window is so large.
BEYOND = 1 << 62


@pytest.mark.clause("5.11.4.2:1")
def test_there_is_a_request_queue(session: Session, fs: FsDriver) -> None:
    fs.start()
    number = session.config(NUM_REQUEST_QUEUES_AT, 4)
    assert number >= 1, f"num_request_queues is {number}"


@pytest.mark.clause("5.11.6.2.1:1")
def test_the_high_priority_queue_goes_on_while_requests_wait(
    session: Session, fs: FsDriver
) -> None:
    fs.begin()
    waiting = fs.place_some(fs.good_request() for _ in range(8))
    # No kick: the device knows of them, at most, by the ring.
    session.queues[REQUESTQ].make_available(*(one.head for one in waiting))
    for _ in range(4):
        fs.do(fs.forget())
    session.kick(REQUESTQ)
    for one in waiting:
        session.wait_for(REQUESTQ, one.head)


@pytest.mark.clause("5.11.6.2.1:2")
def test_both_queues_are_worked_in_turns_or_together(session: Session, fs: FsDriver) -> None:
    fs.begin()
    file = fs.create()
    same(fs.write(file, b"x" * 4096).error, 0, "the error of a write")
    opcode, body = fs.reading(file, 4096)
    reads = fs.place_some(fs.request(opcode, body, node=file.node, room=4096) for _ in range(16))
    forgets = fs.place_some(fs.forget() for _ in range(16))
    fs.offer(*reads)
    fs.offer(*forgets)
    for one in [*forgets, *reads]:
        fs.finish(one)
    fs.remove(file)


@pytest.mark.clause("5.11.6.4.1:3")
@pytest.mark.parametrize("size", [1, 511, 4096, 60_000])
def test_what_was_written_is_read(fs: FsDriver, size: int) -> None:
    fs.begin()
    file = fs.create()
    data = bytes(n % 251 for n in range(size))
    answer = fs.write(file, data)
    same((answer.error, answer.number(0, 4)), (0, size), "the error and size of a write")
    answer = fs.read(file, size + 100)
    same(answer.error, 0, "the error of a read")
    same(answer.body, data, "what is read")
    same(fs.read(file, 100, offset=size).body, b"", "what is read at the end of the file")
    fs.remove(file)


@pytest.mark.clause("5.11.6.4.1:5")
def test_a_mapping_beyond_the_end_of_the_window_is_refused(fs: FsDriver) -> None:
    fs.begin()
    file = fs.create()
    # Of the whole file, for reading, there in the window.
    answer = fs.ask(Opcode.SETUPMAPPING, longs(file.handle, 0, 4096, 2, BEYOND), node=file.node)
    assert answer.error, "a mapping at 4 EiB of the window is made"
    fs.remove(file)

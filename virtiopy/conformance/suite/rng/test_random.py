"""Entropy devices (5.4)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.clauses.definitions import WRITTEN
from virtiopy.conformance.drivers.base import Framing
from virtiopy.conformance.drivers.rng import REQUESTQ, RngDriver
from virtiopy.conformance.effort import Effort
from virtiopy.conformance.problems import BrokenError, about
from virtiopy.conformance.sessions.base import Session

#: Enough for no two of them to be the same by chance.
SIZE = 64

#: So many bytes of one answer and of another are not the same by chance, nor are they all alike.
BLOCK = 16

#: After so many blocks each value that a byte can have has come, by all chances.
ENOUGH = 1000


def gather(rng: RngDriver, size: int) -> bytes:
    """Ask until there are so many random bytes."""
    data = b""
    while len(data) < size:
        data += rng.read(size - len(data))
    return data


@pytest.mark.clause("5.4.6.2:1")
@pytest.mark.parametrize("size", [1, 2, 15, 64, 4096, 100_000])
def test_a_buffer_of_any_size_gets_at_least_a_byte(rng: RngDriver, size: int) -> None:
    rng.start()
    assert 1 <= len(rng.read(size)) <= size, f"more than {size} bytes, or none"


@pytest.mark.clause("5.4.6.2:1")
def test_a_buffer_in_many_descriptors_gets_at_least_a_byte(rng: RngDriver) -> None:
    rng.start()
    assert rng.read(SIZE, Framing(writable=range(8, SIZE, 8))), "no byte was written"


@pytest.mark.clause("5.4.6.2:1")
@pytest.mark.parametrize("filling", [b"\x00", b"\xff"], ids=["zeroes", "ones"])
def test_the_bytes_are_not_what_was_in_the_buffer(
    session: Session, rng: RngDriver, filling: bytes
) -> None:
    rng.start()
    data = b""
    while len(data) < SIZE:
        sent = rng.place(rng.request(SIZE))
        session.memory.write(sent.pieces[0].address, filling * SIZE)
        rng.offer(sent)
        used = session.wait_for(REQUESTQ, sent.head)
        data += rng.check(sent, used)[: used.length]
    if data == filling * len(data):
        raise BrokenError(f"the used length is {used.length}, and no byte was written", WRITTEN)
    # That many random bytes have many values.
    kinds = len(set(data))
    assert kinds > SIZE // 4, f"{SIZE} random bytes have {kinds} values: too few by far"


@pytest.mark.clause("5.4.6.2:1")
def test_no_two_buffers_get_the_same_bytes(rng: RngDriver) -> None:
    rng.start()
    found = [gather(rng, SIZE) for _ in range(8)]
    again = len(found) - len(set(found))
    assert not again, f"{again} of {len(found)} answers were given before"


@pytest.mark.clause("5.4.6.2:1")
def test_no_part_of_any_answer_is_constant_or_came_before(rng: RngDriver, effort: Effort) -> None:
    rng.start()
    for random in effort.rounds():
        seen: set[bytes] = set()
        values: set[int] = set()
        for _ in range(40):
            sizes = [random.choice((16, 64, 100, 1000, 4096)) for _ in range(6)]
            sent = rng.place_some(rng.request(size) for size in sizes)
            rng.offer(*sent)
            for one in sent:
                used = rng.session.wait_for(REQUESTQ, one.head)
                data = rng.check(one, used)[: used.length]
                for at in range(0, len(data) - BLOCK + 1, BLOCK):
                    block = data[at : at + BLOCK]
                    assert len(set(block)) > 1, f"{BLOCK} bytes from byte {at} on are {block[0]:#x}"
                    assert block not in seen, f"the {BLOCK} bytes from byte {at} on came before"
                    seen.add(block)
                values.update(data)
        if len(seen) > ENOUGH:
            assert len(values) == 256, f"the bytes have {len(values)} values, and never the others"


@pytest.mark.clause("5.4.6.2:1")
def test_another_driver_does_not_get_the_same_bytes_after_a_reset(rng: RngDriver) -> None:
    rng.start()
    before = gather(rng, SIZE)
    rng.start()
    assert gather(rng, SIZE) != before, "the same random bytes as before the reset"


@pytest.mark.clause("5.4.6.2:2")
def test_a_driver_that_asks_on_has_its_buffer_filled(rng: RngDriver) -> None:
    rng.start()
    same(len(gather(rng, 10_000)), 10_000, "the number of random bytes")


@pytest.mark.clause("2.6:3", "5.4.6.2:2")
def test_nothing_is_written_beyond_the_end_of_the_buffer(session: Session, rng: RngDriver) -> None:
    rng.start()
    around = session.room(3 * SIZE)
    before = session.content(around)
    queue = session.queues[REQUESTQ]
    for _ in range(8):
        head = queue.place([type(around)(around.address + SIZE, SIZE, writable=True)])
        queue.make_available(head)
        session.kick(REQUESTQ)
        length = session.wait_for(REQUESTQ, head).length
        with about(WRITTEN):
            assert length <= SIZE, f"the used length is {length}, of a buffer of {SIZE}"
    after = session.content(around)
    same(after[:SIZE], before[:SIZE], "the bytes before the buffer")
    same(after[2 * SIZE :], before[2 * SIZE :], "the bytes behind the buffer")


@pytest.mark.clause("2.7.8.2:2")
def test_as_many_bytes_are_written_as_the_used_length_says(
    session: Session, rng: RngDriver
) -> None:
    rng.start()
    sent = rng.place(rng.request(100_000))
    before = session.content(*sent.pieces)
    rng.offer(sent)
    used = session.wait_for(REQUESTQ, sent.head)
    rng.check(sent, used)
    length = used.length
    end = slice(max(0, length - SIZE), length)
    written = session.content(*sent.pieces)[end] != before[end]
    assert written, f"the used length is {length}, and the last of those bytes were not written"

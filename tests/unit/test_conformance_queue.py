"""A session's virtqueue: whose a used buffer is."""

from virtiopy.conformance.sessions.memory import DRIVERS_PART, SessionMemory
from virtiopy.conformance.sessions.queue import SessionQueue
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.virtqueue.driver import Allocator, Piece, Used


def test_what_an_earlier_chain_came_to_is_not_that_of_a_later_one_with_its_head() -> None:
    with SessionMemory() as memory:
        allocator = Allocator(*DRIVERS_PART)
        queue = SessionQueue(0, memory, 1, allocator, Trace(), event_idx=False)
        queue.place([Piece(0x800, 8)])
        queue.completed[0] = Used(0, 8)
        queue._free.append(0)
        assert queue.place([Piece(0x800, 8)]) == 0
        assert queue.completed == {}

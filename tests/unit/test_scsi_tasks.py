"""Commands of the SCSI host device that workers have, and what ends them early."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.unit.scsi_bench import (
    BLOCK,
    CONTROL,
    DISK,
    REQUESTS,
    STALE,
    Reply,
    function_request,
    lun_field,
    parse_reply,
    request_header,
)
from tests.unit.test_blk_cached import CachedDisk
from tests.unit.vhost_user import Driver, Served
from virtiopy.devices.scsi import Scsi, ScsiDisk
from virtiopy.devices.scsi.control import Function
from virtiopy.devices.scsi.requests import Response
from virtiopy.eventloop import WORKERS
from virtiopy.virtqueue.buffers import Buffers
from virtiopy.virtqueue.driver import Piece, Used


class HeldDisk(CachedDisk):
    """A disk whose writes wait until the test lets them go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.may_go_on = threading.Event()

    def write(self, offset: int, buffers: Buffers, *, stable: bool = False) -> None:
        self.begun.release()
        assert self.may_go_on.wait(PATIENCE)
        super().write(offset, buffers, stable=stable)


class Tasks:
    """A device behind an event loop, and its driver."""

    def __init__(self, driver: Driver, device: Scsi, disk: HeldDisk) -> None:
        self.driver = driver
        self.device = device
        self.disk = disk
        self.used: list[Used] = []
        self.answers: dict[int, tuple[Piece, Piece | None]] = {}

    def start(self, cdb: bytes, data: bytes = b"", *, room: int = 0, tag: int = 1) -> int:
        """Begin a request; returns its head."""
        driver = self.driver
        pieces = [driver.piece(request_header(cdb, lun_field(0, 0), tag))]
        if data:
            pieces.append(driver.piece(data))
        answer = driver.piece(108)
        data_in = driver.piece(room) if room else None
        pieces += [answer, *([data_in] if data_in else [])]
        head = driver.queues[REQUESTS].driver.add(pieces)
        self.answers[head] = answer, data_in
        driver.queues[REQUESTS].notify()
        return head

    def end(self) -> tuple[int, Reply]:
        """Wait for a request's end; returns its head, and how it ended."""
        if not self.used:
            self.used = self.driver.queues[REQUESTS].wait()
        used = self.used.pop(0)
        answer, data_in = self.answers.pop(used.head)
        written = self.driver.memory.read(answer.address, 108)
        if data_in is not None:
            written += self.driver.memory.read(data_in.address, data_in.length)
        return used.head, parse_reply(used.length, written, 96)

    def start_function(self, subtype: int, tag: int = 1, target: int = 0) -> Piece:
        driver = self.driver
        response = driver.piece(bytes([STALE]))
        response = Piece(response.address, 1, writable=True)
        request = driver.piece(function_request(subtype, lun_field(target, 0), tag))
        driver.queues[CONTROL].driver.add([request, response])
        driver.queues[CONTROL].notify()
        return response

    def end_function(self, response: Piece) -> int:
        self.driver.queues[CONTROL].wait()
        return self.driver.memory.read(response.address, 1)[0]


WRITE_9 = bytes.fromhex("2a000000000900000100")
WRITE = bytes.fromhex("2a000000000000000100")
READ = bytes.fromhex("28000000000000000100")


@pytest.fixture
def tasks(tmp_path: Path) -> Iterator[Tasks]:
    disk = HeldDisk()
    device = Scsi({DISK: ScsiDisk(disk)})
    with (
        Served(device, tmp_path / "scsi.sock") as served,
        Driver(served.connect(), queue_count=3, queue_size=64) as driver,
    ):
        driver.start()
        tasks = Tasks(driver, device, disk)
        # The unit tells that it is new.
        tasks.start(bytes(6))
        tasks.end()
        try:
            yield tasks
        finally:
            disk.may_go_on.set()


def occupy_workers(tasks: Tasks) -> list[int]:
    """Begin as many writes, one after the other, as there are workers."""
    heads = []
    for tag in range(WORKERS):
        heads.append(tasks.start(WRITE, bytes(BLOCK), tag=tag))
        assert tasks.disk.begun.acquire(timeout=PATIENCE)
    return heads


def test_what_waits_for_nothing_overtakes_what_workers_have(tasks: Tasks) -> None:
    writes = occupy_workers(tasks)
    read = tasks.start(READ, room=BLOCK)
    head, reply = tasks.end()
    assert (head, reply.good) == (read, True)
    assert reply.data == tasks.disk.content[:BLOCK]
    inquiry = tasks.start(bytes.fromhex("120000002400"), room=36)
    assert tasks.end()[0] == inquiry
    assert tasks.disk.threads[-1] == ("read_cached", "backend")
    tasks.disk.may_go_on.set()
    assert {tasks.end()[0] for _ in writes} == set(writes)


def test_a_read_of_what_is_not_in_memory_is_a_workers(tasks: Tasks) -> None:
    tasks.disk.cached = False
    tasks.start(READ, room=BLOCK)
    _, reply = tasks.end()
    assert (reply.good, reply.data) == (True, bytes(tasks.disk.content[:BLOCK]))
    assert tasks.disk.threads[-1][0] == "read"
    assert tasks.disk.threads[-1][1] != "backend"


@pytest.mark.parametrize(
    ("function", "response"),
    [
        (Function.ABORT_TASK, Response.ABORTED),
        (Function.ABORT_TASK_SET, Response.ABORTED),
        (Function.CLEAR_TASK_SET, Response.ABORTED),
        (Function.LOGICAL_UNIT_RESET, Response.RESET),
        (Function.I_T_NEXUS_RESET, Response.RESET),
    ],
)
def test_a_task_that_no_worker_came_to_is_ended_before_the_function_is(
    tasks: Tasks, function: int, response: int
) -> None:
    writes = occupy_workers(tasks)
    waiting = tasks.start(WRITE, b"x" * BLOCK, tag=99)
    # A query has seen that it is there.
    assert tasks.end_function(tasks.start_function(Function.QUERY_TASK, 99)) == (
        Response.FUNCTION_SUCCEEDED
    )
    answer = tasks.start_function(function, 99)
    # Nothing ends while the workers have what came before it: functions are seen to in order.
    assert tasks.end_function(tasks.start_function(Function.QUERY_TASK, 99)) == (
        Response.FUNCTION_SUCCEEDED
    )
    assert tasks.driver.queues[REQUESTS].driver.take_used() is None
    tasks.disk.may_go_on.set()
    assert tasks.end_function(answer) == Response.OK
    # It ended before that: no wait for it is needed.
    tasks.used = tasks.driver.queues[REQUESTS].driver.take_all_used()
    assert waiting in [used.head for used in tasks.used]
    ended = dict(_ended(tasks, [*writes, waiting]))
    assert ended[waiting].response == response
    assert ended[waiting].residual == BLOCK
    assert tasks.disk.content[:BLOCK] == bytes(BLOCK)
    assert all(ended[head].good for head in writes)


def _ended(tasks: Tasks, heads: list[int]) -> Iterator[tuple[int, Reply]]:
    for _ in heads:
        yield tasks.end()


def test_another_task_is_not_aborted(tasks: Tasks) -> None:
    writes = occupy_workers(tasks)
    waiting = tasks.start(WRITE_9, b"x" * BLOCK, tag=99)
    assert tasks.end_function(tasks.start_function(Function.ABORT_TASK, 98)) == Response.OK
    assert tasks.end_function(tasks.start_function(Function.QUERY_TASK, 98)) == Response.OK
    tasks.disk.may_go_on.set()
    ended = dict(_ended(tasks, [*writes, waiting]))
    assert ended[waiting].good
    assert tasks.disk.content[9 * BLOCK : 10 * BLOCK] == b"x" * BLOCK


def test_a_unit_is_unplugged_once_its_commands_ended(tasks: Tasks) -> None:
    [write, *_] = occupy_workers(tasks)
    device = tasks.device
    unplugging = threading.Thread(target=device.remove_unit, args=[DISK])
    unplugging.start()
    assert not tasks.disk.closed
    tasks.disk.may_go_on.set()
    unplugging.join(PATIENCE)
    assert tasks.disk.closed
    assert dict(_ended(tasks, [0] * WORKERS))[write].good

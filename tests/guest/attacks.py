"""Frontends that attack a device which is served, and what that costs those who are good."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.guest.vhost_user import Backend, serve
from tests.patience import PATIENCE
from tests.unit.vhost_user import Driver
from virtiopy.memory import GuestMemory
from virtiopy.vhost.user.frontend import connect
from virtiopy.virtqueue.driver import Piece
from virtiopy.virtqueue.layout import VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE

MIB = 1 << 20
SECTOR = 512
IN = 0

#: What a user is promised: seconds for a good request and for the end by
#: SIGTERM, MiB beyond the frontend's own memory.
ANSWER_BOUND = 0.5
END_BOUND = 1.0
GROWTH_BOUND = 64.0

#: Lines that an attack of a second or two may have said: 32 at once of a kind, and one a second.
LINES_BOUND = 100

#: The queue that is attacked, and the one that a good driver uses.
ATTACKED, GOOD = 0, 1


#: Of the frontend's memory, bytes.
MEMORY = 128 * MIB


@dataclass(slots=True, frozen=True)
class Cost:
    """What an attack cost: seconds, MiB, how many good requests were served meanwhile, and how many
    lines were said.
    """

    answer: float
    end: float
    growth: float
    answers: int
    lines: int = 0

    @property
    def is_in_bounds(self) -> bool:
        """Whether each is as promised."""
        return (
            self.answer < ANSWER_BOUND
            and self.end < END_BOUND
            and self.growth < GROWTH_BOUND
            and self.lines < LINES_BOUND
        )


Step = Callable[[], None]


@dataclass(slots=True, frozen=True)
class Attack:
    """What a hostile driver prepares in a queue; the step that it then repeats is returned."""

    prepare: Callable[[Driver], Step]
    options: str = ""
    queue_size: int = 128
    #: Whether only messages have to be answered: a thread that sends the interrupts of all queues
    #: of one frontend waits where that has made one wait.
    only_messages: bool = False


def _offer_all_again(driver: Driver) -> None:
    # As many as the ring holds, and no more: the device would be right to need a reset.
    queue = driver.queues[ATTACKED]
    queue.driver.available.idx = (queue.driver.used.idx + queue.driver.size) % 65536
    queue.notify()


def _fill(driver: Driver, head: Callable[[int], int]) -> None:
    available = driver.queues[ATTACKED].driver.available
    for entry in range(driver.queues[ATTACKED].driver.size):
        available.ring[entry] = head(entry)


def _loops(driver: Driver) -> Step:
    """Every chain is malformed: its descriptor is its own next."""
    ring = driver.queues[ATTACKED].driver
    for index in range(ring.size):
        ring.write_descriptor(index, 0x1000, 16, VIRTQ_DESC_F_NEXT, index)
    _fill(driver, lambda entry: entry)
    return lambda: _offer_all_again(driver)


def _longest_chains(driver: Driver) -> Step:
    """Every entry is the head of a chain through the whole descriptor table."""
    ring = driver.queues[ATTACKED].driver
    for index in range(ring.size):
        last = index == ring.size - 1
        flags = VIRTQ_DESC_F_WRITE | (0 if last else VIRTQ_DESC_F_NEXT)
        ring.write_descriptor(index, 0x1000, 16, flags, 0 if last else index + 1)
    _fill(driver, lambda entry: 0)
    return lambda: _offer_all_again(driver)


def _reads(driver: Driver, sector: int, parts: int, size: int, misaligned: int = 0) -> Step:
    """Every chain is a read of `parts` times `size` bytes, into the same memory."""
    ring = driver.queues[ATTACKED].driver
    header = driver.piece(IN.to_bytes(8, "little") + sector.to_bytes(8, "little"))
    status = driver.piece(1)
    room = Piece(MEMORY - size - 4096 + misaligned, size, writable=True)
    pieces = [header, *[room] * parts, status]
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        flags = VIRTQ_DESC_F_WRITE * piece.writable | (0 if last else VIRTQ_DESC_F_NEXT)
        ring.write_descriptor(index, piece.address, piece.length, flags, 0 if last else index + 1)
    _fill(driver, lambda entry: 0)
    return lambda: _offer_all_again(driver)


def _full_call(driver: Driver) -> Step:
    """The eventfd of the interrupts is full, and waits."""
    queue = driver.queues[ATTACKED]
    os.set_blocking(queue.call, True)
    os.eventfd_write(queue.call, (1 << 64) - 2)
    return _loops(driver)


def _moves_of_the_ring(driver: Driver) -> Step:
    """The ring is stopped and started for ever, with all its entries available."""
    repeat = _longest_chains(driver)
    frontend = driver.frontend

    def step() -> None:
        repeat()
        state = frontend.stop_ring(ATTACKED)
        frontend.start_ring(ATTACKED, driver.queues[ATTACKED].ring(state), driver.memory)

    return step


#: By name.
ATTACKS: dict[str, Attack] = {
    "malformed chains": Attack(_loops),
    "chains of 32768 descriptors": Attack(_longest_chains, queue_size=32768),
    "reads of 4 GiB beyond the end": Attack(
        lambda driver: _reads(driver, 1 << 40, 64, 64 * MIB), queue_size=128
    ),
    "reads of 4 GiB": Attack(lambda driver: _reads(driver, 0, 64, 64 * MIB)),
    "reads of 4 GiB past the page cache": Attack(
        lambda driver: _reads(driver, 0, 64, 64 * MIB, misaligned=3), options=",cache=none"
    ),
    "an interrupt that waits": Attack(_full_call, only_messages=True),
    "a ring that moves": Attack(_moves_of_the_ring),
}


def sparse_image(path: Path) -> Path:
    """Make a disk of 8 GiB, all of it a hole."""
    with path.open("wb") as image:
        image.truncate(8 << 30)
    return path


def anonymous(pid: int) -> float:
    """Return the memory that is a process's own, in MiB."""
    status = Path(os.sep, "proc", str(pid), "status").read_text()
    words = dict(line.split(":", 1) for line in status.splitlines())
    return int(words["RssAnon"].split()[0]) / 1024


def _good_request(driver: Driver, request: list[Piece] | None) -> float:
    """Have a message answered, and a good read served; returns how long both took, in seconds."""
    queue = driver.queues[GOOD]
    begun = time.monotonic()
    driver.frontend.get_features()
    if request is None:
        return time.monotonic() - begun
    queue.driver.add(request)
    queue.notify()
    queue.wait()
    took = time.monotonic() - begun
    assert driver.memory.read(request[-1].address, 1) == b"\0"
    return took


def measure(attack: Attack, mode: str, folder: Path, seconds: float) -> Cost:
    """Serve a disk, attack it for so long, and end it by SIGTERM while it is attacked."""
    image = sparse_image(folder / "disk.img")
    path = folder / "blk.sock"
    backend = serve("blk", f"{image},queues=2,mode={mode}{attack.options}", path)
    try:
        return _attack(attack, backend, seconds)
    finally:
        backend.kill()


def _attack(attack: Attack, backend: Backend, seconds: float) -> Cost:
    stream = connect(backend.path)
    stream.settimeout(PATIENCE)
    memory = GuestMemory.allocate(MEMORY)
    with Driver(stream, queue_count=2, queue_size=attack.queue_size, memory=memory) as driver:
        driver.start()
        request = [
            driver.piece(IN.to_bytes(8, "little") + bytes(8)),
            driver.piece(SECTOR),
            driver.piece(1),
        ]
        _good_request(driver, request)
        before = growth = anonymous(backend.process.pid)
        step = attack.prepare(driver)
        answers = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            step()
            answers.append(_good_request(driver, None if attack.only_messages else request))
            growth = max(growth, anonymous(backend.process.pid))
        step()
        return Cost(max(answers), _end(backend), growth - before, len(answers))


def _end(backend: Backend) -> float:
    """End it by SIGTERM; returns how long that took, in seconds."""
    begun = time.monotonic()
    backend.process.send_signal(signal.SIGTERM)
    backend.process.wait(PATIENCE)
    return time.monotonic() - begun

"""A session recorded by a proxy, and played to backends that answer the same or otherwise."""

import base64
import json
import os
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from tests.patience import PATIENCE
from tests.unit.test_vhost_user_proxy import Between
from tests.unit.vhost_user import Driver, Served, readable
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError
from virtiopy.spec import DeviceId
from virtiopy.vhost.user import backend
from virtiopy.vhost.user.frontend import connect
from virtiopy.vhost.user.memory import FrontendMemory
from virtiopy.vhost.user.messages import MemoryRegion, RingAddresses
from virtiopy.vhost.user.record.format import (
    AvailableEvent,
    CutOffError,
    Event,
    LimitEvent,
    MessageEvent,
    MissedEvent,
    NotifiedEvent,
    SessionEvent,
    UsedEvent,
    decode,
    encode,
    header,
    read,
)
from virtiopy.vhost.user.record.player import Player
from virtiopy.vhost.user.record.recorder import LIMIT, Recorder
from virtiopy.vhost.user.record.ring import PlayedRing
from virtiopy.virtqueue.buffers import gather, scatter
from virtiopy.virtqueue.driver import Piece
from virtiopy.virtqueue.queue import Chain, Virtqueue

EVENTS: list[Event] = [
    SessionEvent(1),
    MessageEvent(2, "SET_FEATURES", True, 8, b"\x01" + bytes(7), 0),
    MessageEvent(11, "GET_VRING_BASE", False, 4, bytes(8), 1),
    AvailableEvent(1, 0, 3, ((4096, 3, 0x8000, 5, 0, 0),), b"hello"),
    AvailableEvent(2, 1, 9, (), b"", malformed=True),
    NotifiedEvent(0, is_kick=True),
    NotifiedEvent(1, is_kick=False),
    UsedEvent(1, 0, 2, b"\x00\xff"),
    UsedEvent(2, 1, 4, None),
    MissedEvent(1, 7),
    LimitEvent(1 << 20),
]


class Upper(VirtioDevice):
    """Answers each request with its own bytes in upper case; subclasses do otherwise."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY
    queue_sizes = (16,)

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        return scatter(chain.writable, self.answer(gather(chain.readable)))

    def answer(self, data: bytes) -> bytes:
        return data.upper()


class Lower(Upper):
    def answer(self, data: bytes) -> bytes:
        return data.lower()


class Shorter(Upper):
    def answer(self, data: bytes) -> bytes:
        return super().answer(data)[:-1]


class Featured(Upper):
    features = 1 << 5


class Backwards(Upper):
    def handle(self, queue: Virtqueue) -> None:
        chains = queue.pop_many()
        queue.push_many((chain, self.serve(queue, chain)) for chain in reversed(chains))
        self.notify(queue)
        queue.enable_kicks()


class Silent(Upper):
    def handle(self, queue: Virtqueue) -> None:
        queue.pop_many()


def ask(driver: Driver, *texts: bytes) -> None:
    queue = driver.queues[0]
    for text in texts:
        queue.driver.add([driver.piece(text), driver.piece(64)])
    # The driver takes none back before it is notified: the device uses all at once.
    queue.driver.used_event[0] = queue.driver.last_used
    queue.notify()
    readable(queue.call)
    os.eventfd_read(queue.call)
    assert len(queue.driver.take_all_used()) == len(texts)
    # The device looks at the ring no more: it finds the next chain by its kick, after the proxy.
    driver.frontend.get_features()


def record(folder: Path, *rounds: Sequence[bytes], sessions: int = 1, limit: int = LIMIT) -> Path:
    """Record a driver that asks for each round of texts at once."""
    path = folder / "seen.rec"
    with Recorder(path, limit) as recorder, Between(folder, recorder, device=Upper()) as between:
        for _ in range(sessions):
            with between.driver() as driver:
                for texts in rounds:
                    ask(driver, *texts)
                driver.frontend.stop_ring(0)
    return path


def play(
    path: Path, device: VirtioDevice, *, patience: float = PATIENCE, any_order: bool = False
) -> tuple[list[str], Player]:
    """Play a recording to a device; returns the lines of differences."""
    lines: list[str] = []
    socket = path.with_name("other.sock")
    with Served(device, socket):
        player = Player(partial(connect, socket), lines.append, patience, any_order)
        player.play(read(path))
    return lines, player


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_read_as_it_was_written(event: Event) -> None:
    line = encode(event, 1.25)
    assert json.loads(line)["at"] == 1.25
    assert decode(line) == event


def test_the_same_device_answers_the_same(tmp_path: Path) -> None:
    path = record(tmp_path, [b"one", b"two"], [b"three"])
    lines, player = play(path, Upper())
    assert lines == []
    assert (player.tally.chains, player.tally.not_compared, player.tally.missed) == (3, 0, 0)
    assert player.tally.messages >= 8


def test_a_recording_holds_what_the_driver_sent_and_what_it_got(tmp_path: Path) -> None:
    events = list(read(record(tmp_path, [b"one"])))
    [chain] = [event for event in events if isinstance(event, AvailableEvent)]
    [used] = [event for event in events if isinstance(event, UsedEvent)]
    assert (chain.data, used.length, used.data) == (b"one", 3, b"ONE")
    assert [flags for _, _, _, _, flags, _ in chain.descriptors] == [1, 2]
    kicks = [event for event in events if isinstance(event, NotifiedEvent) and event.is_kick]
    assert events.index(chain) < events.index(kicks[0]) < events.index(used)


def test_other_bytes_are_a_difference(tmp_path: Path) -> None:
    lines, _ = play(record(tmp_path, [b"one"], [b"2"]), Lower())
    assert lines == ["queue 0: chain 1: byte 0 of 3 is 0x6f, was 0x4f; 3 bytes differ"]


def test_another_length_is_a_difference(tmp_path: Path) -> None:
    lines, _ = play(record(tmp_path, [b"one"]), Shorter())
    assert lines == ["queue 0: chain 1: used length 2, was 3"]


def test_another_answer_to_a_message_is_a_difference(tmp_path: Path) -> None:
    lines, _ = play(record(tmp_path, [b"one"]), Featured())
    assert len(lines) >= 1
    assert all(line.startswith("GET_FEATURES: the answer is 0x") for line in lines)


def test_what_a_backend_does_not_offer_is_left_out_and_the_rest_is_played(tmp_path: Path) -> None:
    path = tmp_path / "seen.rec"
    with (
        Recorder(path) as recorder,
        Between(tmp_path, recorder, device=Upper()) as between,
        between.driver() as driver,
    ):
        assert driver.frontend.get_status() is not None
        ask(driver, b"one")
        driver.frontend.stop_ring(0)
    lines: list[str] = []
    socket = tmp_path / "other.sock"
    # A backend without acknowledgements, and without the device status.
    with pytest.MonkeyPatch.context() as patch, Served(Upper(), socket):
        patch.setattr(backend, "PROTOCOL_FEATURES", backend.PROTOCOL_FEATURES & ~(1 << 3 | 1 << 16))
        player = Player(partial(connect, socket), lines.append)
        player.play(read(path))
    assert len(lines) == 2
    assert lines[0].startswith("GET_PROTOCOL_FEATURES: the answer is 0x")
    assert lines[1] == "GET_STATUS is left out: the backend does not offer STATUS"
    assert player.tally.chains == 1


def test_another_order_is_a_difference_unless_any_will_do(tmp_path: Path) -> None:
    path = record(tmp_path, [b"one", b"two"])
    assert play(path, Backwards())[0] == ["queue 0: chain 1: is used after chain 2"]
    assert play(path, Backwards(), any_order=True)[0] == []


def test_a_chain_that_is_never_used_is_a_difference_and_ends_the_session(tmp_path: Path) -> None:
    path = record(tmp_path, [b"one"], sessions=2)
    lines, _ = play(path, Silent(), patience=0.2)
    assert lines == [
        "queue 0: chain 1 is not used within 0.2 seconds",
        "session 2: queue 0: chain 1 is not used within 0.2 seconds",
    ]


def test_a_backend_that_leaves_is_a_difference(tmp_path: Path) -> None:
    path = record(tmp_path, [b"one"])
    lines: list[str] = []

    def leave() -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours

    Player(leave, lines.append).play(read(path))
    assert len(lines) == 1
    assert lines[0].startswith("GET_FEATURES: ")


def test_a_malformed_chain_is_played_too(tmp_path: Path) -> None:
    path = tmp_path / "seen.rec"
    with (
        Recorder(path) as recorder,
        Between(tmp_path, recorder, device=Upper()) as between,
        between.driver() as driver,
    ):
        queue = driver.queues[0]
        queue.driver.add([Piece(1 << 40, 16)])
        queue.notify()
        queue.wait()
        driver.frontend.stop_ring(0)
    [chain] = [event for event in read(path) if isinstance(event, AvailableEvent)]
    assert chain.malformed
    assert chain.descriptors[0][2] == 1 << 40
    assert play(path, Upper())[0] == []


def test_a_recording_ends_at_its_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = record(tmp_path, [b"one"] * 4, *[[b"x" * 60]] * 30, limit=8000)
    *_, last = read(path)
    assert last == LimitEvent(8000)
    assert path.stat().st_size < 8100
    assert "has the 8000 bytes of its limit" in caplog.text
    assert play(path, Upper())[0] == []


def test_a_recording_that_is_cut_off_is_played_as_far_as_it_is_whole(tmp_path: Path) -> None:
    path = record(tmp_path, [b"one"], [b"two"])
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b'"used":2') + 20])
    with pytest.raises(CutOffError, match=r"is cut off in line \d+\.$"):
        play(path, Upper())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "its first line"),
        ("[]\n", "its first line"),
        ('{"format": "virtiopy recording", "version": 2}\n', "is of version 2"),
        (header() + "what?\n", "its line 2 is no event"),
        (header() + '{"used": -1, "queue": 0, "length": 0}\n', "its line 2 is no event"),
        (header() + '{"kick": 0}\n', "begins without a session"),
        (
            header()
            + '{"session": 1}\n'
            + '{"available": 1, "queue": 0, "head": 1, "descriptors": [], "data": ""}\n',
            "before that is started",
        ),
        ("\udcff", "no text"),
        ("[" * 100_000 + "\n", "its first line"),
        (header() + "[" * 100_000 + "\n", "its line 2 is no event"),
        (
            header() + '{"message": "REM_MEM_REG", "request": 38, "from": "frontend", "flags": 1, '
            '"payload": "", "files": 1000000000000}\n',
            "its line 2 is no event",
        ),
        (
            header() + '{"available": 1, "queue": 0, "head": 1, "data": "", '
            '"descriptors": [[0, 0, 0, 0, 1099511627776, 0]]}\n',
            "its line 2 is no event",
        ),
    ],
)
def test_what_is_no_recording_is_refused_in_a_sentence(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "bad.rec"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=words) as error:
        play(path, Upper())
    assert str(error.value).endswith(".")


def test_a_recording_of_more_memory_than_can_be_is_refused(tmp_path: Path) -> None:
    path = record(tmp_path, [b"one"])
    lines = path.read_text().splitlines()
    for at, line in enumerate(lines):
        event = json.loads(line)
        if event.get("message") == "SET_MEM_TABLE" and event["from"] == "frontend":
            payload = bytearray(base64.b64decode(event["payload"]))
            payload[16:24] = (1 << 62).to_bytes(8, "little")
            lines[at] = json.dumps(event | {"payload": base64.b64encode(payload).decode()})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError, match=r"memory that cannot be mapped|memory of"):
        play(path, Upper())


def test_a_users_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "seen.rec"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="would replace a file"):
        Recorder(path)
    assert path.read_text() == "mine"


def test_a_disk_that_is_full_ends_the_recording_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Recorder(Path("/dev/full")) as recorder,
        Between(tmp_path, recorder, device=Upper()) as between,
        between.driver() as driver,
    ):
        ask(driver, b"one")
    assert "the recording /dev/full ends here: No space left on device" in caplog.text


def test_chains_that_came_too_late_are_counted(tmp_path: Path) -> None:
    path = record(tmp_path, [b"one"])
    lines = path.read_text().splitlines(keepends=True)
    lines.insert(-2, encode(MissedEvent(0, 3), 0))
    path.write_text("".join(lines))
    assert play(path, Upper())[1].tally.missed == 3


# Recordings that lie

REGION = MemoryRegion(0, 1 << 16, 0x7000_0000, 0)
CHAIN = AvailableEvent(1, 0, 3, (), b"")


def _started_ring(memory: FrontendMemory, base: int) -> PlayedRing:
    """Start a ring of 4 entries at the beginning of memory."""
    fd = os.memfd_create("recorded")
    os.ftruncate(fd, REGION.size)
    memory.add(REGION, fd)
    ring = PlayedRing(0)
    ring.size, ring.base = 4, base
    here = REGION.user_address
    ring.addresses = RingAddresses(0, 0, here, here + 0x200, here + 0x100, 0)
    ring.start(memory, event_idx=False)
    return ring


def test_a_ring_that_is_said_to_be_larger_once_it_is_started_keeps_its_room() -> None:
    with FrontendMemory() as memory, _started_ring(memory, 1000) as ring:
        ring.size = 32768
        ring.make_available(memory, CHAIN)
        assert memory.read(0x100, 12) == bytes(2) + (1001).to_bytes(2, "little") + b"\3" + bytes(7)
        assert memory.read(0x100 + 4 + 2 * 1000, 2) == bytes(2)


def test_a_ring_whose_memory_is_taken_away_is_started_no_more() -> None:
    with FrontendMemory() as memory, _started_ring(memory, 0) as ring:
        memory.remove(REGION)
        ring.memory_changed(memory)
        with pytest.raises(ConfigError, match="before that is started"):
            ring.make_available(memory, CHAIN)
        ring.ask_for_call()
        ring.collect(memory)

"""The network device (5.1): records."""

import pytest

from tests.unit.net.rig import HEADER, FakeLink, frame, header
from virtiopy.devices.net import RecordedLink


class FakeRecorder:
    def __init__(self) -> None:
        self.frames: list[tuple[bool, bytes]] = []
        self.closed = False

    def record(self, frame: bytes, *, inbound: bool) -> None:
        self.frames.append((inbound, frame))

    def close(self) -> None:
        self.closed = True


def test_a_recorded_link_records_what_passes_both_ways() -> None:
    link, recorder = FakeLink(), FakeRecorder()
    recorded = RecordedLink(link, recorder)
    link.incoming[0].append(header() + frame(100))
    pieces = [memoryview(bytearray(size)) for size in (5, 20, 2000)]
    assert recorded.read(0, pieces) == HEADER + 100
    recorded.write(0, [header(), frame(60)[:20], frame(60)[20:]])
    assert recorder.frames == [(True, frame(100)), (False, frame(60))]
    assert link.sent[0] == [header() + frame(60)]
    recorded.close()
    assert link.closed
    assert recorder.closed


def test_a_frame_that_the_link_does_not_take_is_not_recorded() -> None:
    link, recorder = FakeLink(), FakeRecorder()
    recorded = RecordedLink(link, recorder)
    link.room = 0
    with pytest.raises(BlockingIOError):
        recorded.write(0, [header(), frame()])
    assert recorder.frames == []

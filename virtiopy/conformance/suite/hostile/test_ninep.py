"""Messages that no driver may send to a 9P device, which virtio has no section on."""

from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.hostile.acts import Act, chain, on_queues
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.memory import SPARE
from virtiopy.conformance.suite.hostile.cases import each
from virtiopy.devices.ninep import HEADER_SIZE, make_message
from virtiopy.virtqueue.driver import Piece

#: The section that gives the device its number.
SECTION = "5"

QUEUE, ROOM, HUGE = 0, 256, SPARE[1] - SPARE[0]
TVERSION, TATTACH, TWALK, TREAD, TWRITE, TFLUSH = 100, 104, 110, 116, 118, 108
NO_TAG, NO_FID = 0xFFFF, b"\xff" * 4

#: A Tversion, to be cut and to be added to.
VERSION = make_message(TVERSION, NO_TAG, b"\x00\x20\x00\x00\x08\x009P2000.L")


def sized(size: int, kind: int = TVERSION) -> bytes:
    """Return a message that says it has another size."""
    return size.to_bytes(4, "little") + make_message(kind, 1, bytes(16))[4:]


MESSAGES = (
    Act("header-of-6-bytes", SECTION, chain(VERSION[: HEADER_SIZE - 1], ROOM)),
    Act("nothing-to-read", SECTION, chain(ROOM)),
    Act("size-of-0", SECTION, chain(sized(0), ROOM)),
    Act("size-of-6", SECTION, chain(sized(6), ROOM)),
    Act("longer-than-it-is", SECTION, chain(sized(0xFFFF_FFFF), ROOM)),
    Act("shorter-than-it-is", SECTION, chain(VERSION + bytes(100), ROOM)),
    Act("no-answer", SECTION, chain(VERSION)),
    Act("answer-of-10-bytes", SECTION, chain(VERSION, 10)),
    Act("answer-cut-short", SECTION, chain(VERSION, 11)),
    Act("an-answer", SECTION, chain(make_message(TVERSION + 1, 1, bytes(16)), ROOM)),
    Act("type-0", SECTION, chain(make_message(0, 1, b""), ROOM)),
    Act("type-255", SECTION, chain(make_message(255, 1, b""), ROOM)),
    Act("type-that-is-none", SECTION, chain(make_message(98, 1, bytes(64)), ROOM)),
    Act("version-of-nothing", SECTION, chain(make_message(TVERSION, 1, b""), ROOM)),
    Act("version-that-is-long", SECTION, chain(make_message(TVERSION, 1, b"\xff" * 6), ROOM)),
    Act("messages-of-0-bytes", SECTION, chain(make_message(TVERSION, 1, bytes(6)), ROOM)),
    Act("attach-of-nothing", SECTION, chain(make_message(TATTACH, 1, b""), ROOM)),
    Act("attach-of-ones", SECTION, chain(make_message(TATTACH, 1, b"\xff" * 64), ROOM)),
    Act("walk-of-65535-names", SECTION, chain(make_message(TWALK, 1, b"\xff" * 10), ROOM)),
    Act("read-of-4-gib", SECTION, chain(make_message(TREAD, 1, NO_FID * 4), ROOM)),
    Act("write-of-what-is-not-there", SECTION, chain(make_message(TWRITE, 1, NO_FID * 4), ROOM)),
    Act("flush-of-itself", SECTION, chain(make_message(TFLUSH, 1, b"\x01\x00"), ROOM)),
    Act("huge-room", SECTION, chain(VERSION, Piece(SPARE[0], HUGE, writable=True))),
    Act("huge-message", SECTION, chain(VERSION, Piece(SPARE[0], HUGE), ROOM)),
)


@each("act", MESSAGES)
def test_a_message_that_no_driver_may_send(
    act: Act, session: Session, ninep: DeviceDriver, judge: Judge
) -> None:
    on_queues(act, [QUEUE], session, ninep, judge)

"""The 9P transport device (device ID 9).

virtio 1.4 reserves its number and has no section on it: the device is the one that Linux's
9pnet_virtio drives. A buffer has one 9P message for the server in its readable part, and room for
the server's answer in its writable part. The server is a program of the host's. The device reads no
more of a message than its header: size[4] type[1] tag[2], little-endian.
"""

import enum
import errno
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import ClassVar, Protocol

from virtiopy.devices.base import Fact, VirtioDevice
from virtiopy.errors import DriverError
from virtiopy.eventloop import EventLoop
from virtiopy.spec import DeviceId, feature_mask
from virtiopy.virtqueue.buffers import gather, scatter, total
from virtiopy.virtqueue.queue import BATCH, Chain, Virtqueue, batches_of_a_turn

log = logging.getLogger(__name__)

#: Bytes of what a message begins with: its size with this header, its type, its tag.
HEADER_SIZE = 7

#: The largest message, bytes: Linux's driver asks for up to 512 KiB.
MESSAGE_MAX = 1 << 20

#: How much of requests is taken from a driver before the server has answered, bytes.
HELD_MAX = 16 * MESSAGE_MAX

#: Seconds that a CPU may wait, in trapped mode, for the server to say something, and for all that
#: it has to be answered, before it goes on without.
MOMENT = 0.002
MOMENTS = 10 * MOMENT

#: Seconds that a server may take to answer what it has, when a queue is to stop.
SETTLING_TIME = 5.0

#: The longest mount tag, bytes: Linux's driver takes no longer one.
TAG_MAX = 255

#: The type of an answer that is an error number of Linux's, and the whole of it.
RLERROR = 7
ERROR_SIZE = HEADER_SIZE + 4

#: The requests of 9P2000.L are even numbers; their answers are one more.
TYPE_MIN, TYPE_MAX = 8, 126


def header_of(message: bytes | memoryview) -> tuple[int, int, int]:
    """Return the size, the type and the tag of a message that has a whole header."""
    little = int.from_bytes
    return little(message[:4], "little"), message[4], little(message[5:HEADER_SIZE], "little")


def make_message(kind: int, tag: int, body: bytes) -> bytes:
    """Return a message."""
    size = HEADER_SIZE + len(body)
    return size.to_bytes(4, "little") + bytes([kind]) + tag.to_bytes(2, "little") + body


def make_error(tag: int, number: int) -> bytes:
    """Return the answer that is an error number of Linux's."""
    return make_message(RLERROR, tag, number.to_bytes(4, "little"))


class NinePFeature(enum.IntEnum):
    """Feature bits."""

    VIRTIO_9P_F_MOUNT_TAG = 0


class FileServerUser(Protocol):
    """What a file server tells its device, always with `lock` held."""

    lock: threading.RLock

    def answered(self, message: bytes | memoryview) -> None:
        """Take one answer, whole: its size is that of its header. It is the server's again then."""

    def server_gone(self) -> None:
        """Say that the server ended, and answers nothing more."""


class FileServer(Protocol):
    """A server of 9P2000.L. Its calls never wait for it; the caller holds the device's lock."""

    def start(self, loop: EventLoop | None, user: FileServerUser) -> bool:
        """Begin a session that knows of none before it; False where the server cannot be had."""

    def send(self, message: bytes) -> None:
        """Send a request."""

    def wait(self, seconds: float) -> bool:
        """Wait up to so long for something of the server's, and tell it; False if none came."""

    def hold(self, *, held: bool) -> None:
        """Say whether the caller waits for answers by itself: the loop looks for the end alone."""

    def end(self) -> None:
        """End the session: none of its answers comes any more."""

    def close(self) -> None:
        """End for good."""


@dataclass(slots=True, frozen=True)
class Pending:
    """A request that the server has."""

    queue: Virtqueue
    chain: Chain
    size: int


class NineP(VirtioDevice):
    """A 9P transport device, whose file server is `server`; drivers know it by its `mount_tag`."""

    device_id: ClassVar[DeviceId] = DeviceId.NINE_P
    feature_bits = NinePFeature
    features = feature_mask([NinePFeature.VIRTIO_9P_F_MOUNT_TAG])
    queue_sizes = (128,)

    def __init__(self, server: FileServer, mount_tag: str) -> None:
        super().__init__()
        if not 0 < len(mount_tag.encode()) <= TAG_MAX:
            raise ValueError(f"a mount tag has 1 to {TAG_MAX} bytes")
        self.mount_tag = mount_tag
        self.requests = self.errors = 0
        self._server = server
        self._in_session = self._gone = False
        #: What the server has, by tag.
        self._pending: dict[int, Pending] = {}
        #: Their bytes; and whether there may be requests that wait for there to be fewer.
        self._held = 0
        self._waits = False

    def config_space(self) -> bytes:
        """Return the tag's length (le16), and the tag."""
        tag = self.mount_tag.encode()
        return len(tag).to_bytes(2, "little") + tag

    # Requests

    def handle(self, queue: Virtqueue) -> None:
        """Give the server what is available; a message that is none is answered here."""
        if not self.may_block:
            self._server.hold(held=False)
            self._work(queue)
            return
        # Most answers come at once, and no other thread has to be woken for them: the loop looks
        # for those alone that do not. It sees the server's end in any case.
        self._server.hold(held=True)
        try:
            self._work(queue)
        finally:
            if self._pending:
                self._server.hold(held=False)

    def _work(self, queue: Virtqueue) -> None:
        for _ in batches_of_a_turn():
            queue.disable_kicks()
            self._waits = self._held > HELD_MAX - MESSAGE_MAX
            if self._waits:
                return
            chains = queue.pop_many(min(BATCH, (HELD_MAX - self._held) // MESSAGE_MAX))
            done = [
                (chain, length) for chain in chains if (length := self._take(queue, chain)) >= 0
            ]
            queue.push_many(done)
            if done:
                self.notify(queue)
            if not chains and not queue.enable_kicks():
                if self.may_block:
                    self._wait(MOMENTS, MOMENT)
                return
        self.handle_soon(queue)

    def _take(self, queue: Virtqueue, chain: Chain) -> int:
        """Send a request and return -1; or answer it, and return what was written."""
        self.requests += 1
        size = total(chain.readable)
        if size > MESSAGE_MAX or size < HEADER_SIZE:
            # There is no tag, or it cannot be told from data: the answer has none either.
            return self._refuse(chain, 0xFFFF, errno.EINVAL)
        message = gather(chain.readable)
        claimed, kind, tag = header_of(message)
        if not HEADER_SIZE <= claimed <= size or kind % 2 or not TYPE_MIN <= kind <= TYPE_MAX:
            return self._refuse(chain, tag, errno.EINVAL)
        if total(chain.writable) < ERROR_SIZE or tag in self._pending:
            # Its answer has no room, or could not be told from another's.
            return self._refuse(chain, tag, errno.EINVAL)
        if not self._has_server():
            return self._refuse(chain, tag, errno.EIO)
        self._pending[tag] = Pending(queue, chain, claimed)
        self._held += claimed
        # What follows the message is not the server's.
        self._server.send(message[:claimed])
        return -1

    def _has_server(self) -> bool:
        if not self._in_session and not self._gone:
            self._in_session = self._server.start(self.loop, self)
            self._gone = not self._in_session
        return self._in_session

    def _refuse(self, chain: Chain, tag: int, number: int) -> int:
        self.errors += 1
        if total(chain.writable) < ERROR_SIZE:
            return 0
        return scatter(chain.writable, make_error(tag, number))

    # What the server says

    def answered(self, message: bytes | memoryview) -> None:
        """Give an answer to the driver; one to no request is dropped."""
        tag = header_of(message)[2]
        request = self._pending.pop(tag, None)
        if request is None:
            log.warning("the file server of %s answers a request that is none", self.mount_tag)
        elif total(request.chain.writable) < len(message):
            # The driver left less room than it asked the server to fill.
            self._complete(request, self._refuse(request.chain, tag, errno.EMSGSIZE))
        else:
            self._complete(request, scatter(request.chain.writable, message))

    def server_gone(self) -> None:
        """Answer what the server had, and what comes until a reset, with an error."""
        self._fail("ended")

    def _fail(self, how: str) -> None:
        self._in_session, self._gone = False, True
        pending, self._pending = self._pending, {}
        log.error(
            "the file server of %s %s: %d requests, and those to come, end with an error until "
            "the device is reset",
            self.mount_tag,
            how,
            len(pending),
        )
        for tag, request in pending.items():
            self._complete(request, self._refuse(request.chain, tag, errno.EIO))

    def _complete(self, request: Pending, length: int) -> None:
        self._held -= request.size
        if self.halted:
            return
        try:
            request.queue.push_many([(request.chain, length)])
            self.notify(request.queue)
            if self._waits and self._held <= HELD_MAX - MESSAGE_MAX:
                self._waits = False
                self.handle_soon(request.queue)
        except DriverError as error:
            self.host.needs_reset(str(error))

    def _wait(self, seconds: float, silence: float) -> None:
        """Wait until the server has answered all that it has, or so long, or is so long silent."""
        end = monotonic() + seconds
        while self._pending and (left := end - monotonic()) > 0:
            if not self._server.wait(min(left, silence)):
                return

    # Life

    def settle(self, index: int) -> None:
        """Have the server answer what it has of the queue.

        What it does not answer in time ends with an error, and the session with it: a queue that
        is stopped has nothing in flight.
        """
        self._wait(SETTLING_TIME, SETTLING_TIME)
        if self._pending:
            self._server.end()
            self._fail(f"left a request unanswered for {SETTLING_TIME:g} s")

    def stop_queue(self, index: int) -> None:
        """Forget the queue.

        The session goes on, as a VMM stops the queues of a guest that it only pauses; but not
        where the server has requests: answers to them could be taken for those to others.
        """
        super().stop_queue(index)
        if self._pending:
            self._forget()

    def reset(self) -> None:
        """Forget the driver: the next one has a session of its own, and a server that lives."""
        super().reset()
        self._forget()

    def _forget(self) -> None:
        if self._in_session:
            self._server.end()
        self._in_session = self._gone = False
        self._pending.clear()
        self._held = 0

    def close(self) -> None:
        """End the server."""
        self._in_session, self._gone = False, True
        self._pending.clear()
        self._server.close()

    def facts(self) -> Mapping[str, Fact]:
        """Tell the tag, and how many requests there were, and how many the device refused."""
        return {
            "mount_tag": self.mount_tag,
            "requests": self.requests,
            "errors": self.errors,
            "server": "gone" if self._gone else "running" if self._in_session else "ready",
        }

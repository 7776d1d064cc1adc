"""A session: the driver's side of one device, the same over every transport.

A test works with this. What belongs to a transport alone is in `mmio` and `vhostuser`.
"""

import contextlib
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, TypeVar

from virtiopy.closing import Closing
from virtiopy.conformance.clauses import features as named
from virtiopy.conformance.clauses.definitions import COMPLETION, FEATURES, USED_ID
from virtiopy.conformance.problems import (
    BrokenError,
    NoAnswerError,
    NotApplicableError,
    words_of,
)
from virtiopy.conformance.sessions.memory import DRIVERS_PART, SessionMemory
from virtiopy.conformance.sessions.queue import SessionQueue
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.targets.hosts import Host
from virtiopy.spec import DeviceId, DeviceStatus, Feature, feature_mask, has_feature
from virtiopy.transport.driver import MmioDriver
from virtiopy.vhost.user.frontend import VhostUserFrontend
from virtiopy.virtqueue.driver import Allocator, Piece, Used
from virtiopy.virtqueue.queue import RING_FEATURES

#: Entries of a queue, where a test does not say.
QUEUE_SIZE = 64

#: What is in device-writable buffers until the device writes them.
STALE = 0xEE

#: The features that do not belong to a device type and that the suite's driver can work with.
DRIVERS_FEATURES = RING_FEATURES | feature_mask([Feature.VIRTIO_F_RING_RESET])

#: A feature by its bit number or by the specification's name.
FeatureLike = int | str

_Result = TypeVar("_Result")


class Session(Closing):
    """A device and its driver, from the driver's side.

    Addresses are guest physical, times are in seconds. Anything may raise a DeviceError (a device
    that died, is wedged, or has left) which fails the test that does not expect it.
    """

    #: What the driver reaches the device by.
    transport: ClassVar[str]

    def __init__(self, device_id: DeviceId, host: Host, trace: Trace, patience: float) -> None:
        self.device_id = device_id
        #: The host's side of the device, as far as the suite has a hand in it.
        self.host = host
        self.trace = trace
        #: How long is waited for what has to come.
        self.patience = patience
        #: Whether that is less than the user asked for, as the device was waited for in vain.
        self.hurried = False
        #: The longest that was waited for what did come.
        self.slowest = 0.0
        self.memory = SessionMemory()
        self.allocator = Allocator(*DRIVERS_PART)
        #: Feature bits that may be negotiated unless a test asks for more.
        self.understood = DRIVERS_FEATURES
        #: Feature bits that the device offers for its frontend's sake, which has what they need.
        self.withheld = 0
        #: The feature bits that were negotiated; 0 before.
        self.features = 0
        #: The queues that were set up since the last reset, by index.
        self.queues: dict[int, SessionQueue] = {}
        #: Whether the device has served any request.
        self.served = False
        #: What is not as it should be, though no test fails by it: statement and words, once each.
        self.remarks: dict[tuple[str, str], None] = {}

    def remark(self, clause: str, words: str) -> None:
        """Say what is not as it should be, and go on."""
        self.trace.note(f"{clause}: {words}")
        self.remarks[clause, words] = None

    def close(self) -> None:
        """Give the device up."""
        self.memory.close()

    # What only one kind of target has

    @property
    def registers(self) -> MmioDriver:
        """The MMIO registers; the test is not applicable where there are none."""
        raise NotApplicableError(f"a device over {self.transport} has no MMIO registers")

    @property
    def frontend(self) -> VhostUserFrontend:
        """The vhost-user session; the test is not applicable where there is none."""
        raise NotApplicableError(f"a device over {self.transport} is no vhost-user backend")

    # Feature bits, section 2.2

    @property
    @abstractmethod
    def offered(self) -> int:
        """The feature bits that the device offers."""

    def offers(self, *features: FeatureLike) -> bool:
        """Say whether the device offers all of these."""
        return all(has_feature(self.offered, bit) for bit in named.bits(features))

    def has(self, *features: FeatureLike) -> bool:
        """Say whether all of these were negotiated."""
        return all(has_feature(self.features, bit) for bit in named.bits(features))

    def require(self, *features: FeatureLike) -> None:
        """Make the test not applicable where the device does not offer all of these."""
        mask = feature_mask(named.bits(features))
        if withheld := mask & self.withheld & self.offered:
            words = " and ".join(named.names(withheld, self.device_id))
            raise NotApplicableError(f"{words} is for the frontend, and not for the backend")
        missing = mask & ~self.offered
        if missing:
            words = " and ".join(named.names(missing, self.device_id))
            raise NotApplicableError(
                f"{words} was not offered (the device offers {self.offered:#x})"
            )

    def wanted(
        self, features: Iterable[FeatureLike] | None, without: Iterable[FeatureLike] = ()
    ) -> int:
        """Return the feature set that `negotiate` asks for."""
        if features is None:
            # Without those whose requirements are not offered, which are no subset to ask for.
            mask = named.valid_subset(
                self.offered & self.understood & ~self.withheld, self.device_id
            )
        else:
            mask = feature_mask([Feature.VIRTIO_F_VERSION_1, *named.bits(features)])
        return mask & ~feature_mask(named.bits(without))

    # Life (3.1.1)

    @abstractmethod
    def accepts(self, features: int) -> bool:
        """Reset, and ask for just these feature bits; say whether the device takes them."""

    def negotiate(
        self,
        features: Iterable[FeatureLike] | None = None,
        *,
        without: Iterable[FeatureLike] = (),
    ) -> int:
        """Reset, and go through steps 1 to 6 of 3.1.1; returns the features negotiated.

        None for all that is offered and understood; VERSION_1 is added to others.
        """
        wanted = self.wanted(features, without)
        if not self.accepts(wanted):
            names = ", ".join(named.names(wanted, self.device_id))
            raise BrokenError(f"the device refuses {names}, which it offers", FEATURES)
        return wanted

    @property
    @abstractmethod
    def queue_count(self) -> int:
        """How many virtqueues there are with what was negotiated, those without gaps."""

    @abstractmethod
    def queue_size_max(self, index: int) -> int:
        """Return the most entries that a virtqueue can have; 0 for one that does not exist."""

    def new_queue(self, index: int, size: int | None = None) -> SessionQueue:
        """Make a virtqueue in memory, of which the device is not told yet."""
        return SessionQueue(
            index,
            self.memory,
            size or min(QUEUE_SIZE, self.queue_size_max(index)),
            self.allocator,
            self.trace,
            event_idx=self.has(Feature.VIRTIO_F_EVENT_IDX),
        )

    @abstractmethod
    def announce_queue(self, queue: SessionQueue) -> None:
        """Tell the device of a virtqueue, before DRIVER_OK or after; it is ready then."""

    def set_up_queue(self, index: int, size: int | None = None) -> SessionQueue:
        """Make a virtqueue and tell the device."""
        queue = self.new_queue(index, size)
        self.announce_queue(queue)
        return queue

    @abstractmethod
    def driver_ok(self) -> None:
        """Set DRIVER_OK: the device is live."""

    def start(
        self,
        features: Iterable[FeatureLike] | None = None,
        *,
        without: Iterable[FeatureLike] = (),
        queue_size: int | None = None,
        choose: Callable[[int], Iterable[int]] = range,
    ) -> None:
        """Go through all of 3.1.1, with every queue that there is, or those of them chosen."""
        self.negotiate(features, without=without)
        for index in choose(self.queue_count):
            most = self.queue_size_max(index)
            self.set_up_queue(index, min(most, queue_size or QUEUE_SIZE))
        self.driver_ok()

    # The device status field (2.1), where it is the driver's to write

    def require_status(self) -> None:
        """Make the test not applicable where the driver does not write the status itself."""
        raise NotApplicableError(f"over {self.transport} the frontend keeps the device status")

    def write_status(self, status: int) -> None:
        """Write the device status field, whatever that says."""
        self.require_status()

    def set_status(self, *bits: DeviceStatus) -> None:
        """Set bits of the device status field; the others stay."""
        self.write_status(self.status | sum(bits))

    def write_features(self, features: int) -> None:
        """Write the driver's feature bits at whatever time; see `accepts` for the right one."""
        self.require_status()

    @property
    @abstractmethod
    def status(self) -> int:
        """The device status field; not applicable where the transport has none."""

    @property
    @abstractmethod
    def needs_reset(self) -> bool:
        """Whether the device has said that only a reset can help (2.1.2)."""

    @abstractmethod
    def reset(self) -> None:
        """Reset the device, by whatever the transport has for it; its queues are forgotten."""

    def reconnect(self) -> None:
        """Have the backend go on with the rings in a new session: hot reconnect.

        Not applicable where there is no backend.
        """
        raise NotApplicableError(f"a device over {self.transport} is no vhost-user backend")

    @abstractmethod
    def raise_failure(self) -> None:
        """Raise the DeviceError that is known of, if any; it costs little."""

    @abstractmethod
    def check_alive(self) -> None:
        """Raise the DeviceError that is found, if any: the device is asked something."""

    @abstractmethod
    def reset_queue(self, index: int) -> int:
        """Take one virtqueue from a live device, which forgets it; it can be set up again.

        Returns how many requests the device has taken and not used by then, where the transport
        tells, else 0.
        """

    # Operation

    @abstractmethod
    def kick(self, index: int) -> None:
        """Send an available buffer notification, whether or not it was asked for."""

    @abstractmethod
    def take_notifications(self, index: int) -> int:
        """Return how many used buffer notifications came since the last call.

        Over MMIO all queues share one interrupt: they are of any queue.
        """

    @property
    def interrupt_pending(self) -> bool:
        """Whether there is an interrupt that the driver has not acknowledged; it stays."""
        raise NotApplicableError(f"over {self.transport} there is no interrupt to look at")

    @abstractmethod
    def take_config_change(self) -> bool:
        """Say whether a configuration change notification came since the last call."""

    def wait(self, what: str, condition: Callable[[], _Result | None]) -> _Result:
        """Wait until `condition` returns something true, and return that.

        Raises NoAnswerError when it does not in time, or DeviceError when it never will.
        """
        start = time.monotonic()
        pause = 0.00002
        while not (result := condition()):
            self.raise_failure()
            if time.monotonic() > start + self.patience:
                self.check_alive()
                raise NoAnswerError(f"{what}: not within {self.patience:g} s")
            time.sleep(pause)
            pause = min(2 * pause, 0.005)
        self.came_after(time.monotonic() - start)
        return result

    def came_after(self, seconds: float) -> None:
        """Take note of how long something that came was waited for."""
        self.slowest = max(self.slowest, seconds)

    def never(self, what: str, condition: Callable[[], object], seconds: float = 0.03) -> None:
        """Fail where `condition` comes true, now or within a little time."""
        end = time.monotonic() + seconds
        while True:
            self.raise_failure()
            assert not condition(), what
            if time.monotonic() > end:
                return
            time.sleep(0.001)

    def wait_used(self, index: int, count: int = 1) -> list[Used]:
        """Return the next `count` used buffers of a queue, in the order of the used ring."""
        queue = self.queues[index]
        used: list[Used] = []

        def look() -> bool:
            used.extend(self._take_used(queue))
            return len(used) >= count

        with self._completion():
            self.wait(f"{count} used buffers of queue {index}", look)
        assert len(used) == count, f"{len(used)} used buffers of queue {index}, not {count}"
        return used

    def _take_used(self, queue: SessionQueue) -> list[Used]:
        used = queue.take_all_used()
        self.served |= bool(used)
        if queue.strays:
            stray = queue.strays[0]
            raise BrokenError(
                f"queue {queue.index}: head {stray} was used, and is not in flight", USED_ID
            )
        return used

    @contextlib.contextmanager
    def _completion(self) -> Iterator[None]:
        """Have what does not come be a request that the device does not carry out."""
        try:
            yield
        except NoAnswerError as error:
            raise NoAnswerError(words_of(error), COMPLETION) from error

    def wait_for(self, index: int, head: int) -> Used:
        """Return the used buffer of one chain; others that come before go to `completed`."""
        queue = self.queues[index]

        def look() -> Used | None:
            queue.completed.update((used.head, used) for used in self._take_used(queue))
            return queue.completed.pop(head, None)

        with self._completion():
            return self.wait(f"the buffer with head {head} of queue {index} used", look)

    def wait_notification(self, index: int) -> int:
        """Wait for a used buffer notification; returns how many there were."""
        return self.wait(
            f"a used buffer notification of queue {index}", lambda: self.take_notifications(index)
        )

    # Configuration space (2.5)

    @abstractmethod
    def read_config(self, offset: int, size: int) -> bytes:
        """Read bytes of the configuration space, consistent in themselves (2.5.1)."""

    @abstractmethod
    def write_config(self, offset: int, data: bytes) -> None:
        """Write a field of the configuration space."""

    def shared_memory(self, region: int) -> int | None:
        """Return how many bytes a shared memory region (2.10) has; None for one that is not there.

        Not applicable where the transport has none.
        """
        raise NotApplicableError(f"over {self.transport} there is no shared memory to ask for")

    def config(self, offset: int, size: int) -> int:
        """Read a little-endian field of the configuration space."""
        return int.from_bytes(self.read_config(offset, size), "little")

    # Buffers

    def place(self, data: bytes, alignment: int = 1) -> Piece:
        """Put bytes into memory, for the device to read."""
        address = self.allocator.take(max(1, len(data)), alignment)
        self.memory.write(address, data)
        return Piece(address, len(data))

    def room(self, size: int, alignment: int = 1) -> Piece:
        """Make room for `size` bytes that the device is to write; they are STALE until then."""
        address = self.allocator.take(max(1, size), alignment)
        self.memory.write(address, bytes([STALE]) * size)
        return Piece(address, size, writable=True)

    def content(self, *pieces: Piece) -> bytes:
        """Return what is in buffers now."""
        return b"".join(self.memory.read(piece.address, piece.length) for piece in pieces)

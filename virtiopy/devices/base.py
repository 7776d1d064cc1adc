"""What a virtio device is, whichever transport its driver reaches it by.

A device knows its own section of the specification and nothing else. A transport tells it what
was negotiated, hands it the queues that the driver has set up, and calls it for each kick; the
device answers through the `DeviceHost` that it was attached to.
"""

import enum
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol, TypeAlias

from virtiopy.errors import ConfigError, DriverError
from virtiopy.eventloop import BottomHalf, EventLoop
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.queue import BATCH, BATCHES_A_TURN, Chain, Virtqueue

#: What a device tells of its state: a number, a word, or numbers by name.
Fact = int | float | str | Mapping[str, int]


class Memory(Protocol):
    """What a device may ask of guest memory, besides the buffers that it is given."""

    #: The least that can be given back to the host, bytes.
    granule: int

    @property
    def size(self) -> int:
        """Bytes of memory."""

    @property
    def ranges(self) -> Sequence[tuple[int, int]]:
        """The guest physical addresses that are memory, ascending: [start, end)."""

    def address_of(self, view: memoryview) -> int:
        """Return the guest physical address of a piece of a buffer."""

    def discard(self, address: int, length: int) -> None:
        """Give memory back to the host: it is zeroes when it is touched again. Raises OSError."""


class Notifiers(Protocol):
    """The eventfds that a virtqueue is reached by, for somebody else who is to work it.

    The driver's kicks write `kick`; a write to `call` is a used buffer notification. Each method
    is called with the device's lock held.
    """

    kick: int
    call: int

    def lend(self) -> None:
        """Leave both to somebody else: the device gets no more kicks of this queue."""

    def take_back(self) -> None:
        """Have both again; the device is kicked once, whether or not there is anything to do."""


@dataclass(slots=True, frozen=True)
class Given:
    """A virtqueue to hand over, and the eventfds of its notifiers; nothing of it is in flight.

    `ring` is its place among those that one worker has: of a network device's pair, 0 to receive
    and 1 to transmit.
    """

    ring: int
    queue: Virtqueue
    kick: int
    call: int


class QueueWorker(Protocol):
    """Somebody else who works some of a device's virtqueues: the kernel's vhost.

    It has them between `give` and `take_back`. The queues' notifiers are lent to it all the while.
    """

    name: str

    #: Eventfds, one for each ring: written when the worker finds that ring broken, which it does
    #: not touch from then on.
    errors: Sequence[int]

    def offered(self, features: int) -> int:
        """Return what can be offered of these features where this one works the queues."""

    def give(self, queues: Sequence[Given], driver_features: int) -> None:
        """Hand virtqueues over: nobody else works them, or takes their kicks, any more.

        If one is refused none is handed over, and all can be worked on: HostError or ConfigError,
        with the reason, or DriverError.
        """

    def take_back(self) -> None:
        """Take them back: the worker touches them no more, and each goes on where it left it."""

    def close(self) -> None:
        """Let go of all."""


#: Makes a worker for the file that the buffers' content goes to and comes from, as a tap's, and for
#: so many microseconds of polling before it sleeps.
OpenWorker: TypeAlias = Callable[[int, int], QueueWorker]


class DeviceHost(Protocol):
    """What a device asks of the transport that serves it."""

    @property
    def memory(self) -> Memory:
        """The guest's memory."""

    def used_buffer_notification(self, queue: Virtqueue) -> None:
        """Tell the driver that buffers of `queue` were used (2.3)."""

    def config_changed(self, *, notify: bool = True) -> None:
        """Tell the driver that the configuration space changed (3.2.1).

        Without `notify` for a change that the driver itself asked for, by a command.
        """

    def needs_reset(self, reason: str) -> None:
        """Set DEVICE_NEEDS_RESET, for what only a reset can mend (2.1.2), and halt the device."""

    def notifiers(self, index: int) -> Notifiers | None:
        """Return the eventfds of queue `index`; None where its kicks are exits (trapped mode)."""


@dataclass(slots=True, frozen=True)
class SharedMemoryRegion:
    """Memory of the host's that device and driver share (2.10).

    `address` is where the guest finds it, guest physical; `length` is in bytes.
    """

    address: int
    length: int


class VirtioDevice:
    """A virtio device, worked by one thread at a time: whoever calls it holds `lock`.

    That is the CPU's thread for register accesses, and for kicks in trapped mode; and the event
    loop's for kicks that come as eventfds, and for what comes from the host's side.
    """

    device_id: ClassVar[DeviceId]

    #: The device type's own feature bits, for their names; None for a type that has none.
    feature_bits: ClassVar[type[enum.IntEnum] | None] = None

    #: The device type's own feature bits (a mask) that are offered.
    features: int = 0

    #: Those of them that a VMM may see to by itself where another process serves the device: its
    #: driver has them, and the device is not told.
    vmm_features: int = 0

    #: The largest size of each virtqueue: QueueSizeMax, a power of 2.
    queue_sizes: Sequence[int]

    #: The shared memory regions of the device, by their ID (shmid): what they are for says its
    #: section.
    shared_memory: Mapping[int, SharedMemoryRegion] = MappingProxyType({})

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.host: DeviceHost
        #: Where the device watches files and sets timers; None where a test serves it by itself.
        self.loop: EventLoop | None = None
        #: Whether kicks may take as long as they take (trapped mode): else what blocks goes to the
        #: loop's workers.
        self.may_block = True
        self.driver_features = 0
        self.queues: dict[int, Virtqueue] = {}
        #: Whether the device needs a reset (2.1.2): it works no queue.
        self.halted = False
        #: Why its virtqueues are worked here, where another was to work them: see `hand_over`.
        self.refusal: str | None = None
        # The queues whose turn ended before their buffers did, by index, and what goes on with
        # them once other devices had theirs.
        self._unfinished: dict[int, Virtqueue] = {}
        self._next_turn: BottomHalf | None = None

    def attach(
        self, host: DeviceHost, loop: EventLoop | None = None, *, may_block: bool = True
    ) -> None:
        """Say which transport serves the device from now on, and which loop and how it may wait."""
        self.host = host
        self.loop = loop
        self.may_block = may_block
        if loop is not None:
            name = f"{self.device_id.name.lower()} queues"
            self._next_turn = loop.bottom_half(self._take_turn, name)

    def hand_over(self, open_worker: OpenWorker | None) -> None:
        """Have others work the virtqueues that carry data, as soon as there are any.

        None has the device work them again, as it does from the start. A worker that refuses
        queues later on, when the driver has set them up, leaves them to the device, and `refusal`
        says why.

        From any thread. Raises HostError or ConfigError where it cannot be done: everything is
        as it was then.
        """
        raise ConfigError(
            f"Nobody else can work the queues of a {self.device_id.name.lower()} device: "
            "leave it in the mode that it is in."
        )

    # Feature bits (2.2)

    def offered(self, features: int) -> int:
        """Return what is offered of the device's and the transport's features."""
        return features

    def accepts(self, driver_features: int) -> bool:
        """Say whether this subset of the offered features is one that makes sense (2.2.2)."""
        return True

    def objections(self, driver_features: int) -> Sequence[str]:
        """Say, one clause each, why this subset does not make sense, where `accepts` says so."""
        return ()

    def negotiated(self, driver_features: int) -> None:
        """Take the outcome: the driver set FEATURES_OK, and it was accepted (3.1.1)."""
        self.driver_features = driver_features

    # Configuration space (2.5)

    def config_space(self) -> bytes:
        """Return the whole configuration space as it is now."""
        return b""

    def write_config(self, offset: int, data: bytes) -> bool:
        """Take the driver's write of `data`, 1 byte or more, at `offset`.

        Returns whether there is anything there that can be written; by default there is not.
        """
        return False

    # Life (2.1, 2.4, 2.6.1)

    def activate(self, queues: Mapping[int, Virtqueue]) -> None:
        """Start: the driver set DRIVER_OK, with these queues, by queue index."""
        self.queues = dict(queues)

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        """Take a queue that the driver enables while the device runs."""
        self.queues[index] = queue

    def stop_queue(self, index: int) -> None:
        """Forget a queue and its buffers: it is disabled, or its rings are stopped."""
        self.queues.pop(index, None)

    def reset_queue(self, index: int) -> None:
        """Forget a queue that the driver resets: it may enable it again (2.6.1)."""
        self.stop_queue(index)

    def halt(self) -> None:
        """Have nobody work the queues any more, until a reset: DEVICE_NEEDS_RESET is set (2.1.2).

        No kick comes from here on; this is for who has lent a queue's notifiers.
        """
        self.halted = True

    def settle(self, index: int) -> None:
        """Complete what is being done of a queue, and wait for that.

        Buffers that the device only holds, for what is yet to come, stay in flight: they are the
        last that it popped of the queue.
        """

    def enable_queues(self, indexes: Iterable[int]) -> None:
        """Use these queues and no others, where no control command of the driver's says it."""

    def reset(self) -> None:
        """Forget the driver: what it negotiated, its queues, its buffers (2.4.1)."""
        self.driver_features = 0
        self.queues = {}
        self.halted = False

    def close(self) -> None:
        """Give back what the device holds of the host."""

    def facts(self) -> Mapping[str, Fact]:
        """Tell a person how the device fares: settings and counters, by name."""
        return {}

    # Operation

    def handle(self, queue: Virtqueue) -> None:
        """Serve the available buffers of `queue`; called for a kick. Raises QueueError.

        The example in the docstring of `Virtqueue` explains the loop. Devices that complete a
        buffer at once override `serve`, the others this.
        """
        for _ in range(BATCHES_A_TURN):
            queue.disable_kicks()
            chains = queue.pop_many(BATCH)
            queue.push_many([(chain, self.serve(queue, chain)) for chain in chains])
            self.notify(queue)
            if not chains and not queue.enable_kicks():
                return
        self.handle_soon(queue)

    def handle_soon(self, queue: Virtqueue) -> None:
        """Have `handle_again` called for a queue on the loop, after the turns of other devices.

        Where there is no loop, the driver's next kick goes on with the queue.
        """
        if self._next_turn is None:
            queue.enable_kicks()
            return
        self._unfinished[queue.index] = queue
        self._next_turn.schedule()

    def handle_again(self, queue: Virtqueue) -> None:
        """Go on with a queue where the last turn ended; no kick has come. Raises QueueError."""
        self.handle(queue)

    def _take_turn(self) -> None:
        with self.lock:
            unfinished, self._unfinished = self._unfinished, {}
            for index, queue in unfinished.items():
                # It may have been reset meanwhile, or the queue before it has broken the device.
                if self.halted or self.queues.get(index) is not queue:
                    continue
                try:
                    self.handle_again(queue)
                except DriverError as error:
                    self.host.needs_reset(str(error))

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        """Do what the buffer asks; return how many bytes were written to it, from its start."""
        raise NotImplementedError

    def notify(self, queue: Virtqueue) -> None:
        """Send a used buffer notification if the driver wants one (2.7.7)."""
        if queue.should_interrupt():
            self.host.used_buffer_notification(queue)

"""What a virtio device is, whichever transport its driver reaches it by.

A device knows its own section of the specification and nothing else. A transport tells it what
was negotiated, hands it the queues that the driver has set up, and calls it for each kick; the
device answers through the `DeviceHost` that it was attached to.
"""

import contextlib
import enum
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol

from virtiopy.devices.delegation import Notifiers, OpenWorker
from virtiopy.devices.gate import Gate
from virtiopy.errors import ConfigError, DriverError
from virtiopy.eventloop import BottomHalf, EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.queue import BATCH, Chain, Virtqueue, batches_of_a_turn

#: The fact of a device that another process is: how long that has been gone, in seconds.
GONE_FOR = "gone_for"

#: What a device tells of its state: a number, a word, or numbers by name.
Fact = int | float | str | Mapping[str, int]


class DeviceHost(Protocol):
    """What a device asks of the transport that serves it."""

    @property
    def memory(self) -> GuestMemory:
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

    @property
    def gate(self) -> Gate | None:
        """Shut while a VMM's message waits that may be about queues; None where none can come."""


@dataclass(slots=True, frozen=True)
class SharedMemoryRegion:
    """Memory of the host's that device and driver share (2.10).

    `address` is where the guest finds it, guest physical; `length` is in bytes.
    """

    address: int
    length: int


class CommandArguments(Protocol):
    """What a user's command says; each method raises ConfigError for what it should not say."""

    def text(self, key: str) -> str | None:
        """Return a string, or None where there is none."""

    def size(self, key: str) -> int:
        """Return a size in bytes, which is a number or written as 64M."""

    def files(self) -> Sequence[int]:
        """Return the files that came with it, open until the command is done."""


@dataclass(slots=True, frozen=True)
class DeviceCommand:
    """What a user can have a device do while it runs, by `virtiopy ctl`.

    `run` is given the device, whose lock is not held, and the arguments, under `keys`; it returns
    what the user is told, and raises ConfigError. `opens` is the place of what opens the user's
    files, as the machine may not: given the arguments, it returns those to send, and the files.
    """

    help: str
    keys: tuple[str, ...]
    run: Callable[["VirtioDevice", CommandArguments], Mapping[str, Fact]]
    opens: str | None = None


class VirtioDevice:
    """A virtio device, worked by one thread at a time: the caller holds `lock`.

    That is the CPU's thread for register accesses, and for kicks in trapped mode; and the event
    loop's for kicks that come as eventfds, and for what comes from the host's side.
    """

    device_id: ClassVar[DeviceId]

    #: The device type's own feature bits, for their names; None for a type that has none.
    feature_bits: ClassVar[type[enum.IntEnum] | None] = None

    #: The device type's own feature bits (a mask) that are offered.
    features: int = 0

    #: Whether it also serves legacy drivers (2.2.3), which accept no VIRTIO_F_VERSION_1, where its
    #: transport can: their rings are those of others, their fields little-endian as here.
    serves_legacy_drivers: ClassVar[bool] = False

    #: Those of them that a VMM may see to by itself where another process serves the device: its
    #: driver has them, and the device is not told.
    vmm_features: int = 0

    #: The largest size of each virtqueue: QueueSizeMax, a power of 2.
    queue_sizes: Sequence[int]

    #: How many virtqueues VMMs count as one: a network device has them in pairs.
    queues_in_one: ClassVar[int] = 1

    #: The modes in which another worker can have some of its rings, by name: see `delegate`.
    workers: ClassVar[frozenset[str]] = frozenset()

    #: What a user can have it do, by the command's name.
    commands: ClassVar[Mapping[str, DeviceCommand]] = MappingProxyType({})

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
        #: Why the device works its virtqueues itself, though they were to be delegated.
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

    def delegate(self, open_worker: OpenWorker) -> None:
        """Have other workers work the virtqueues that carry data, as soon as there are any.

        A worker that refuses queues later on, when the driver has set them up, leaves them to the
        device, and `refusal` says why.

        From any thread. Raises HostError or ConfigError where it cannot be done: everything is
        as it was then.
        """
        kind = self.device_id.name.lower()
        raise ConfigError(
            f"{'An' if kind[0] in 'aeiou' else 'A'} {kind} device cannot delegate its rings: "
            "leave it in the mode that it is in."
        )

    def reclaim(self) -> None:
        """Have the device work all its virtqueues, as it does from the start; from any thread."""

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
        """Stop work on all queues until a reset: DEVICE_NEEDS_RESET is set (2.1.2).

        No kick comes from here on. A device that has delegated queues reclaims them here.
        """
        self.halted = True

    def settle(self, index: int) -> None:
        """Complete what is being done of a queue, and wait for that.

        Buffers that the device only holds, for what is yet to come, stay in flight: they are the
        last that it popped of the queue.
        """

    def undelegated(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Have no other worker work a queue meanwhile, nor use its notifiers."""
        return contextlib.nullcontext()

    def discards_while_disabled(self, index: int) -> bool:
        """Say whether buffers of a queue that no `enable_queues` names are taken and discarded.

        Else they stay where they are (vhost-user, Ring states).
        """
        return False

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
        for _ in batches_of_a_turn():
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

"""A thread that works rings without the interpreter, and the rings that it has (worker.c)."""

import contextlib
import enum
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from virtiopy._native import CData, ffi, lib
from virtiopy.closing import Closing
from virtiopy.errors import HostError
from virtiopy.virtqueue.native import NativeQueue
from virtiopy.virtqueue.queue import Chain

#: Takes the thread out of a system call that another process keeps it in: nothing handles it.
REMINDER = signal.SIGRTMIN + 4

#: Microseconds that a thread polls before it sleeps, unless it is told otherwise.
POLL_US = 50


class Engine(enum.StrEnum):
    """What does the input and output that would block the thread."""

    IO_URING = "io_uring"
    #: A few threads, where the kernel forbids io_uring.
    THREADS = "threads"


def best_engine() -> Engine:
    """Return what this host has: VIRTIOPY_ENGINE says otherwise."""
    chosen = os.environ.get("VIRTIOPY_ENGINE")
    if chosen is not None:
        return Engine(chosen)
    return Engine.IO_URING if lib.vp_has_uring() else Engine.THREADS


@dataclass(slots=True, frozen=True)
class RingCounts:
    """What a ring has done and cost while the thread had it.

    `served` chains and those that were `handed_up`, malformed ones that were `rejected`; requests
    done `at_once` by their one system call, and `jobs` of the engine; `kicks` that woke the thread,
    `interrupts` that it sent, and `system_calls` for data and interrupts.
    """

    served: int
    handed_up: int
    rejected: int
    at_once: int
    jobs: int
    kicks: int
    interrupts: int
    system_calls: int


class WorkerThread(Closing):
    """A thread in C, which polls for `poll_us` microseconds at most before it sleeps.

    `attention` is an eventfd, written when a ring has something for Python: see NativeRing. Raises
    HostError where there can be no thread.
    """

    def __init__(self, poll_us: int = POLL_US, *, engine: Engine | None = None) -> None:
        self.engine = best_engine() if engine is None else engine
        self.poll_us = poll_us
        self.attention = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        error = ffi.new("int *")
        lib.vp_ignore_signal(REMINDER)
        self._worker = lib.vp_worker_new(
            self.attention, poll_us, self.engine is Engine.IO_URING, REMINDER, error
        )
        if self._worker == ffi.NULL:
            os.close(self.attention)
            raise HostError(
                f"There can be no thread that works rings ({os.strerror(error[0])}): "
                "set VIRTIOPY_NATIVE=off to do without."
            )

    def close(self) -> None:
        """End the thread, which has no rings any more."""
        lib.vp_worker_free(self._worker)
        os.close(self.attention)

    @property
    def thread_id(self) -> int:
        """The thread's number, as /proc has it."""
        return lib.vp_worker_tid(self._worker)

    @property
    def system_calls(self) -> int:
        """System calls to wait and to have work done: those of a ring are in its counts."""
        return lib.vp_worker_system_calls(self._worker)

    @property
    def sleeps(self) -> int:
        """How often the thread went to sleep."""
        return lib.vp_worker_sleeps(self._worker)

    def look(self) -> None:
        """Take note of `attention`: what comes from here on is told again."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.attention)
        lib.vp_worker_look(self._worker)

    def start(self, ring: "NativeRing") -> None:
        """Leave a ring to the thread."""
        lib.vp_worker_start_ring(self._worker, ring.native)

    def stop(self, ring: "NativeRing") -> None:
        """Take a ring back: the thread completes what it has begun, and touches it no more."""
        lib.vp_worker_stop_ring(self._worker, ring.native)


class NativeRing:
    """A queue for a thread in C, and the eventfds of its notifications; these stay the caller's.

    It is the queue's RingWorker between `start` and `stop`.
    """

    def __init__(self, queue: NativeQueue, kick: int, call: int | None) -> None:
        self.queue = queue
        native = lib.vp_ring_new(queue.native, kick, -1 if call is None else call)
        if native == ffi.NULL:
            raise HostError("There is no memory for a worker's ring: give the host more.")
        #: struct vp_ring. Chains that were handed up keep it.
        self.native = ffi.gc(native, lib.vp_ring_free)
        #: What C has pointers to.
        self.kept: list[object] = [queue]
        self._thread: WorkerThread | None = None
        self._fault = ffi.new("struct vp_fault *")

    def start(self, thread: WorkerThread) -> None:
        """Leave the queue to the thread; raises ValueError while chains are in flight."""
        self.queue.delegate(self)
        self._thread = thread
        thread.start(self)

    def stop(self) -> Sequence[Chain]:
        """Take the queue back, if the thread has it.

        Returns the chains that it has handed up, and that were not popped: they are in flight.
        """
        if self._thread is None:
            return []
        self._thread.stop(self)
        self._thread = None
        return self.queue.reclaim()

    @property
    def counts(self) -> RingCounts:
        """What the ring has done and cost."""
        counts = self.native.counts
        return RingCounts(*(getattr(counts, one.name) for one in fields(RingCounts)))

    # What the queue asks (virtqueue.native.RingWorker)

    def take(self) -> int | None:
        """Take the next chain that was handed up, by its slot."""
        slot = lib.vp_ring_take(self.native)
        return None if slot < 0 else slot

    def give(self, slot: int, written: int) -> None:
        """Give such a chain back: to the thread, or at once when that has left the ring."""
        if self._thread is not None:
            lib.vp_ring_give(self.native, slot, written)
        else:
            lib.vp_ring_finish(self.native, slot, written)

    def head_of(self, slot: int) -> int | None:
        """Return the head of a chain that came without its pieces; None for one that has them."""
        found = lib.vp_ring_slot_at(self.native, slot)
        return int(found.chain.head) if found.is_head_only else None

    def chain_of(self, slot: int) -> CData:
        """Return the struct vp_chain of another."""
        chain: CData = lib.vp_ring_slot_at(self.native, slot).chain
        return chain

    def rejects(self) -> Iterator[CData]:
        """Take what is known of chains that were rejected: struct vp_fault."""
        while lib.vp_ring_next_reject(self.native, self._fault):
            yield self._fault

    @property
    def is_broken(self) -> bool:
        """Whether the thread has found the queue broken."""
        return bool(self.native.broken)

"""The control queue (5.6.6.2): task management functions and asynchronous notifications."""

import enum
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from virtiopy._native import ffi
from virtiopy.devices.batches import Batch
from virtiopy.devices.scsi.requests import Response
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, split_at, total
from virtiopy.virtqueue.queue import Chain, Virtqueue

_TYPE_SIZE = ffi.sizeof("uint32_t")
_FUNCTION_SIZE = ffi.sizeof("struct virtio_scsi_ctrl_tmf_req")
_NOTIFICATION_SIZE = ffi.sizeof("struct virtio_scsi_ctrl_an_req")
_NOTIFICATION_ANSWER_SIZE = ffi.sizeof("struct virtio_scsi_ctrl_an_resp")


class ControlType(enum.IntEnum):
    """VIRTIO_SCSI_T_* of the control queue."""

    TMF = 0
    AN_QUERY = 1
    AN_SUBSCRIBE = 2


class Function(enum.IntEnum):
    """VIRTIO_SCSI_T_TMF_*: task management functions."""

    ABORT_TASK = 0
    ABORT_TASK_SET = 1
    CLEAR_ACA = 2
    CLEAR_TASK_SET = 3
    I_T_NEXUS_RESET = 4
    LOGICAL_UNIT_RESET = 5
    QUERY_TASK = 6
    QUERY_TASK_SET = 7


@dataclass(slots=True, frozen=True)
class FunctionRequest:
    """struct virtio_scsi_ctrl_tmf, taken apart."""

    subtype: int
    lun: bytes
    tag: int


@dataclass(slots=True, frozen=True)
class NotificationRequest:
    """struct virtio_scsi_ctrl_an, taken apart: a query or a subscription."""

    lun: bytes
    events: int


def parse_control(readable: Buffers) -> FunctionRequest | NotificationRequest | None:
    """Take a request apart; None for one that is cut short, or of a type that is none."""
    fields = gather(split_at(readable, _FUNCTION_SIZE)[0])
    if len(fields) < _TYPE_SIZE:
        return None
    kind = int.from_bytes(fields[:_TYPE_SIZE], "little")
    if kind == ControlType.TMF and len(fields) >= _FUNCTION_SIZE:
        function = ffi.from_buffer("struct virtio_scsi_ctrl_tmf_req *", fields)
        return FunctionRequest(function.subtype, bytes(function.lun), function.tag)
    if kind in {ControlType.AN_QUERY, ControlType.AN_SUBSCRIBE}:
        if len(fields) < _NOTIFICATION_SIZE:
            return None
        query = ffi.from_buffer("struct virtio_scsi_ctrl_an_req *", fields[:_NOTIFICATION_SIZE])
        return NotificationRequest(bytes(query.lun), query.event_requested)
    return None


def answer_function(writable: Buffers, response: Response) -> int:
    """Write the response of a function, or of what is no request at all."""
    return scatter(writable, bytes([response]))


def answer_notification(writable: Buffers, response: Response) -> int:
    """Write that none of the events can be had, and the response."""
    if total(writable) < _NOTIFICATION_ANSWER_SIZE:
        return 0
    return scatter(writable, bytes(4) + bytes([response]))


@dataclass(slots=True, eq=False)
class PendingFunction:
    """A function that ends once these batches of requests did."""

    queue: Virtqueue
    chain: Chain
    response: Response
    batches: Sequence[Batch]

    def wait(self) -> None:
        """Wait for them; on a thread that may."""
        for batch in self.batches:
            batch.finished.wait()


class Cancelled:
    """Requests that were aborted before a worker came to them, and what they are answered.

    They are looked up by workers, without the device's lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By the chains themselves, which are kept so that their id stays theirs: the driver may
        # use the token of one again before it is forgotten here.
        self._responses: dict[int, tuple[Chain, Response]] = {}

    def add(self, chain: Chain, response: Response) -> None:
        """Have a request answered with this, if no worker came to it."""
        with self._lock:
            self._responses[id(chain)] = chain, response

    def response_to(self, chain: Chain) -> Response | None:
        """Return what a request is answered, if it was aborted."""
        if not self._responses:
            return None
        with self._lock:
            found = self._responses.get(id(chain))
        return None if found is None else found[1]

    def forget(self, batches: Sequence[Batch]) -> None:
        """Forget the requests of batches that are finished."""
        with self._lock:
            for batch in batches:
                for chain in batch.chains:
                    self._responses.pop(id(chain), None)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._responses.clear()

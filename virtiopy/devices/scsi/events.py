"""The event queue (5.6.6.3): what the device tells the driver of logical units by itself."""

import enum

from virtiopy._native import ffi
from virtiopy.devices.scsi.command import Additional
from virtiopy.devices.scsi.features import EVENT_SIZE
from virtiopy.virtqueue.buffers import scatter, total
from virtiopy.virtqueue.queue import Virtqueue

#: Bit 31 of `event`: events before it were lost.
EVENTS_MISSED = 1 << 31

#: Buffers that are too short for an event, of which the device goes past so many for one.
_SHORT_BUFFERS = 16


class EventType(enum.IntEnum):
    """VIRTIO_SCSI_T_* of events."""

    NO_EVENT = 0
    TRANSPORT_RESET = 1
    ASYNC_NOTIFY = 2
    PARAM_CHANGE = 3


class ResetReason(enum.IntEnum):
    """VIRTIO_SCSI_EVT_RESET_*: the `reason` of a transport reset."""

    HARD = 0
    RESCAN = 1
    REMOVED = 2


def parameter_reason(additional: Additional) -> int:
    """Return the `reason` of a parameter change: the code in bits 0 to 7, its qualifier above."""
    code, qualifier = divmod(additional, 256)
    return code | qualifier << 8


class Events:
    """The events of a device: none is kept for a driver that has given no buffer.

    The caller holds the device's lock.
    """

    def __init__(self) -> None:
        #: How many were lost since the device was made.
        self.lost = 0
        self._missed = False

    def reset(self) -> None:
        """Forget the driver: a new one has missed nothing."""
        self._missed = False

    def report(self, queue: Virtqueue, event: EventType, lun: bytes, reason: int) -> None:
        """Give the driver an event, or remember that it was lost. Raises QueueError."""
        if not self._write(queue, event | (EVENTS_MISSED if self._missed else 0), lun, reason):
            self.lost += 1
            self._missed = True
            return
        self._missed = False

    def buffers_added(self, queue: Virtqueue) -> None:
        """Say that events were lost as soon as the driver has a buffer for that."""
        if self._missed and self._write(queue, EVENTS_MISSED | EventType.NO_EVENT, bytes(8), 0):
            self._missed = False

    def _write(self, queue: Virtqueue, event: int, lun: bytes, reason: int) -> bool:
        fields = ffi.new("struct virtio_scsi_event *")
        fields.event, fields.lun, fields.reason = event, lun, reason
        data = bytes(ffi.buffer(fields))
        for _ in range(_SHORT_BUFFERS):
            chain = queue.pop()
            if chain is None:
                # The kick for the next buffer has it told that one was lost.
                if not queue.enable_kicks():
                    return False
                continue
            if total(chain.writable) >= EVENT_SIZE:
                queue.push(chain, scatter(chain.writable, data))
                return True
            # It comes back with an event that is none, as far as that has room.
            queue.push(chain, scatter(chain.writable, bytes(EVENT_SIZE)))
        return False

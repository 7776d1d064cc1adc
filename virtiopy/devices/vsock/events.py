"""The event queue of a socket device (5.10.6.7)."""

from virtiopy._native import ffi
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.vsock.features import EventId
from virtiopy.errors import DriverError
from virtiopy.virtqueue.buffers import scatter, total
from virtiopy.virtqueue.queue import batches_of_a_turn

#: The index of the queue (5.10.2).
EVENT_QUEUE = 2

#: Bytes of an event.
EVENT_SIZE = ffi.sizeof("struct virtio_vsock_event")


class Events:
    """Tells the driver of `device` that communication was interrupted, once it has a buffer.

    Several interruptions that the driver has yet to hear of are one. The caller holds the device's
    lock.
    """

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device
        self._waits = False

    def forget(self) -> None:
        """Tell nothing: the driver that was to hear it is gone."""
        self._waits = False

    def interrupted(self) -> None:
        """Tell it, where there is a driver."""
        self._waits = bool(self._device.queues)
        if self._device.halted:
            return
        try:
            self.send()
        except DriverError as error:
            self._device.host.needs_reset(str(error))

    def send(self) -> None:
        """Fill a buffer of the driver's, if there is something to tell. Raises QueueError."""
        device = self._device
        queue = device.queues.get(EVENT_QUEUE)
        if queue is None:
            return
        for _ in batches_of_a_turn():
            if not self._waits:
                queue.disable_kicks()
                return
            chain = queue.pop()
            if chain is not None:
                event = ffi.new("struct virtio_vsock_event *")
                event.id = EventId.TRANSPORT_RESET
                # One that is too short comes back empty.
                fits = total(chain.writable) >= EVENT_SIZE
                length = scatter(chain.writable, bytes(ffi.buffer(event))) if fits else 0
                queue.push(chain, length)
                self._waits = not fits
            device.notify(queue)
            if self._waits and chain is None and not queue.enable_kicks():
                return
        device.handle_soon(queue)

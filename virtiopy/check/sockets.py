"""Socket devices that are legal but unusual (5.10): what a variant does to one."""

from collections.abc import Iterable

from virtiopy.check.dress import Dressing, used_index
from virtiopy.devices.vsock.device import Vsock, VsockQueue
from virtiopy.devices.vsock.features import HOST_CID, Operation
from virtiopy.devices.vsock.packet import Header, pack_header
from virtiopy.virtqueue.buffers import scatter
from virtiopy.virtqueue.proxy import QueueProxy
from virtiopy.virtqueue.queue import Completion, Virtqueue


class TransportReset(Dressing):
    """Changes guest_cid once, as a migration does, and so ends the driver's connections."""

    _AFTER = 20
    _CID = 0x4242
    _SOON = 0.001  # seconds

    def __init__(self) -> None:
        self._acted = False

    @property
    def has_acted(self) -> bool:
        """Whether the driver was told that its connections are over."""
        return self._acted

    def queue(self, queue: Virtqueue) -> Virtqueue:
        """Count what comes by the tx queue."""
        is_tx = isinstance(self.lifecycle.device, Vsock) and queue.index == VsockQueue.tx
        return _Resetting(queue, self) if is_tx else queue

    def sent(self, count: int) -> None:
        """Take note that the driver has sent so many packets."""
        device = self.lifecycle.device
        if self._acted or count < self._AFTER or device.loop is None:
            return
        assert isinstance(device, Vsock)
        self._acted = True
        # Not while the device is at a packet.
        device.loop.call_later(self._SOON, lambda: device.change_cid(self._CID), "transport reset")


class _Resetting(QueueProxy):
    def __init__(self, inner: Virtqueue, dressing: TransportReset) -> None:
        super().__init__(inner)
        self._dressing = dressing

    def push_many(self, completions: Iterable[Completion]) -> None:
        self.inner.push_many(completions)
        self._dressing.sent(used_index(self, self._dressing.lifecycle))


class UnknownType(Dressing):
    """Sends a packet of a type that no specification has yet, once."""

    def __init__(self) -> None:
        self.done = False

    @property
    def has_acted(self) -> bool:
        """Whether the driver got such a packet."""
        return self.done

    def queue(self, queue: Virtqueue) -> Virtqueue:
        """Send by the rx queue."""
        is_rx = isinstance(self.lifecycle.device, Vsock) and queue.index == VsockQueue.rx
        return _Unknown(queue, self) if is_rx else queue


class _Unknown(QueueProxy):
    _TYPE, _PORT = 0x55, 0x5555

    def __init__(self, inner: Virtqueue, dressing: UnknownType) -> None:
        super().__init__(inner)
        self._dressing = dressing

    def push_many(self, completions: Iterable[Completion]) -> None:
        self.inner.push_many(completions)
        chain = None if self._dressing.done else self.inner.pop()
        if chain is None:
            return
        device = self._dressing.lifecycle.device
        assert isinstance(device, Vsock)
        header = Header(
            *(HOST_CID, device.guest_cid, self._PORT, self._PORT, 0, self._TYPE),
            Operation.REQUEST,
        )
        self._dressing.done = True
        self.inner.push(chain, scatter(chain.writable, pack_header(header)))

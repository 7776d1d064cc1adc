"""Socket devices with a fault."""

from tests.conformance.mutants import mutants
from virtiopy._native import ffi
from virtiopy.conformance.targets.builders import build_vsock
from virtiopy.devices.vsock import Vsock, VsockFeature
from virtiopy.devices.vsock.connection import Connection
from virtiopy.devices.vsock.device import VsockQueue
from virtiopy.devices.vsock.features import Operation
from virtiopy.devices.vsock.packet import Header
from virtiopy.spec import feature_mask
from virtiopy.virtqueue.queue import Virtqueue


class OffersTooLittle(Vsock):
    """Does not offer NO_IMPLIED_STREAM."""

    features = feature_mask(
        [VsockFeature.VIRTIO_VSOCK_F_STREAM, VsockFeature.VIRTIO_VSOCK_F_SEQPACKET]
    )


class WantsStreamSaid(Vsock):
    """Has stream sockets only where the driver has accepted them."""

    @property
    def _types(self) -> set[int]:
        types = super()._types
        if not self.driver_features & feature_mask([VsockFeature.VIRTIO_VSOCK_F_STREAM]):
            types.discard(1)
        return types


class WaitsForBuffers(Vsock):
    """Takes no packet while there is no buffer for an answer."""

    def handle(self, queue: Virtqueue) -> None:
        if queue.index == VsockQueue.tx:
            rx = self.queues[VsockQueue.rx]
            chain = rx.pop()
            if chain is None:
                return
            rx.unpop(1)
        super().handle(queue)
        if queue.index == VsockQueue.rx:
            super().handle(self.queues[VsockQueue.tx])


class IsTheHost(Vsock):
    """Has the host's context ID for its guest's."""

    def config_space(self) -> bytes:
        config = ffi.new("struct virtio_vsock_config *")
        config.guest_cid = 2
        return bytes(ffi.buffer(config))


class IgnoresTypes(Vsock):
    """Drops what is of an unknown type."""

    def _refuse(self, header: Header) -> None:
        if header.type in {1, 2}:
            super()._refuse(header)


class GivesCredit(Connection):
    """Sends whatever the guest says that it has room for."""

    @property
    def _credit(self) -> int:
        return 1 << 20


class CountsWhatItSent(Connection):
    """Has the wrong counter in its packets."""

    def _packet(self, operation: Operation, length: int = 0, flags: int = 0) -> Header:
        packet = super()._packet(operation, length, flags)
        return Header(
            *(packet.src_cid, packet.dst_cid, packet.src_port, packet.dst_port, packet.length),
            *(packet.type, packet.op, packet.flags, packet.buf_alloc, self.sent),
        )


class HasNoBuffer(Connection):
    """Says that it has room for nothing."""

    def _packet(self, operation: Operation, length: int = 0, flags: int = 0) -> Header:
        packet = super()._packet(operation, length, flags)
        return Header(
            *(packet.src_cid, packet.dst_cid, packet.src_port, packet.dst_port, packet.length),
            *(packet.type, packet.op, packet.flags, 0, packet.fwd_cnt),
        )


class SendsTooMuch(Vsock):
    """Heeds no credit."""

    connection_class = GivesCredit


class CountsWrong(Vsock):
    """Tells of what it sent in place of what it received."""

    connection_class = CountsWhatItSent


class TellsOfNoBuffer(Vsock):
    """Has a buffer, and says that it has none."""

    connection_class = HasNoBuffer


MUTANTS = [
    *mutants(
        build_vsock,
        [
            ("5.10.3.2:1", OffersTooLittle),
            ("5.10.3.2:2", WantsStreamSaid),
            ("5.10.6.1.2:1", WaitsForBuffers),
            ("5.10.6.3.2:1", SendsTooMuch),
            ("5.10.6.3.2:2", CountsWrong),
            ("5.10.6.3.2:2", TellsOfNoBuffer),
            ("5.10.6.4.2:1", IsTheHost),
            ("5.10.6.4.2:2", IgnoresTypes),
        ],
    ),
]

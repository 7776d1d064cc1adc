"""Buffers of a console's driver, held against 5.3."""

import enum
from collections.abc import Sequence
from typing import ClassVar

from virtiopy.check.fields import feature_bit
from virtiopy.check.judge import DeviceJudge
from virtiopy.check.requests import JudgedDevice, RequestJudge, head_of, number
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.buffers import gather, total
from virtiopy.virtqueue.queue import Chain, Completion, Virtqueue

_CONTROL_IN, _CONTROL_OUT = 2, 3
_CONTROL_SIZE = 8


class _Event(enum.IntEnum):
    """VIRTIO_CONSOLE_* (5.3.6.2)."""

    DEVICE_READY = 0
    CONSOLE_PORT = 4
    PORT_OPEN = 6


class ConsoleJudge(RequestJudge):
    """Judges buffers and control messages of a console's driver."""

    device_id: ClassVar[DeviceId] = DeviceId.CONSOLE

    def __init__(self, judge: DeviceJudge, device: JudgedDevice) -> None:
        super().__init__(judge, device)
        self._forget()

    def _forget(self) -> None:
        self._worked = self._ready = False
        #: Ports that the device has called a console, and that the driver has not opened.
        self._consoles: set[int] = set()

    def request(self, queue: Virtqueue, chain: Chain) -> None:
        """Judge one buffer."""
        self._worked = True
        # Even queues are towards the driver, odd ones towards the device (5.3.2).
        if queue.index % 2 == 0:
            self._judge.check(
                "5.3.6.1:1",
                not total(chain.readable),
                f"a device-readable buffer in queue {queue.index}, a receiveq",
            )
        else:
            self._judge.check(
                "5.3.6.1:2",
                not total(chain.writable),
                f"a device-writable buffer in queue {queue.index}, a transmitq",
            )
        if queue.index == _CONTROL_OUT and self._multiport:
            self._message(head_of(chain, _CONTROL_SIZE))

    @property
    def _multiport(self) -> bool:
        return self.accepted(feature_bit("VIRTIO_CONSOLE_F_MULTIPORT"))

    def _message(self, message: bytes) -> None:
        if len(message) < _CONTROL_SIZE:
            return
        port, event, value = number(message, 0, 4), number(message, 4, 2), number(message, 6, 2)
        if event == _Event.DEVICE_READY and value == 1:
            self._ready = True
            self._judge.kept("5.3.6.2.2:1")
        elif event == _Event.PORT_OPEN and port in self._consoles:
            self._consoles.discard(port)
            self._judge.kept("5.3.6.2.2:3")
            self._judge.check(
                "5.3.6.2.2:4",
                value == 1,
                f"the driver answers CONSOLE_PORT of port {port} with PORT_OPEN {value}",
            )

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """Follow what the device sends to the driver."""
        if queue.index != _CONTROL_IN:
            return
        for chain, written in completions:
            message = gather(chain.writable)[: min(written, _CONTROL_SIZE)]
            if len(message) == _CONTROL_SIZE and number(message, 4, 2) == _Event.CONSOLE_PORT:
                self._consoles.add(number(message, 0, 4))

    def finish(self, *, by_driver: bool) -> None:
        """Judge what the driver has not said."""
        if self._worked and self._multiport:
            self._judge.check(
                "5.3.6.2.2:1", self._ready, "the driver never sends DEVICE_READY with value 1"
            )
            for port in self._consoles:
                self._judge.broke(
                    "5.3.6.2.2:3", f"the driver does not answer CONSOLE_PORT of port {port}"
                )
        self._forget()

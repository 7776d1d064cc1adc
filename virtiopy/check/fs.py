"""Requests of a file system device's driver, held against 5.11."""

import enum
from typing import ClassVar

from virtiopy.check.fields import FIELDS, feature_bit
from virtiopy.check.requests import RequestJudge, head_of, number
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.buffers import total
from virtiopy.virtqueue.queue import Chain, Virtqueue

_HIPRIO, _NOTIFICATION = 0, 1

#: Bytes of struct fuse_in_header up to its opcode's end.
_HEAD = 8

_OFFSETS = {field.name: field.offset for field in FIELDS[DeviceId.FILE_SYSTEM]}


class _Urgent(enum.IntEnum):
    """Operations of FUSE that hiprio is for (5.11.6.2): their opcodes."""

    FUSE_FORGET = 2
    FUSE_INTERRUPT = 36
    FUSE_BATCH_FORGET = 42


class FsJudge(RequestJudge):
    """Judges requests of a file system device's driver."""

    device_id: ClassVar[DeviceId] = DeviceId.FILE_SYSTEM

    def request(self, queue: Virtqueue, chain: Chain) -> None:
        """Judge one request."""
        has_notifications = self.accepted(feature_bit("VIRTIO_FS_F_NOTIFICATION"))
        if queue.index == _NOTIFICATION and has_notifications:
            self._notification_buffer(chain)
            return
        head = head_of(chain, _HEAD)
        if len(head) < _HEAD:
            return
        opcode = number(head, 4, 4)
        if opcode in set(_Urgent):
            self._judge.check(
                "5.11.6.2.2:1",
                queue.index == _HIPRIO,
                f"{_Urgent(opcode).name} on queue {queue.index}",
            )
        else:
            self._judge.check(
                "5.11.6.2.2:2",
                queue.index != _HIPRIO,
                f"the FUSE request with opcode {opcode} on hiprio",
            )

    def _notification_buffer(self, chain: Chain) -> None:
        size = self.config(_OFFSETS["notify_buf_size"], 4)
        if size is not None:
            room = total(chain.writable)
            self._judge.check(
                "5.11.6.3.1:1",
                room >= size,
                f"a buffer of {room} bytes in the notification queue; notify_buf_size is {size}",
            )

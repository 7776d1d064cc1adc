"""Requests of a SCSI host's driver, held against 5.6."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from virtiopy.check.fields import FIELDS
from virtiopy.check.judge import DeviceJudge
from virtiopy.check.requests import JudgedDevice, RequestJudge, head_of
from virtiopy.devices.scsi.features import EVENT_SIZE
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.buffers import total
from virtiopy.virtqueue.queue import Chain, Completion, Virtqueue

_CONTROL, _EVENTS = 0, 1

#: Of struct virtio_scsi_req_cmd (5.6.6.1): where the logical unit, the attributes and the CDB are.
_LUN = slice(0, 8)
_ATTRIBUTES = {"task_attr": 16, "prio": 17, "crn": 18}
_CDB = 19

#: Bytes of a CDB by the group of its operation code, its upper three bits; its last byte is
#: CONTROL, whose bit 0 is LINK (SAM-3).
_CDB_SIZES: Mapping[int, int] = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
_LINK = 1

_OFFSETS = {field.name: field.offset for field in FIELDS[DeviceId.SCSI_HOST]}


class ScsiJudge(RequestJudge):
    """Judges requests and event buffers of a SCSI host's driver."""

    device_id: ClassVar[DeviceId] = DeviceId.SCSI_HOST

    def __init__(self, judge: DeviceJudge, device: JudgedDevice) -> None:
        super().__init__(judge, device)
        #: The logical unit of each linked command in flight, by queue and token.
        self._linked: dict[tuple[int, int], bytes] = {}

    def request(self, queue: Virtqueue, chain: Chain) -> None:
        """Judge one buffer."""
        if queue.index == _EVENTS:
            self._event_buffer(chain)
        elif queue.index != _CONTROL:
            self._command(queue, chain)

    def _event_buffer(self, chain: Chain) -> None:
        room = total(chain.writable)
        self._judge.check(
            "5.6.6.3.1:2",
            not total(chain.readable),
            f"a device-readable buffer of {total(chain.readable)} bytes in the eventq",
        )
        size = self.config(_OFFSETS["event_info_size"], 4)
        if size is not None:
            self._judge.check(
                "5.6.6.3.1:3",
                room >= size,
                f"a buffer of {room} bytes in the eventq; event_info_size is {size}",
            )
        self._judge.check(
            "5.6.6.3.1:4",
            room >= EVENT_SIZE,
            f"a buffer of {room} bytes in the eventq; an event has {EVENT_SIZE}",
        )

    def _command(self, queue: Virtqueue, chain: Chain) -> None:
        header = head_of(chain, _CDB + max(_CDB_SIZES.values()))
        if len(header) <= _CDB:
            return
        others = {name: header[at] for name, at in _ATTRIBUTES.items() if header[at]}
        self._judge.check(
            "5.6.6.1.2:1",
            not others,
            "a request with " + ", ".join(f"{name} {value}" for name, value in others.items()),
        )
        if _is_linked(header[_CDB:]):
            self._link(queue, chain, header[_LUN])

    def _link(self, queue: Virtqueue, chain: Chain, lun: bytes) -> None:
        self._linked[queue.index, chain.token] = lun
        count = sum(one == lun for one in self._linked.values())
        most = self.config(_OFFSETS["cmd_per_lun"], 4)
        linked = f"{count} linked commands at logical unit {lun.hex()}"
        if most is not None:
            self._judge.check("5.6.4.1:2", count <= most, f"{linked}; cmd_per_lun is {most}")
        self._judge.check(
            "5.6.4.1:3", count <= queue.size, f"{linked}; the queue has {queue.size} entries"
        )

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """Follow what is done."""
        self.untaken(queue, [chain for chain, _ in completions])

    def untaken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        """Follow buffers that are not in flight any more."""
        for chain in chains:
            self._linked.pop((queue.index, chain.token), None)

    def finish(self, *, by_driver: bool) -> None:
        """Forget what is in flight."""
        self._linked.clear()


def _is_linked(cdb: bytes) -> bool:
    size = _CDB_SIZES.get(cdb[0] >> 5)
    return size is not None and len(cdb) >= size and bool(cdb[size - 1] & _LINK)

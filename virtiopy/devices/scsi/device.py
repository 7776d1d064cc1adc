"""The SCSI host device (5.6): queues, addresses, its life.

A request's life is parse, execute, complete (`requests.py`); what a command does is its logical
unit's. Commands that would wait are served by the loop's workers, a batch at a time.
"""

import enum
import logging
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from virtiopy.devices.base import Fact, VirtioDevice
from virtiopy.devices.batches import Batches
from virtiopy.devices.scsi.address import Address, WellKnown, parse_field
from virtiopy.devices.scsi.command import (
    Additional,
    CheckConditionError,
    OverrunError,
    ScsiStatus,
)
from virtiopy.devices.scsi.control import (
    Cancelled,
    Function,
    FunctionRequest,
    NotificationRequest,
    PendingFunction,
    answer_function,
    answer_notification,
    parse_control,
)
from virtiopy.devices.scsi.events import (
    Events,
    EventType,
    ResetReason,
    parameter_reason,
)
from virtiopy.devices.scsi.features import (
    CDB_SIZE,
    CDB_SIZE_AT,
    SENSE_SIZE,
    SENSE_SIZE_AT,
    SIZE_FIELD,
    ScsiFeature,
    make_config,
)
from virtiopy.devices.scsi.plugging import COMMANDS, OpenUnit
from virtiopy.devices.scsi.requests import (
    FUNCTION_COMPLETE,
    Outcome,
    Request,
    RequestError,
    Response,
    Sizes,
    complete,
    parse_request,
    task_of,
)
from virtiopy.devices.scsi.spc import CDROM_TYPE, AbsentUnit, PrimaryUnit
from virtiopy.devices.scsi.units import Units
from virtiopy.errors import DriverError
from virtiopy.spec import DeviceId, feature_mask, has_feature
from virtiopy.virtqueue.buffers import total
from virtiopy.virtqueue.queue import BATCH, Chain, Virtqueue, batches_of_a_turn

log = logging.getLogger(__name__)

#: Entries of the control queue and of the event queue.
CONTROL_QUEUE_SIZE = EVENT_QUEUE_SIZE = 64

#: How far the driver can change the sizes, bytes: a CDB has up to 260 bytes, sense data up to 252
#: (SPC-4, 4.3.3 and 4.5).
SENSE_SIZE_MAX, CDB_SIZE_MAX = 1 << 12, 1 << 9

#: Requests that a kick has served at once, of those that wait for nothing.
AT_ONCE = 128


class ScsiQueue(enum.IntEnum):
    """The virtqueues (5.6.2); from `requestq` on all are request queues."""

    controlq = 0
    eventq = 1
    requestq = 2


class Scsi(VirtioDevice):
    """A SCSI host device with these logical units, which it closes.

    `num_queues` request queues have `queue_size` entries each.
    """

    device_id: ClassVar[DeviceId] = DeviceId.SCSI_HOST
    feature_bits = ScsiFeature
    commands = COMMANDS
    features = feature_mask([ScsiFeature.VIRTIO_SCSI_F_HOTPLUG, ScsiFeature.VIRTIO_SCSI_F_CHANGE])

    def __init__(
        self,
        units: Mapping[Address, PrimaryUnit],
        *,
        num_queues: int = 1,
        queue_size: int = 256,
    ) -> None:
        super().__init__()
        self.queue_sizes = [CONTROL_QUEUE_SIZE, EVENT_QUEUE_SIZE, *[queue_size] * num_queues]
        self._num_queues, self._queue_size = num_queues, queue_size
        #: Makes the units that a user plugs in later on; None where none can.
        self.open_unit: OpenUnit | None = None
        self._sizes = Sizes(CDB_SIZE, SENSE_SIZE)
        self._units = Units(units)
        self._batches = Batches(self, self.serve)
        self._cancelled = Cancelled()
        self._pending: list[PendingFunction] = []
        self._events = Events()

    # Logical units

    @property
    def units(self) -> Mapping[Address, PrimaryUnit]:
        """The logical units."""
        return self._units.by_address

    def add_unit(self, address: Address, unit: PrimaryUnit) -> None:
        """Plug a logical unit in, and tell the driver (5.6.6.3); from any thread.

        Raises ValueError where there is one at this address, or can be none.
        """
        with self.lock:
            if address in self.units:
                raise ValueError(f"there is a logical unit at {address}")
            self._units.replace({**self.units, address: unit})
            self._hotplugged(address, ResetReason.RESCAN)

    def remove_unit(self, address: Address) -> None:
        """Unplug a logical unit, close it, and tell the driver; from any thread.

        What is being done of its requests is waited for. Raises KeyError where there is none.
        """
        with self.lock:
            unit = self.units[address]
            self._units.replace({at: other for at, other in self.units.items() if at != address})
            self._hotplugged(address, ResetReason.REMOVED)
            # All commands complete before it is unplugged (5.6.6.1.1).
            self._batches.drain()
            unit.close()

    def _hotplugged(self, address: Address, reason: ResetReason) -> None:
        for other, unit in self.units.items():
            if other.target == address.target and other != address:
                unit.attend(Additional.REPORTED_LUNS_CHANGED)
        if has_feature(self.driver_features, ScsiFeature.VIRTIO_SCSI_F_HOTPLUG):
            self._report(EventType.TRANSPORT_RESET, address, reason)

    def capacity_changed(self, address: Address) -> None:
        """Take the size that a disk has now, and tell the driver (5.6.6.3); from any thread.

        Raises KeyError where there is no such unit, ConfigError for a size that it cannot have.
        """
        with self.lock:
            unit = self.units[address]
            if not unit.measure():
                return
            unit.attend(Additional.CAPACITY_DATA_CHANGED)
            # Of a CD-ROM it is never reported (5.6.6.3.2).
            if unit.peripheral_type == CDROM_TYPE:
                return
            if has_feature(self.driver_features, ScsiFeature.VIRTIO_SCSI_F_CHANGE):
                reason = parameter_reason(Additional.CAPACITY_DATA_CHANGED)
                self._report(EventType.PARAM_CHANGE, address, reason)

    def _report(self, event: EventType, address: Address, reason: int) -> None:
        queue = self.queues.get(ScsiQueue.eventq)
        if queue is None or self.halted:
            return
        try:
            self._events.report(queue, event, address.field, reason)
            self.notify(queue)
        except DriverError as error:
            self.host.needs_reset(str(error))

    # Configuration space (5.6.4)

    def config_space(self) -> bytes:
        """Return struct virtio_scsi_config."""
        return make_config(
            self._num_queues,
            self._queue_size,
            sense_size=self._sizes.sense,
            cdb_size=self._sizes.cdb,
        )

    def write_config(self, offset: int, data: bytes) -> bool:
        """Take a new `sense_size` or `cdb_size`; nothing else can be written."""
        if len(data) != SIZE_FIELD:
            return False
        value, sizes = int.from_bytes(data, "little"), self._sizes
        if offset == SENSE_SIZE_AT and value <= SENSE_SIZE_MAX:
            self._sizes = Sizes(sizes.cdb, value)
        elif offset == CDB_SIZE_AT and 0 < value <= CDB_SIZE_MAX:
            self._sizes = Sizes(value, sizes.sense)
        else:
            return False
        return True

    # Kicks

    def handle(self, queue: Virtqueue) -> None:
        """Serve a queue, what waits for something on a worker's thread. Raises QueueError."""
        if queue.index == ScsiQueue.eventq:
            self._events.buffers_added(queue)
            self.notify(queue)
        elif queue.index == ScsiQueue.controlq:
            self._handle_control(queue)
        elif self.may_block or self.loop is None:
            super().handle(queue)
        else:
            self._batches.work(
                queue, lambda chain: self._serve(queue, chain, at_once=True), AT_ONCE, self.loop
            )

    # A request: parse, execute, complete (5.6.6.1)

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        """Serve one request, however long that takes; returns the bytes written."""
        written = self._serve(queue, chain, at_once=False)
        assert written is not None
        return written

    def _serve(self, queue: Virtqueue, chain: Chain, *, at_once: bool) -> int | None:
        try:
            request = parse_request(chain, self._sizes)
        except RequestError as error:
            log.warning("queue %d: %s", queue.index, error)
            return 0
        cancelled = self._cancelled.response_to(chain)
        if cancelled is not None:
            return complete(chain, request, Outcome(cancelled))
        outcome = self.execute(request, at_once=at_once)
        return None if outcome is None else complete(chain, request, outcome)

    def execute(self, request: Request, *, at_once: bool = False) -> Outcome | None:
        """Do what is asked for; None, `at_once`, for what takes longer."""
        command = request.command
        if command is None:
            log.info("a request is refused: it is cut short (5.6.6.1)")
            return Outcome(Response.FAILURE)
        if total(command.data_in) and total(command.data_out):
            # VIRTIO_SCSI_F_INOUT is not offered.
            return Outcome(Response.FAILURE)
        unit = self._units.find(request.lun)
        if unit is None:
            return Outcome(Response.BAD_TARGET)
        try:
            transferred = unit.execute_at_once(command) if at_once else unit.execute(command)
        except OverrunError as error:
            log.info("%s: %s", unit.address, error)
            return Outcome(Response.OVERRUN)
        except CheckConditionError as error:
            log.info("%s: command %#x: %s", unit.address, command.cdb[0], error)
            return Outcome(Response.OK, 0, ScsiStatus.CHECK_CONDITION, error.sense)
        return None if transferred is None else Outcome(Response.OK, transferred)

    # The control queue (5.6.6.2)

    def _handle_control(self, queue: Virtqueue) -> None:
        for _ in batches_of_a_turn():
            queue.disable_kicks()
            chains = queue.pop_many(BATCH)
            for chain in chains:
                self._control(queue, chain)
            self.notify(queue)
            if not chains and not queue.enable_kicks():
                return
        self.handle_soon(queue)

    def _control(self, queue: Virtqueue, chain: Chain) -> None:
        request = parse_control(chain.readable)
        if isinstance(request, FunctionRequest):
            self._function(queue, chain, request)
        elif isinstance(request, NotificationRequest):
            response = self._addressed(request.lun) or Response.OK
            queue.push(chain, answer_notification(chain.writable, response))
        else:
            queue.push(chain, answer_function(chain.writable, Response.FAILURE))

    def _addressed(self, lun: bytes) -> Response | None:
        """Return what is wrong with a `lun` field that has to address a logical unit."""
        unit = self._units.find(lun)
        if unit is None:
            return Response.BAD_TARGET
        return Response.INCORRECT_LUN if isinstance(unit, AbsentUnit) else None

    def _function(self, queue: Virtqueue, chain: Chain, request: FunctionRequest) -> None:
        """Do a task management function; it is answered once the tasks that it is for ended."""
        address = parse_field(request.lun)
        response = self._addressed(request.lun)
        if request.subtype == Function.I_T_NEXUS_RESET and response is Response.INCORRECT_LUN:
            # The LUN is ignored.
            response = None
        if response is None and request.subtype not in set(Function) - {Function.CLEAR_ACA}:
            # No unit keeps an auto contingent allegiance (NormACA 0).
            response = Response.FUNCTION_REJECTED
        if response is not None:
            queue.push(chain, answer_function(chain.writable, response))
            return
        assert address is not None
        function = Function(request.subtype)
        tasks = [
            (batch, task_chain)
            for batch in self._batches.in_flight
            for task_chain in batch.chains
            if _concerns(function, request, address, task_chain)
        ]
        if function in {Function.QUERY_TASK, Function.QUERY_TASK_SET}:
            found = Response.FUNCTION_SUCCEEDED if tasks else FUNCTION_COMPLETE
            queue.push(chain, answer_function(chain.writable, found))
            return
        resets = function in {Function.I_T_NEXUS_RESET, Function.LOGICAL_UNIT_RESET}
        for _, task_chain in tasks:
            self._cancelled.add(task_chain, Response.RESET if resets else Response.ABORTED)
        if resets:
            self._reset_units(function, address)
        batches = list(dict.fromkeys(batch for batch, _ in tasks))
        pending = PendingFunction(queue, chain, FUNCTION_COMPLETE, batches)
        self._pending.append(pending)
        if batches and self.loop is not None:
            # Workers take their batches in order, so that the wait cannot hold up what it is for.
            self.loop.run_blocking(pending.wait, partial(self._ended, pending), "SCSI tasks")
        else:
            self._end(pending)

    def _reset_units(self, function: Function, address: Address | WellKnown) -> None:
        nexus = function is Function.I_T_NEXUS_RESET
        for other, unit in self.units.items():
            if nexus and other.target == address.target:
                unit.reset(Additional.I_T_NEXUS_LOSS)
            elif other == address:
                unit.reset()

    def _ended(self, pending: PendingFunction) -> None:
        with self.lock:
            try:
                self._end(pending)
            except DriverError as error:
                self.host.needs_reset(str(error))

    def _end(self, pending: PendingFunction) -> None:
        """Answer a function, after the tasks that it was for; once. Raises QueueError."""
        if pending not in self._pending:
            return
        self._pending.remove(pending)
        for batch in pending.batches:
            self._batches.finish(batch)
        self._cancelled.forget(pending.batches)
        if self.queues.get(pending.queue.index) is pending.queue:
            written = answer_function(pending.chain.writable, pending.response)
            pending.queue.push(pending.chain, written)
            self.notify(pending.queue)

    # Life

    def stop_queue(self, index: int) -> None:
        """Forget a queue; what the workers have of it is waited for."""
        self._batches.drain()
        self._pending = [pending for pending in self._pending if pending.queue.index != index]
        super().stop_queue(index)

    def settle(self, index: int) -> None:
        """Complete what the workers have of a queue."""
        for pending in [item for item in self._pending if item.queue.index == index]:
            self._end(pending)
        self._batches.settle(index)

    def reset(self) -> None:
        """Forget the driver, its sizes and its requests."""
        self._batches.drain()
        self._pending.clear()
        self._cancelled.clear()
        super().reset()
        self._sizes = Sizes(CDB_SIZE, SENSE_SIZE)
        self._events.reset()
        for unit in self._units.every():
            unit.reset()

    def close(self) -> None:
        """Close every unit."""
        self._batches.drain()
        for unit in self.units.values():
            unit.close()

    def facts(self) -> Mapping[str, Fact]:
        """Tell which units there are, with their sizes in bytes."""
        return {
            "events_lost": self._events.lost,
            "units": {str(at): unit.medium_size for at, unit in sorted(self.units.items())},
        }


def _concerns(
    function: Function, request: FunctionRequest, address: Address | WellKnown, chain: Chain
) -> bool:
    """Say whether a function is about a request."""
    task = task_of(chain)
    if task is None:
        return False
    lun, tag = task
    at = parse_field(lun)
    if function is Function.I_T_NEXUS_RESET:
        return at is not None and at.target == address.target
    if function in {Function.ABORT_TASK, Function.QUERY_TASK}:
        return at == address and tag == request.tag
    return at == address

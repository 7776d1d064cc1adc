"""The registers of virtio-mmio as a driver uses them, held against 4.2, and 2 and 3 behind them.

Each access is told before the transport answers it. Where the guest reads registers from memory,
without exits, its reads are not seen: what depends on them is left unjudged.
"""

import enum

from virtiopy.check.fields import Field, feature_bit, field_at
from virtiopy.check.judge import DeviceJudge
from virtiopy.spec import DeviceId, DeviceStatus, Feature, has_feature
from virtiopy.transport.lifecycle import Lifecycle
from virtiopy.transport.registers import Interrupt, Register

_WRITE_ONLY = {
    Register.DeviceFeaturesSel,
    Register.DriverFeatures,
    Register.DriverFeaturesSel,
    Register.QueueSel,
    Register.QueueSize,
    Register.QueueNotify,
    Register.InterruptACK,
    Register.QueueDescLow,
    Register.QueueDescHigh,
    Register.QueueDriverLow,
    Register.QueueDriverHigh,
    Register.QueueDeviceLow,
    Register.QueueDeviceHigh,
    Register.SHMSel,
}
_READ_WRITE = {Register.QueueReady, Register.Status, Register.QueueReset}
_SHARED_MEMORY = {
    Register.SHMSel,
    Register.SHMLenLow,
    Register.SHMLenHigh,
    Register.SHMBaseLow,
    Register.SHMBaseHigh,
}
_QUEUE_SETTINGS = {
    Register.QueueSize,
    Register.QueueDescLow,
    Register.QueueDescHigh,
    Register.QueueDriverLow,
    Register.QueueDriverHigh,
    Register.QueueDeviceLow,
    Register.QueueDeviceHigh,
}
#: What an interrupt handler accesses: an interrupt may come between any two steps of a driver's.
_HANDLERS = {Register.InterruptStatus, Register.InterruptACK}
_IDENTITY = (Register.MagicValue, Register.Version, Register.DeviceID)
_EVENTS = int(Interrupt.USED_BUFFER | Interrupt.CONFIG_CHANGE)

#: Registers that only drivers of the legacy interface know (4.2.4).
_LEGACY = {0x028: "GuestPageSize", 0x03C: "QueueAlign", 0x040: "QueuePFN"}

_WORD = 4

#: Fields that a driver reads while the device is live, and the statement that asks for it.
_READ_AGAIN = {
    (DeviceId.NETWORK, "status"): "5.1.4.2:6",
    (DeviceId.BLOCK, "capacity"): "5.2.6.1:1",
}

#: The statement that says which fields a driver may write, and those.
_WRITABLE = {
    DeviceId.SCSI_HOST: ("5.6.4.1:1", {"sense_size", "cdb_size"}),
    DeviceId.FILE_SYSTEM: ("5.11.4.1:1", set[str]()),
}


class _Awaited(enum.Enum):
    """What a driver has to read next, and what it breaks where it does something else."""

    RESET = (Register.Status, "2.4.2:1", "does not read Status after the reset")
    FEATURES_OK = (Register.Status, "3.1.1:1", "does not read Status after it set FEATURES_OK")
    QUEUE_READY = (Register.QueueReady, "4.2.2.2:17", "does not read QueueReady after writing 0")
    QUEUE_RESET = (Register.QueueReset, "2.6.1.1.2:1", "does not read QueueReset after writing 1")

    @property
    def register(self) -> Register:
        return self.value[0]

    @property
    def statement(self) -> str:
        return self.value[1]

    @property
    def fault(self) -> str:
        return self.value[2]


class RegisterJudge:
    """Judges the accesses of one device's driver.

    `sees_reads` says whether reads are told. The caller holds no lock of the device's.
    """

    def __init__(self, judge: DeviceJudge, lifecycle: Lifecycle, *, sees_reads: bool) -> None:
        self._judge = judge
        self._lifecycle = lifecycle
        self._device: DeviceId = lifecycle.device.device_id
        self._sees_reads = sees_reads
        self._read: set[Register] = set()
        self._written: set[Register] = set()
        self._identified = False
        self._awaited: set[_Awaited] = set()
        self._queue = 0
        #: Queues that were reset, and what was written of each since.
        self._configured: dict[int, set[Register]] = {}
        #: The events of InterruptStatus that the driver read and has not acknowledged.
        self._interrupts_read: int | None = None
        self._last_was_generation = False
        self._wide: Field | None = None
        self._poisoned = False

    # What is told

    def read(self, offset: int, size: int, value: int) -> None:
        """Judge a read of `size` bytes at `offset`, which is answered with `value`."""
        self._judge.note(f"reads {self._name(offset)}")
        if offset >= Register.Config:
            self._read_field(self._config(offset - Register.Config, size, "reads"))
            self._read_wide(offset - Register.Config, size)
            return
        register = self._register(offset, size, "reads")
        if register not in _HANDLERS:
            self._generation(register)
        if register is None:
            return
        if not self._judge.check(
            "4.2.2.2:3",
            register not in _WRITE_ONLY,
            f"the driver reads {register.name}, a register to be written",
        ):
            return
        if register not in _HANDLERS:
            self._settle(register)
        self._identify(register)
        self._read.add(register)
        if register is Register.DeviceFeatures:
            self._judge.check(
                "4.2.2.2:12",
                Register.DeviceFeaturesSel in self._written,
                "the driver reads DeviceFeatures and has not written DeviceFeaturesSel",
            )
        elif register is Register.InterruptStatus:
            self._interrupts_read = value

    def write(self, offset: int, data: bytes) -> None:
        """Judge a write of `data` at `offset`."""
        value = int.from_bytes(data, "little")
        self._judge.note(f"writes {value:#x} to {self._name(offset)}")
        if offset >= Register.Config:
            self._write_config(offset - Register.Config, len(data), value)
            return
        register = self._register(offset, len(data), "writes")
        if register not in _HANDLERS:
            self._generation(None)
        if register is None:
            return
        if not self._judge.check(
            "4.2.2.2:2",
            register in _WRITE_ONLY or register in _READ_WRITE,
            f"the driver writes {register.name}, a register to be read",
        ):
            return
        if register not in _HANDLERS:
            self._settle(None)
        self._identify(register)
        self._written.add(register)
        self._judge_write(register, value)

    def reset(self) -> None:
        """Forget the driver's life: it has reset the device."""
        self._configured = {}
        self._interrupts_read = None

    # Any access

    def _name(self, offset: int) -> str:
        if offset >= Register.Config:
            field = field_at(self._device, offset - Register.Config)
            return field.name if field else f"the configuration space at {offset:#x}"
        try:
            return Register(offset).name
        except ValueError:
            return f"offset {offset:#x}"

    def _register(self, offset: int, size: int, does: str) -> Register | None:
        try:
            register = Register(offset - offset % _WORD)
        except ValueError:
            name = _LEGACY.get(offset)
            what = f"{name}, a register of the legacy interface" if name else "no register"
            self._judge.broke("4.2.2.2:1", f"the driver {does} {size} bytes at {offset:#x}: {what}")
            return None
        self._judge.kept("4.2.2.2:1")
        aligned = size == _WORD and offset % _WORD == 0
        if not self._judge.check(
            "4.2.2.2:4", aligned, f"the driver {does} {size} bytes at {offset:#x}, {register.name}"
        ):
            return None
        if register in _SHARED_MEMORY and not self._lifecycle.device.shared_memory:
            self._judge.broke("4.2.3.1.1:5", f"the driver {does} {register.name}")
        return register

    def _settle(self, register: Register | None) -> None:
        """Judge what had to be read before this access, which reads `register` if any."""
        for awaited in list(self._awaited):
            self._awaited.discard(awaited)
            if register is awaited.register:
                self._judge.kept(awaited.statement)
                if awaited is _Awaited.QUEUE_RESET:
                    self._judge.kept("4.2.2.2:21")
            elif self._sees_reads:
                self._judge.broke(awaited.statement, f"the driver {awaited.fault}")

    def _identify(self, register: Register) -> None:
        """Judge the first accesses of all (4.2.3.1.1)."""
        if self._identified or register in _IDENTITY or not self._sees_reads:
            return
        self._identified = True
        missing = [one.name for one in _IDENTITY[:2] if one not in self._read]
        self._judge.check(
            "4.2.3.1.1:1",
            not missing,
            f"the driver starts without reading {' and '.join(missing)}",
        )
        self._judge.check(
            "4.2.3.1.1:2",
            Register.DeviceID in self._read,
            f"the driver goes on to {register.name} without reading DeviceID",
        )

    # Writes of registers

    def _judge_write(self, register: Register, value: int) -> None:
        match register:
            case Register.QueueSel:
                self._queue = value
            case Register.Status:
                self._write_status(value)
            case Register.DriverFeatures:
                self._write_features()
            case Register.QueueReady:
                self._write_queue_ready(value)
            case Register.QueueReset:
                self._write_queue_reset(value)
            case Register.InterruptACK:
                self._acknowledge(value)
            case _ if register in _QUEUE_SETTINGS:
                self._configure(register, value)

    def _write_status(self, value: int) -> None:
        if value == 0:
            self._awaited.add(_Awaited.RESET)
            self._unacknowledged("resets the device")
            self._poisoned = False
        elif value & ~self._lifecycle.status & DeviceStatus.FEATURES_OK:
            self._awaited.add(_Awaited.FEATURES_OK)
        elif value & ~self._lifecycle.status & DeviceStatus.DRIVER_OK and self._poisons:
            self._judge.check(
                "5.5.6.6.1:2",
                self._poisoned,
                "the driver accepts VIRTIO_BALLOON_F_PAGE_POISON and has not written poison_val",
            )

    @property
    def _poisons(self) -> bool:
        return self._device is DeviceId.BALLOON and has_feature(
            self._judge.features, feature_bit("VIRTIO_BALLOON_F_PAGE_POISON")
        )

    def _write_features(self) -> None:
        self._judge.check(
            "4.2.2.2:13",
            Register.DriverFeaturesSel in self._written,
            "the driver writes DriverFeatures and has not written DriverFeaturesSel",
        )
        if self._sees_reads:
            self._judge.check(
                "2.2.1:3",
                Register.DeviceFeatures in self._read,
                "the driver accepts features and has not read DeviceFeatures",
            )

    def _configure(self, register: Register, value: int) -> None:
        config = self._lifecycle.queue_config(self._queue)
        if config is None:
            return
        self._judge.check(
            "4.2.2.2:15",
            not config.ready,
            f"the driver writes {register.name} of queue {self._queue} while QueueReady is 1",
        )
        if register is Register.QueueSize:
            most = self._lifecycle.queue_size_max(self._queue)
            self._judge.check(
                "4.2.2.2:14",
                value <= most,
                f"the driver writes QueueSize {value} of queue {self._queue}; the most is {most}",
            )
        if self._queue in self._configured:
            self._configured[self._queue].add(register)

    def _write_queue_ready(self, value: int) -> None:
        config = self._lifecycle.queue_config(self._queue)
        if config is None:
            return
        if value == 0 and config.ready:
            self._judge.kept("4.2.2.2:16")
            self._awaited.add(_Awaited.QUEUE_READY)
        elif value == 1 and self._queue in self._configured:
            written = self._configured.pop(self._queue)
            if self._judge.check(
                "2.6.1.2.2:1",
                bool(written),
                f"the driver enables queue {self._queue} after its reset, and configured nothing",
            ):
                self._judge.kept("4.2.2.2:22")
                self._judge.kept("4.2.2.2:23")

    def _write_queue_reset(self, value: int) -> None:
        features = self._lifecycle.driver_features
        if value == 1 and has_feature(features, Feature.VIRTIO_F_RING_RESET):
            self._configured[self._queue] = set()
            self._awaited.add(_Awaited.QUEUE_RESET)

    # Interrupts (4.2.3.4)

    def _acknowledge(self, events: int) -> None:
        self._judge.check(
            "4.2.2.2:20",
            not events & ~_EVENTS,
            f"the driver writes {events:#x} to InterruptACK; bits 0 and 1 are defined",
        )
        self._judge.kept("4.2.2.2:19")
        self._judge.kept("4.2.3.4.1:3")
        if self._sees_reads:
            self._judge.check(
                "4.2.3.4.1:1",
                self._interrupts_read is not None,
                "the driver acknowledges an interrupt and has not read InterruptStatus",
            )
        self._interrupts_read = (self._interrupts_read or 0) & ~events & _EVENTS or None

    def _unacknowledged(self, then: str) -> None:
        if self._interrupts_read:
            self._judge.broke(
                "4.2.3.4.1:3",
                f"the driver reads {self._interrupts_read:#x} from InterruptStatus and {then} "
                "without an acknowledgement",
            )
        self._interrupts_read = None

    # Configuration space (2.5, 4.2.2.2)

    def _config(self, offset: int, size: int, does: str) -> Field | None:
        field = field_at(self._device, offset)
        end = len(self._lifecycle.device.config_space())
        if offset + size > end or (field is None and self._device is DeviceId.ENTROPY):
            self._judge.broke(
                "4.2.2.2:1",
                f"the driver {does} {size} bytes at {offset} of a configuration space of {end}",
            )
            return None
        if field is None:
            return None
        width = min(field.width, _WORD)
        whole = size == width and (offset - field.offset) % width == 0
        self._judge.check(
            "4.2.2.2:5",
            whole,
            f"the driver {does} {size} bytes at {offset} of the configuration space: {field.name} "
            f"has {field.width}",
        )
        if field.name == "writeback" and does == "reads":
            self._judge.check(
                "5.2.5.1:4",
                bool(self._lifecycle.status & DeviceStatus.FEATURES_OK),
                "the driver reads writeback before FEATURES_OK",
            )
        if field.condition is not None:
            self._judge.check(
                "2.5.1:3",
                field.condition.holds(self._lifecycle.offered),
                f"the driver {does} {field.name}, which the device does not have",
            )
        return field

    def _read_field(self, field: Field | None) -> None:
        """Take note of what the driver looks at, where the specification asks it to."""
        if not self._lifecycle.status & DeviceStatus.FEATURES_OK:
            self._judge.kept("3.1.1:2")
        elif field is not None and (self._device, field.name) in _READ_AGAIN:
            self._judge.kept(_READ_AGAIN[self._device, field.name])

    def _write_config(self, offset: int, size: int, value: int) -> None:
        self._generation(None)
        field = self._config(offset, size, "writes")
        if field is not None and field.name == "writeback" and value in (0, 1):
            self._judge.kept("5.2.6.1:12")
        if field is not None and field.name == "poison_val":
            self._poisoned = True
            self._judge.check(
                "5.5.6.6.1:3",
                not self._lifecycle.status & DeviceStatus.DRIVER_OK,
                "the driver writes poison_val while DRIVER_OK is set",
            )
        name = field.name if field else f"byte {offset} of the configuration space"
        if self._device in _WRITABLE:
            statement, writable = _WRITABLE[self._device]
            self._judge.check(statement, name in writable, f"the driver writes {name}")
        # Emergency writes take no initialization (5.3.5).
        self._judge.check(
            "3.1.1:3",
            name == "emerg_wr" or bool(self._lifecycle.status & DeviceStatus.FEATURES_OK),
            f"the driver writes {name} before FEATURES_OK",
        )

    def _read_wide(self, offset: int, size: int) -> None:
        """Follow reads of a field of 64 bits, between two of ConfigGeneration (2.5.1)."""
        field = field_at(self._device, offset)
        if field is None or field.width <= _WORD:
            return
        if offset == field.offset and not self._last_was_generation and self._sees_reads:
            self._torn(field)
        self._wide = field

    def _generation(self, register: Register | None) -> None:
        """Take note of an access besides the configuration space: of ConfigGeneration, or not."""
        is_generation = register is Register.ConfigGeneration
        if self._wide is not None and self._sees_reads:
            if is_generation:
                self._judge.kept("2.5.1:2")
            else:
                self._torn(self._wide)
        self._wide = None
        self._last_was_generation = is_generation

    def _torn(self, field: Field) -> None:
        self._judge.broke(
            "2.5.1:2",
            f"the driver reads {field.name}, of {field.width * 8} bits, without ConfigGeneration "
            "before and after it",
        )

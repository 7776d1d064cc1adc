"""What is told of a guest whose run ends before it is done."""

from collections.abc import Callable, Iterator

import pytest

from tests.unit.machine.bench import FIRST, FakeAccelerator, FakeCpu, io_write, mmio_write
from virtiopy.cpu.activity import Activity
from virtiopy.cpu.exits import Exit, ExitReason
from virtiopy.devices.rng import Rng
from virtiopy.errors import GuestError
from virtiopy.memory import GuestMemory
from virtiopy.spec import Feature
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.driver import Allocator, Piece
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode
from virtiopy.vm.standing import REFUSALS_MAX

MEMORY = 2 << 20


@pytest.fixture(params=[IoMode.TRAPPED, IoMode.IOEVENTFD], ids=str)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with (
        GuestMemory.allocate(MEMORY) as memory,
        Machine(memory, FakeAccelerator(), console=lambda data: None) as machine,
    ):
        machine.add_device(Rng(), "rng0", request.param)
        yield machine


@pytest.fixture
def driver(machine: Machine) -> MmioDriver:
    return MmioDriver(machine.slots[0].transport, machine.memory, Allocator(0x1000, MEMORY))


def told(machine: Machine) -> str:
    [device] = machine.standing().devices
    return device.describe()


# Devices


def test_a_device_without_a_driver_is_told_so(machine: Machine) -> None:
    assert told(machine) == "rng0: no driver"


def test_a_driver_that_stops_before_its_features_is_told(
    machine: Machine, driver: MmioDriver
) -> None:
    driver.write(Register.Status, 1)
    driver.write(Register.Status, 3)
    assert told(machine) == (
        "rng0: device status ACKNOWLEDGE, DRIVER; features are not negotiated: FEATURES_OK is not "
        "set (3.1.1)"
    )


def test_a_driver_without_version_1_is_told_what_was_refused(
    machine: Machine, driver: MmioDriver
) -> None:
    for status in (0, 1, 3, 11):
        driver.write(Register.Status, status)
    assert "refused: the driver does not accept VIRTIO_F_VERSION_1 (6.1)" in told(machine)


def test_queues_that_are_not_ready_are_told(machine: Machine, driver: MmioDriver) -> None:
    driver.negotiate([Feature.VIRTIO_F_VERSION_1])
    assert told(machine).endswith("queue 0 not ready; DRIVER_OK is not set (3.1.1)")


def test_a_kick_of_a_queue_that_is_not_ready_is_told_with_its_count(
    machine: Machine, driver: MmioDriver
) -> None:
    lifecycle = machine.slots[0].transport.lifecycle
    driver.negotiate([Feature.VIRTIO_F_VERSION_1])
    for _ in range(3):
        lifecycle.kick(0)
    assert "before it sets DRIVER_OK (3.1.1); the kick is ignored (3 times)" in told(machine)


def test_buffers_that_were_never_kicked_for_are_told(machine: Machine, driver: MmioDriver) -> None:
    driver.start()
    driver.queues[0].add([Piece(driver.allocator.take(64), 64, writable=True)])
    assert told(machine).endswith("queue 0 has available buffers that are not taken, never kicked")


def test_a_device_that_did_all_has_nothing_told_but_its_status(
    machine: Machine, driver: MmioDriver
) -> None:
    driver.start()
    driver.queues[0].add([Piece(driver.allocator.take(64), 64, writable=True)])
    machine.slots[0].transport.lifecycle.kick(0)
    driver.write(Register.InterruptACK, 3)
    assert told(machine) == "rng0: device status ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK"


def test_an_interrupt_that_is_not_acknowledged_is_told(
    machine: Machine, driver: MmioDriver
) -> None:
    driver.start()
    machine.slots[0].transport.lifecycle.config_changed()
    assert told(machine).endswith("not acknowledged: interrupt CONFIG_CHANGE")


def test_a_device_that_needs_a_reset_says_why(machine: Machine, driver: MmioDriver) -> None:
    driver.start()
    machine.memory.write(driver.queues[0].areas.driver + 2, (9999).to_bytes(2, "little"))
    machine.slots[0].transport.lifecycle.kick(0)
    assert "; needs a reset: " in told(machine)
    driver.reset()
    assert told(machine) == "rng0: no driver"


def test_refusals_without_end_are_kept_up_to_a_number(machine: Machine, driver: MmioDriver) -> None:
    driver.start()
    for index in range(100, 200):
        machine.slots[0].transport.lifecycle.kick(index)
    assert told(machine).count("refused: ") == REFUSALS_MAX


# CPUs


def stopped(machine: Machine, change: Callable[[FakeCpu], None] = lambda cpu: None) -> str:
    """Run to the end of the time, and return what is told of the CPU."""
    cpu = machine.accelerator.cpu  # type: ignore[attr-defined]
    machine.run(timeout=0.01)
    change(cpu)
    [standing] = machine.standing(lambda address: f"code_{address:x}").cpus
    return standing.describe()


def test_a_cpu_that_stays_where_it_is_spins(machine: Machine) -> None:
    assert stopped(machine) == "CPU 0 at rip 0x1234 (code_1234) spins"


def test_a_cpu_that_is_here_and_there_executes_code(machine: Machine) -> None:
    def wander(cpu: FakeCpu) -> None:
        get = cpu.get_registers

        def elsewhere() -> object:
            cpu.registers.rip += 0x1000
            return get()

        cpu.get_registers = elsewhere  # type: ignore[method-assign, assignment]

    assert stopped(machine, wander).endswith("executes code")


def test_a_cpu_that_asks_something_of_userspace_does_not_spin(machine: Machine) -> None:
    def ask(cpu: FakeCpu) -> None:
        cpu.script = [io_write(0xE9, b"x")]

    assert stopped(machine, ask).endswith("executes code")


@pytest.mark.parametrize(
    ("flags", "words"),
    [(0x202, "is halted, and waits for an interrupt"), (2, "with interrupts off, and does not")],
)
def test_a_halted_cpu_says_whether_it_can_wake(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, flags: int, words: str
) -> None:
    monkeypatch.setattr(FakeCpu, "activity", lambda cpu: Activity.HALTED)

    def halt(cpu: FakeCpu) -> None:
        cpu.registers.rflags = flags

    assert words in stopped(machine, halt)


def test_a_cpu_that_was_not_started_says_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeCpu, "activity", lambda cpu: Activity.NOT_STARTED)
    assert stopped(machine) == "CPU 0 was not started: no INIT and SIPI came"


def test_a_cpu_that_failed_is_not_run_again(machine: Machine) -> None:
    cpu = machine.accelerator.cpu  # type: ignore[attr-defined]
    cpu.script = [Exit(ExitReason.SHUTDOWN), mmio_write(FIRST, b"1234")]
    with pytest.raises(GuestError):
        machine.run(timeout=5)
    [standing] = machine.standing().cpus
    assert standing.describe() == "CPU 0 at rip 0x1234 failed"
    assert len(cpu.script) == 1

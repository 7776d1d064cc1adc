"""The network device in a VM, its rings worked by the real vhost-net, on a real tap."""

import contextlib
import fcntl
import ipaddress
import os
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab.machine import REPOSITORY
from tests.lab.network import HEADER_SIZE, TapLink, frame
from tests.namespace import Namespace
from tests.patience import PATIENCE
from tests.ping import ping
from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.boot.elf import GuestImage
from virtiopy.boot.guests import guest_path
from virtiopy.cli.tapresults import parse_tap
from virtiopy.control.client import ask
from virtiopy.control.server import ControlServer
from virtiopy.devices.net import Net
from virtiopy.errors import ConfigError
from virtiopy.host.tap import Tap
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus
from virtiopy.transport.driver import MmioDriver
from virtiopy.vhost.kernel.pair import VhostPair
from virtiopy.vhost.worker import cpu_seconds, worker_threads
from virtiopy.virtqueue.driver import Allocator, Piece
from virtiopy.vm.machine import Machine, RunResult
from virtiopy.vm.slots import IoMode, Slot

pytestmark = pytest.mark.lab

HOST, GUEST = "192.0.2.1", "192.0.2.2"
MAC = bytes.fromhex("020000000002")
PORT, ECHO_PORT, STOP_PORT = 5001, 7, 9


FRAMES = 10_000
ECHOES = 10_000
SWITCHES = 100

RX, TX = 0, 1

#: Frames that a tap holds (its txqueuelen).
TAP_QUEUE = 500

#: linux/if_tun.h
TUNSETVNETHDRSZ = 0x4004_54D8

#: asm-generic/socket.h; the socket module does not have it.
SO_RCVBUFFORCE = 33

#: Frames on their way at a time: fewer than the guest has buffers.
WINDOW = 120

#: A datagram's words after its number are the number times this, as in guest_drivers/net/stream.c.
PATTERN_STEP = 0x9E3779B97F4A7C15
SEQUENCE_END = (1 << 64) - 1


def datagram(number: int) -> bytes:
    """What the guest's drivers send and expect."""
    word = number * PATTERN_STEP & SEQUENCE_END
    return struct.pack("<QQ", number, word) + struct.pack("<Q", word) * 6


@dataclass
class Vm:
    """The net guest on a tap of its own, run on a thread while the test looks on."""

    namespace: Namespace
    machine: Machine
    slot: Slot
    tap: Tap
    output: bytearray
    written: threading.Event
    result: RunResult | None = None
    failure: BaseException | None = None
    thread: threading.Thread = field(init=False)

    def start(self, append: str) -> None:
        self.machine.boot(GuestImage.open(guest_path("net")), append)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def serve(self) -> None:
        """Have the guest answer ARP, pings and UDP."""
        self.start("net.mode=serve")
        self.wait_for("# ready")

    def _run(self) -> None:
        try:
            self.result = self.machine.run(PATIENCE)
        except BaseException as error:  # noqa: BLE001 - raised again by finish()
            self.failure = error
        self.written.set()

    def wait_for(self, text: str) -> None:
        """Wait until the guest has printed this."""
        while text.encode() not in self.output:
            assert self.thread.is_alive(), self.output.decode()
            self.written.wait(1)
            self.written.clear()

    def finish(self) -> str:
        """Wait for the guest's end; returns what it printed."""
        self.thread.join()
        if self.failure is not None:
            raise self.failure
        assert self.result is not None
        text = self.output.decode()
        report = parse_tap(text)
        failed = [test.description for test in report.tests if test.outcome == "failed"]
        assert failed == [], text
        assert self.result.status == 0, text
        return text

    def stop_serving(self) -> str:
        with self.socket() as sender:
            sender.sendto(b"stop", (GUEST, STOP_PORT))
        return self.finish()

    def socket(self) -> socket.socket:
        """Make a UDP socket in the tap's namespace."""
        return self.namespace.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    def used(self, queue: int) -> int:
        """Return the used index of a virtqueue, 16 bits, whoever works it."""
        address = self.slot.device.queues[queue].areas.device + 2
        return int.from_bytes(self.machine.memory.read(address, 2), "little")

    def facts(self, name: str) -> object:
        return self.slot.device.facts()[name]


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


@contextlib.contextmanager
def make_vm(namespace: Namespace, mode: IoMode, queues: int = 1) -> Iterator[Vm]:
    output, written = bytearray(), threading.Event()

    def show(data: bytes) -> None:
        output.extend(data)
        written.set()

    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(GuestMemory.allocate(32 << 20))
        accelerator = KvmAccelerator(memory)
        stack.callback(accelerator.close)
        machine = stack.enter_context(Machine(memory, accelerator, console=show))
        address = ipaddress.ip_interface(f"{HOST}/24")
        tap = Tap(namespace.config(create=True, address=address, queues=queues))
        slot = machine.add_device(Net(tap, mac=MAC), "net0", mode)
        vm = Vm(namespace, machine, slot, tap, output, written)
        try:
            yield vm
        finally:
            machine.cpus[0].cpu.stop()
            if hasattr(vm, "thread"):
                vm.thread.join()


@pytest.fixture
def vhost_vm(namespace: Namespace) -> Iterator[Vm]:
    with make_vm(namespace, IoMode.VHOST) as vm:
        yield vm


def test_the_net_guest_passes_and_a_kernel_thread_does_the_work(vhost_vm: Vm) -> None:
    # Named after the thread that opened /dev/vhost-net: this one.
    (thread,) = worker_threads(threading.get_native_id())
    before = cpu_seconds(thread)

    vhost_vm.start("net.vhost=1")
    text = vhost_vm.finish()

    assert len(parse_tap(text).tests) > 100
    assert cpu_seconds(thread) > before
    delegations = vhost_vm.facts("delegations")
    assert isinstance(delegations, int)
    assert delegations > 10
    assert vhost_vm.facts("rx_frames") == vhost_vm.facts("tx_frames") == 0


def test_the_net_guest_passes_with_a_kernel_thread_for_each_pair(namespace: Namespace) -> None:
    with make_vm(namespace, IoMode.VHOST, queues=2) as vm:
        assert len(worker_threads(threading.get_native_id())) == 2
        vm.start("net.vhost=1")
        text = vm.finish()
        assert "ok" in text
        assert "every pair sends" in text
        assert vm.facts("tx_frames") == 0
    assert worker_threads(threading.get_native_id()) == []


def test_the_guest_answers_pings(vhost_vm: Vm) -> None:
    vhost_vm.serve()
    assert vhost_vm.facts("pairs_delegated") == 1

    ping(vhost_vm.namespace, GUEST, count=20, interval=0.05)

    assert "icmp=20" in vhost_vm.stop_serving()
    assert vhost_vm.facts("rx_frames") == 0


def open_receiver(vm: Vm) -> socket.socket:
    receiver = vm.socket()
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    receiver.bind((HOST, PORT))
    receiver.settimeout(PATIENCE)
    return receiver


def test_ten_thousand_numbered_frames_that_the_guest_sends_are_complete(vhost_vm: Vm) -> None:
    with open_receiver(vhost_vm) as receiver:
        vhost_vm.start(f"net.mode=send net.frames={FRAMES}")
        received = [receiver.recv(2048) for _ in range(FRAMES)]
        vhost_vm.finish()

    assert received == [datagram(number) for number in range(FRAMES)]
    assert vhost_vm.facts("tx_frames") == 0


def test_ten_thousand_numbered_frames_that_the_guest_receives_are_complete(vhost_vm: Vm) -> None:
    vhost_vm.start("net.mode=receive")
    vhost_vm.wait_for("# ready")
    with vhost_vm.socket() as sender:
        sender.connect((GUEST, PORT))
        used, behind = vhost_vm.used(RX), 0
        for number in range(FRAMES):
            # No more than the tap holds: it drops what it has no room for.
            while behind >= TAP_QUEUE // 2:
                time.sleep(0.001)
                before, used = used, vhost_vm.used(RX)
                behind -= (used - before) % 65536
            sender.send(datagram(number))
            behind += 1
        sender.send(SEQUENCE_END.to_bytes(8, "little"))
    text = vhost_vm.finish()

    assert f"# received {FRAMES} missing 0 repeated 0 corrupted 0" in text
    assert "# reordered 0" in text
    assert vhost_vm.tap.dropped() == 0
    assert vhost_vm.facts("rx_frames") == 0


class Echoes:
    """Numbered datagrams that a serving guest sends back: each is a frame both ways."""

    def __init__(self, vm: Vm) -> None:
        self.socket = vm.socket()
        self.socket.connect((GUEST, ECHO_PORT))
        self.sent = 0
        self.received: list[int] = []

    def turn(self, until: int) -> None:
        """Send and receive until that many are back, never more than WINDOW on their way."""
        while len(self.received) < until:
            while self.sent < until and self.sent - len(self.received) < WINDOW:
                self.socket.send(datagram(self.sent))
                self.sent += 1
            assert select.select([self.socket], [], [], PATIENCE)[0], f"lost after {self.received}"
            with contextlib.suppress(BlockingIOError):
                while True:
                    data = self.socket.recv(2048, socket.MSG_DONTWAIT)
                    self.received.append(int.from_bytes(data[:8], "little"))


# By night: once the nested VM stood still before the first frame, where others passed, and why is
# not known yet. test_delegation.py switches by day.
@pytest.mark.nightly
@pytest.mark.parametrize("features", ["0x0", "0x30008003"], ids=["plain", "all"])
def test_a_hundred_switches_in_a_flow_lose_repeat_and_reorder_nothing(
    namespace: Namespace, tmp_path: Path, features: str
) -> None:
    """20,000 frames with each set of features, from the other thread and over the socket."""
    control = tmp_path / "vm.sock"
    with make_vm(namespace, IoMode.IOEVENTFD) as vm, ControlServer(vm.machine, control):
        vm.start(f"net.mode=serve net.features={features}")
        vm.wait_for("# ready")
        echoes = Echoes(vm)
        done = threading.Event()
        switches: list[IoMode] = []

        def switch() -> None:
            for number in range(SWITCHES):
                goal = number * ECHOES // SWITCHES
                while len(echoes.received) < goal and not done.is_set():
                    done.wait(0.001)
                mode = IoMode.IOEVENTFD if number % 2 else IoMode.VHOST
                if number % 10 < 2:
                    ask(control, {"command": "mode", "device": "net0", "mode": mode.value})
                else:
                    vm.slot.change_mode(mode)
                switches.append(vm.slot.mode)

        with contextlib.closing(echoes.socket):
            switcher = threading.Thread(target=switch)
            switcher.start()
            try:
                echoes.turn(ECHOES)
            finally:
                done.set()
                switcher.join()
            echoes.turn(ECHOES + WINDOW)
        text = vm.stop_serving()

        assert switches == [IoMode.VHOST, IoMode.IOEVENTFD] * (SWITCHES // 2)
        assert vm.facts("delegations") == SWITCHES // 2
        assert echoes.received == list(range(ECHOES + WINDOW))
        assert "dropped=0" in text
        assert vm.tap.dropped() == 0
        counted = vm.slot.device.facts()
        # Both had their part of the frames.
        for name in ("rx_frames", "tx_frames"):
            frames = counted[name]
            assert isinstance(frames, int)
            assert ECHOES // 10 < frames < ECHOES


@contextlib.contextmanager
def make_driver(namespace: Namespace) -> Iterator[tuple[Machine, MmioDriver]]:
    """Start a device in vhost mode by a driver in this process: no guest, but the real vhost."""
    with (
        GuestMemory.allocate(4 << 20) as memory,
        contextlib.closing(KvmAccelerator(memory)) as accelerator,
        Machine(memory, accelerator, console=lambda data: None) as machine,
    ):
        slot = machine.add_device(
            Net(Tap(namespace.config(create=True)), mac=MAC), "net0", IoMode.VHOST
        )
        driver = MmioDriver(slot.transport, memory, Allocator(0x1000, memory.size))
        driver.start([], queue_size=16)
        machine.loop.start()
        yield machine, driver


def send(machine: Machine, driver: MmioDriver, address: int, length: int) -> None:
    """Make a chain of one descriptor available, wherever that is, and kick."""
    ring = driver.queues[TX]
    head = ring.place([Piece(0x1000, length)])
    ring.write_descriptor(head, address, length, 0, 0)
    ring.make_available(head)
    notifiers = machine.slots[0].transport.lifecycle.notifiers(TX)
    assert notifiers is not None
    os.eventfd_write(notifiers.kick, 1)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_ring_that_vhost_finds_broken_needs_a_reset_and_works_after_it(
    namespace: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    with make_driver(namespace) as (machine, driver):
        for _ in range(2):
            data = bytes(HEADER_SIZE) + frame(1)
            address = driver.allocator.take(len(data))
            driver.memory.write(address, data)
            send(machine, driver, address, len(data))
            wait_until(lambda: bool(driver.queues[TX].take_all_used()))
            assert not driver.status & DeviceStatus.DEVICE_NEEDS_RESET

            send(machine, driver, 1 << 40, 100)
            wait_until(lambda: bool(driver.status & DeviceStatus.DEVICE_NEEDS_RESET))
            assert "vhost finds transmitq1 broken: 100 bytes at guest physical" in caplog.text
            assert machine.slots[0].device.facts()["pairs_delegated"] == 0
            caplog.clear()

            driver.reset()
            driver.start([], queue_size=16)
            assert machine.slots[0].device.facts()["pairs_delegated"] == 1


def test_a_chain_shorter_than_its_header_does_no_harm_beyond_a_reset(namespace: Namespace) -> None:
    """Linux 6.1's vhost tries it again for ever: whatever this one does, a reset ends it."""
    with make_driver(namespace) as (machine, driver):
        address = driver.allocator.take(5)
        send(machine, driver, address, 5)
        driver.reset()
        driver.start([], queue_size=16)
        data = bytes(HEADER_SIZE) + frame(1)
        address = driver.allocator.take(len(data))
        driver.memory.write(address, data)
        send(machine, driver, address, len(data))
        wait_until(lambda: bool(driver.queues[TX].take_all_used()))


# A process of its own each, which costs some 10 seconds of imports.
@pytest.mark.nightly
def test_the_commands_of_the_docs_work(tmp_path: Path) -> None:
    """In a network namespace without a name, and with the command line as a user has it."""
    text = (REPOSITORY / "docs" / "vhost.md").read_text()
    commands = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    assert sum("virtiopy ctl" in command for command in commands) == 3
    tool = tmp_path / "virtiopy"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m virtiopy.cli.main "$@"\n')
    tool.chmod(0o755)
    script = "\n".join(["set -e", f"cd {tmp_path}", *commands])
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script],
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("3 packets transmitted, 3 received, 0% packet loss") == 3
    assert re.search(r"^vhost-\d+ +\d", done.stdout, re.MULTILINE)
    assert "net0: ioeventfd\nPING" in done.stdout
    assert "net0: vhost\nPING" in done.stdout
    assert "delegations: 2" in done.stdout
    assert re.search(r"net0 +│ mode +│ +vhost ", done.stdout)


def test_a_tap_without_headers_is_the_users_fault() -> None:
    with TapLink() as link, GuestMemory.allocate(1 << 20) as memory:
        fcntl.ioctl(link.tap, TUNSETVNETHDRSZ, struct.pack("i", 10))
        with pytest.raises(ConfigError, match="headers of 10 bytes, not 12"):
            VhostPair(memory, link.tap)

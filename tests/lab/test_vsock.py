"""Sockets between a guest and programs of the host's, by the real vhost-vsock of the kernel's."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.costs import costs_by_mode
from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.boot.elf import GuestImage
from virtiopy.boot.guests import guest_path
from virtiopy.cli.tapresults import parse_tap
from virtiopy.devices.vsock import Vsock
from virtiopy.exits.model import Costs
from virtiopy.memory import GuestMemory
from virtiopy.vhost.worker import worker_threads
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode

pytestmark = pytest.mark.lab

CID, ECHO, MESSAGES = 42, 7000, 7001
PACKETS = 100


@contextlib.contextmanager
def echo(port: int, kind: socket.SocketKind) -> Iterator[list[int]]:
    """Send back what guests send to a port of the host's; yields how many bytes of each came."""
    counts: list[int] = []

    def run() -> None:
        while True:
            program, _ = listener.accept()
            count = 0
            with program, contextlib.suppress(ConnectionError):
                while data := program.recv(1 << 20):
                    if data == b"stop":
                        return
                    count += len(data)
                    program.sendall(data)
            counts.append(count)

    with socket.socket(socket.AF_VSOCK, kind) as listener:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(64)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield counts
        finally:
            # Connected to itself: the kernel has no other way to end accept().
            with socket.socket(socket.AF_VSOCK, kind) as last:
                last.connect((1, port))
                last.sendall(b"stop")
                thread.join()


def test_the_guest_talks_to_programs_and_vhosts_thread_moves_the_packets() -> None:
    output = bytearray()
    threads: list[Path] = []
    with (
        echo(ECHO, socket.SOCK_STREAM) as streams,
        echo(MESSAGES, socket.SOCK_SEQPACKET) as messages,
        GuestMemory.allocate(32 << 20) as memory,
        contextlib.closing(KvmAccelerator(memory)) as accelerator,
        Machine(memory, accelerator, console=output.extend) as machine,
    ):
        device = Vsock(CID)
        slot = machine.add_device(device, "vsock0", IoMode.VHOST)
        threads += worker_threads(*(int(path.name) for path in Path("/proc/self/task").iterdir()))
        guest = GuestImage.open(guest_path("vsock"))
        machine.boot(guest, f"vsock.echo={ECHO} vsock.messages={MESSAGES} vsock.sound=1")
        result = machine.run(300)
        facts = device.facts()
        mode = slot.mode

    said = output.decode()
    assert result.status == 0, said
    tests = parse_tap(said).tests
    assert not [test for test in tests if test.outcome == "failed"], said
    assert mode is IoMode.VHOST
    assert threads, "no thread of vhost's"
    # The device itself has seen none of it.
    assert (facts["opened"], facts["received"], facts["sent"]) == (0, 0, 0)
    # The kernel offers SEQPACKET alone of the device's features.
    runs = 3
    assert sum(streams) == runs * (8 * 1000 + sum(range(8)) + 250)
    assert len(messages) == runs - 1


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[IoMode, Costs]:
    """What a packet cost in each mode, with exits for registers; none is missing in the lab."""
    path = tmp_path_factory.mktemp("vsock") / "vm.sock"
    return costs_by_mode("vsock", f"cid={CID},path={path}", PACKETS)


def test_a_packet_costs_one_queue_notify_exit_in_trapped_mode_and_none_in_the_others(
    costs: dict[IoMode, Costs],
) -> None:
    exits = {mode: one.each(one.of("QueueNotify")) for mode, one in costs.items()}
    assert exits == {IoMode.TRAPPED: 1, IoMode.IOEVENTFD: 0, IoMode.VHOST: 0}


def test_vhosts_thread_does_the_work_in_vhost_mode(costs: dict[IoMode, Costs]) -> None:
    for mode, one in costs.items():
        assert (one.cpu_seconds["vhost"] > 0) == (mode is IoMode.VHOST)

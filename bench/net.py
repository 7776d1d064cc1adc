"""Frames a second through a tap, each way: virtiopy and QEMU's microvm, with the same guest driver.

The guest's ring 0 may be the slower part (docs/net.md): the last line is what the device can do
without a CPU to wait for. Then, where DPDK is installed, `virtiopy serve net` beside DPDK's vhost:
DPDK's driver sends as fast as it can to either, and each has a tap behind it. At the end the device
alone once more, beside a bare C loop on the same tap, by CPU time (bench.turns). Example:
python -m bench.net --frames 5000
"""

import argparse
import itertools
import json
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.common import MICROVM, QEMU, VIRTIOPY, by_turns, give_up, require, tell, write_json
from bench.turns import frames
from bench.vhost_user import DEVICE_CPU
from tests.guest.dpdk import TESTPMD, Testpmd
from tests.guest.vhost_user import Backend
from tests.namespace import Namespace
from tests.patience import PATIENCE as DPDK_PATIENCE
from virtiopy.boot.guests import guest_path
from virtiopy.devices.net import Net
from virtiopy.host.tap import Tap
from virtiopy.memory import GuestMemory
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.virtqueue.driver import Allocator, Piece

HOST, GUEST, PORT = "192.0.2.1", "192.0.2.2", 5001
MAC = "02:00:00:00:00:02"
SEQUENCE_END = (1 << 64) - 1
PATTERN_STEP = 0x9E3779B97F4A7C15
PAYLOAD = 64

#: What DPDK's driver sends through, and for how long, seconds.
DPDK_TAP, DPDK_SECONDS = "t0", 3.0


def datagram(number: int) -> bytes:
    """Make what net.mode=receive expects (guest_drivers/net/stream.c)."""
    word = struct.pack("<Q", number * PATTERN_STEP & SEQUENCE_END)
    return struct.pack("<Q", number) + word * (PAYLOAD // 8 - 1)


class Bench:
    """A tap in a namespace, with room in its queue for all frames of a run."""

    def __init__(self, namespace: Namespace, frames: int) -> None:
        self.namespace = namespace
        self.frames = frames
        namespace.ip("tuntap", "add", "t0", "mode", "tap")
        namespace.ip("link", "set", "t0", "up", "txqueuelen", str(2 * frames))
        namespace.ip("addr", "add", f"{HOST}/24", "dev", "t0")
        namespace.ip("neigh", "replace", GUEST, "lladdr", MAC, "dev", "t0")

    def ioeventfd(self, append: str) -> list[str]:
        """Return the command line of a run with the rings worked by the event loop."""
        return self._virtiopy("ioeventfd", append)

    def native(self, append: str) -> list[str]:
        """Return the command line of a run with the rings worked by a thread in C."""
        return self._virtiopy("native", append)

    def trapped(self, append: str) -> list[str]:
        """Return the command line of a run with the rings worked by the CPU's thread."""
        return self._virtiopy("trapped", append)

    def _virtiopy(self, mode: str, append: str) -> list[str]:
        net = f"tap=t0,netns={self.namespace.name},mac={MAC},mode={mode}"
        command = [sys.executable, "-m", "virtiopy", "run", "--guest", "net"]
        return [*command, "--net", net, "--append", append]

    def qemu(self, append: str) -> list[str]:
        """Return the command line of the same run in QEMU."""
        return [
            *("nsenter", f"--net=/run/netns/{self.namespace.name}", QEMU, *MICROVM),
            *("-kernel", str(guest_path("net")), "-append", append),
            *("-netdev", "tap,id=n,ifname=t0,script=no,downscript=no"),
            *("-device", f"virtio-net-device,netdev=n,mac={MAC}"),
        ]

    def run(self, command: list[str], last: str, work: Callable[[], None]) -> float:
        """Return the frames a second from `# ready` to the line that begins with `last`."""
        seconds = None
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("# ready"):
                    start = time.perf_counter()
                    work()
                elif line.startswith(last):
                    seconds = time.perf_counter() - start
                    done = int(line.removeprefix(last).split()[0])
        if seconds is None or done != self.frames:
            give_up(f"{command[0]} did not move {self.frames} frames")
        return self.frames / seconds

    def send(self, command: Callable[[str], list[str]]) -> float:
        """Measure guest to host."""
        append = f"net.mode=send net.frames={self.frames} net.size={PAYLOAD}"
        return self.run(command(append), "# sent ", lambda: None)

    def receive(self, command: Callable[[str], list[str]]) -> float:
        """Measure host to guest; the frames are in the tap's queue at once."""

        def flood() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.connect((GUEST, PORT))
                for number in range(self.frames):
                    sender.send(datagram(number))
                sender.send(SEQUENCE_END.to_bytes(8, "little"))

        def work() -> None:
            self.namespace.inside(flood)

        return self.run(command("net.mode=receive"), "# received ", work)

    def device_alone(self, direction: str) -> float:
        """Measure kicks of 64 frames, without a guest: the device and the tap."""
        device = Net(Tap(self.namespace.config()), mac=bytes.fromhex(MAC.replace(":", "")))
        with GuestMemory.allocate(4 << 20) as memory:
            transport = MmioTransport(device, memory, LevelInterrupt(lambda level: None))
            device.attach(transport.lifecycle)
            driver = MmioDriver(transport, memory, Allocator(0x10000, 4 << 20))
            driver.start([])
            work = self._device_sends if direction == "send" else self._device_receives
            try:
                return work(device, driver)
            finally:
                device.reset()
                device.close()

    def _device_sends(self, device: Net, driver: MmioDriver) -> float:
        size = 12 + 14 + 28 + PAYLOAD
        pieces = [Piece(driver.allocator.take(size), size)]
        seconds = 0.0
        for _ in range(self.frames // 64):
            for _ in range(64):
                driver.queues[1].add(pieces)
            start = time.perf_counter()
            driver.kick(1)
            seconds += time.perf_counter() - start
            assert len(driver.queues[1].take_all_used()) == 64
        assert device.counts.tx_frames == self.frames // 64 * 64, device.counts
        return self.frames // 64 * 64 / seconds

    def _device_receives(self, device: Net, driver: MmioDriver) -> float:
        pieces = [Piece(driver.allocator.take(2048), 2048, writable=True)]

        def fill() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for number in range(self.frames):
                    sender.sendto(datagram(number), (GUEST, PORT))

        seconds, frames, more = 0.0, 0, 0
        while frames < self.frames:
            if not more:
                # A tap that was just opened may drop frames until the kernel saw that it is up.
                self.namespace.inside(fill)
            for _ in range(64):
                if driver.queues[0].free:
                    driver.queues[0].add(pieces)
            start = time.perf_counter()
            driver.kick(0)
            seconds += time.perf_counter() - start
            more = len(driver.queues[0].take_all_used())
            frames += more
        assert device.counts.rx_frames == frames, device.counts
        return frames / seconds


class DpdkBench:
    """DPDK's driver, on a device of virtiopy's or of DPDK's; what comes out of the tap counts."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        self._namespace = namespace
        self._folder = folder
        self._runs = itertools.count()

    def virtiopy(self, mode: str) -> float:
        """Return the frames a second through `virtiopy serve net`."""
        path = self._new_socket()
        options = f"tap={DPDK_TAP},create=on,netns={self._namespace.name},mode={mode}"
        # On the CPU that DPDK's backend has: its driver does not leave the other one.
        command = [*DEVICE_CPU, str(VIRTIOPY), "serve", "net", options, "--socket", str(path)]
        with Backend(command, path):
            return self._rate(path)

    def dpdk(self) -> float:
        """Return the frames a second through DPDK's vhost, which forwards them to its tap."""
        path = self._new_socket()
        devices = [f"net_vhost0,iface={path}", f"net_tap0,iface={DPDK_TAP}"]
        log = path.with_name(f"{path.stem}-backend.log")
        with Testpmd(log, devices, "io", self._namespace, cpu=0) as backend:
            backend.wait_for("io packet forwarding - ports=2")
            self._namespace.ip("link", "set", DPDK_TAP, "up")
            return self._rate(path)

    def _new_socket(self) -> Path:
        return self._folder / f"{next(self._runs)}.sock"

    def _rate(self, path: Path) -> float:
        driver = [f"net_virtio_user0,path={path}"]
        with Testpmd(path.with_name(f"{path.stem}-driver.log"), driver, "txonly") as sender:
            sender.wait_for("txonly packet forwarding - ports=1")
            deadline = time.monotonic() + DPDK_PATIENCE
            while not self._count():
                if time.monotonic() > deadline:
                    give_up(f"no frame comes out of the tap: {sender.output}")
            begin, start = self._count(), time.perf_counter()
            time.sleep(DPDK_SECONDS)
            return (self._count() - begin) / (time.perf_counter() - start)

    def _count(self) -> int:
        shown = json.loads(self._namespace.ip("-j", "-s", "link", "show", DPDK_TAP))
        return int(shown[0]["stats64"]["rx"]["packets"])


def beside_dpdk(rounds: int) -> dict[str, list[float]]:
    """Measure `virtiopy serve net` and DPDK's vhost by turns."""
    peer = "DPDK's driver sends, DPDK"
    with Namespace() as namespace, tempfile.TemporaryDirectory() as folder:
        bench = DpdkBench(namespace, Path(folder))
        contestants: dict[str, Callable[[], float]] = {
            "DPDK's driver sends, native": partial(bench.virtiopy, "native"),
            "DPDK's driver sends, ioeventfd": partial(bench.virtiopy, "ioeventfd"),
            peer: bench.dpdk,
        }
        figures = by_turns(contestants, rounds)
    tell(figures, "thousand frames a second", 1e-3, peer=peer)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=5000, help="in each direction of each run")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    require(QEMU, "qemu-system-x86")
    results: dict[str, list[float]] = {}
    with Namespace() as namespace:
        bench = Bench(namespace, arguments.frames)
        for direction, measure in (("send", bench.send), ("receive", bench.receive)):
            peer = f"guest {direction}s, QEMU microvm"
            contestants: dict[str, Callable[[], float]] = {
                f"guest {direction}s, native": partial(measure, bench.native),
                f"guest {direction}s, ioeventfd": partial(measure, bench.ioeventfd),
                f"guest {direction}s, trapped": partial(measure, bench.trapped),
                peer: partial(measure, bench.qemu),
                f"device alone {direction}s": partial(bench.device_alone, direction),
            }
            figures = by_turns(contestants, arguments.rounds)
            tell(figures, "frames a second", 1, peer=peer)
            results |= figures
    if shutil.which(TESTPMD) is None:
        print(f"{TESTPMD} is missing (dpdk-dev): DPDK is not measured", file=sys.stderr)
    else:
        results |= beside_dpdk(arguments.rounds)
    print("\nThe device alone, ns of CPU time a frame: a bare C loop, and the native worker")
    with tempfile.TemporaryDirectory() as folder:
        frames(Path(folder), 400_000)
    write_json(arguments.json, results, "frames a second")


if __name__ == "__main__":
    main()

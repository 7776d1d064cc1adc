"""What --check-driver and --trace cost: requests a second with and without, by turns.

4 KiB reads of a disk in the page cache: in a VM, one at a time, each kick an exit; and over
vhost-user, whose client is C. The exits of the VM have to be the same each time, or it gives up.
Example: python -m bench.check_driver --rounds 5
"""

import argparse
import contextlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.common import VIRTIOPY, by_turns, give_up, require, tell, write_json
from bench.vhost_user import QUEUE_SIZE, Bench
from tests.guest.vhost_user import Backend
from virtiopy.accel import select
from virtiopy.boot.elf import GuestImage
from virtiopy.boot.guests import guest_path
from virtiopy.check.watch import DriverCheck
from virtiopy.devices.blk import Blk
from virtiopy.host.disk import DiskImage
from virtiopy.memory import GuestMemory
from virtiopy.metrics.exitlog import ExitKind
from virtiopy.trace.events import LiveTrace
from virtiopy.trace.sinks import TextSink
from virtiopy.trace.watch import DeviceTrace
from virtiopy.transport.placement import Transport
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode, WatchTransport

#: What is put before the device.
PLAIN, JUDGED, TRACED = "without", "--check-driver", "--trace"


def judged(name: str, transport: Transport, trapped: bool) -> Transport:
    return DriverCheck().watch_registers(name, transport, sees_reads=True, sees_kicks=trapped)


def traced(name: str, transport: Transport, trapped: bool) -> Transport:
    trace = DeviceTrace(LiveTrace(TextSink(lambda data: None)), name)
    return trace.watch_registers(transport, sees_acknowledgements=True)


@dataclass(slots=True)
class Vm:
    """A guest that reads blocks of a disk, one at a time, on an accelerator."""

    accel: str
    image: Path
    requests: int
    exits: dict[str, Counter[ExitKind]] = field(default_factory=dict)

    def measure(self, name: str, watch: WatchTransport | None) -> float:
        """Return the requests a second of one run, and keep its exits."""
        with contextlib.ExitStack() as stack:
            memory = stack.enter_context(GuestMemory.allocate(64 << 20))
            accelerator = select(self.accel, memory)
            stack.callback(accelerator.close)
            machine = stack.enter_context(
                Machine(memory, accelerator, console=lambda data: None, exit_free=False)
            )
            device = Blk(DiskImage(self.image, readonly=True))
            machine.add_device(device, "blk0", IoMode.TRAPPED, watch=watch)
            arguments = f"blk.requests={self.requests} blk.depth=1"
            machine.boot(GuestImage.open(guest_path("blk")), arguments)
            result = machine.run(300)
            if result.status != 0:
                give_up(f"the guest ended with status {result.status}")
            # The first is what marks cost.
            _, measured = result.measurements
        self._keep(name, measured.exits)
        return self.requests / measured.seconds

    def _keep(self, name: str, exits: Counter[ExitKind]) -> None:
        for other, counted in self.exits.items():
            if counted != exits:
                give_up(f"the exits {name} are not those {other}: {exits} and {counted}")
        self.exits[name] = exits


def serve(options: Sequence[str], mode: str, image: Path, path: Path) -> Backend:
    device = f"{image},queue-size={QUEUE_SIZE},mode={mode}"
    command = [str(VIRTIOPY), "serve", "blk", device, "--socket", str(path), *options]
    return Backend(command, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=5000, help="of a VM's run")
    parser.add_argument("--accel", default="tcg", choices=["tcg", "kvm"])
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    require("gcc", "gcc")
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), 64)
        vm = Vm(arguments.accel, Path(folder) / "disk.img", arguments.requests)
        what = f"in a VM ({arguments.accel}), trapped"
        watches: dict[str, WatchTransport | None] = {PLAIN: None, JUDGED: judged, TRACED: traced}
        print(f"\n4 KiB random reads, {what}")
        figures = by_turns(
            {name: partial(vm.measure, name, watch) for name, watch in watches.items()},
            arguments.rounds,
        )
        tell(figures, "IOPS", 1, peer=PLAIN)
        [exits, *_] = vm.exits.values()
        print(f"exits of each run: {exits.total()}, by kind the same")
        results |= {f"{name}, {what}": values for name, values in figures.items()}
        for depth in (1, 32):
            served: dict[str, tuple[Sequence[str], str]] = {
                PLAIN: ((), "ioeventfd"),
                JUDGED: (("--check-driver",), "ioeventfd"),
                TRACED: (("--trace=/dev/null",), "ioeventfd"),
                "without, mode=native": ((), "native"),
            }
            results |= bench.compare_reads(
                "over vhost-user, ",
                {name: partial(serve, *how) for name, how in served.items()},
                depth,
                arguments.rounds,
                PLAIN,
            )
    write_json(arguments.json, results, "IOPS")


if __name__ == "__main__":
    main()

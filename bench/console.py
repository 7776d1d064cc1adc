"""Console bytes a second each way, through a Unix socket, and QEMU's microvm with the same guest.

Out is the guest that writes numbered lines; both is the guest that echoes. The guest's boot is not
in the time.

Example: python -m bench.console --rounds 5
"""

import argparse
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.common import MICROVM, QEMU, VIRTIOPY, by_turns, give_up, require, tell, write_json
from virtiopy.boot.guests import guest_path

SECONDS = 100.0

Command = Callable[[Path, str], list[str]]


def in_virtiopy(mode: str, path: Path, append: str) -> list[str]:
    console = f"socket:{path},wait=on,mode={mode}"
    return [str(VIRTIOPY), "run", "--guest", "console", "--console", console, "--append", append]


def in_qemu(path: Path, append: str) -> list[str]:
    return [
        *(QEMU, *MICROVM, "-kernel", str(guest_path("console")), "-append", append),
        *("-chardev", f"socket,id=c,path={path},server=on,wait=on"),
        *("-device", "virtio-serial-device", "-device", "virtconsole,chardev=c"),
    ]


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(SECONDS)
    end = time.monotonic() + SECONDS
    while client.connect_ex(str(path)):
        if time.monotonic() > end:
            give_up(f"nobody listens at {path}")
        time.sleep(0.005)
    return client


def receive(client: socket.socket, count: int) -> None:
    while count:
        piece = client.recv(min(count, 1 << 16))
        if not piece:
            give_up(f"the guest ended {count} bytes too early")
        count -= len(piece)


@contextmanager
def guest(command: Command, append: str) -> Iterator[socket.socket]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "console")
        with subprocess.Popen(
            command(path, append),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                with connect(path) as client:
                    yield client
                process.communicate(timeout=SECONDS)
            finally:
                process.kill()


def measure_out(command: Command, kib: int) -> float:
    """Return the bytes a second that come out of the guest."""
    with guest(command, f"console.mode=flood console.kib={kib}") as client:
        receive(client, 1024)
        start = time.perf_counter()
        receive(client, (kib - 1) * 1024)
        return (kib - 1) * 1024 / (time.perf_counter() - start)


def measure_both(command: Command, kib: int) -> float:
    """Return the bytes a second that go in and come out again."""
    data = b"x" * (kib * 1024)
    with guest(command, "console.mode=echo") as client:
        while client.recv(1) != b"\n":
            pass
        start = time.perf_counter()
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        receive(client, len(data))
        seconds = time.perf_counter() - start
        sender.join()
        client.sendall(b"\nquit\n")
        receive(client, 6)
    return len(data) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kib", type=int, default=1024, help="how much each way in a round")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    require(QEMU, "qemu-system-x86")
    commands: dict[str, Command] = {
        "virtiopy, ioeventfd": partial(in_virtiopy, "ioeventfd"),
        "virtiopy, trapped": partial(in_virtiopy, "trapped"),
        "QEMU microvm": in_qemu,
    }
    every: dict[str, list[float]] = {}
    for way, measure in (("out", measure_out), ("both", measure_both)):
        results = by_turns(
            {
                f"{name}: {way}": partial(measure, command, arguments.kib)
                for name, command in commands.items()
            },
            arguments.rounds,
        )
        tell(results, "MB a second", 1e-6, peer=f"QEMU microvm: {way}")
        every |= results
    write_json(arguments.json, every, "bytes a second")


if __name__ == "__main__":
    main()

"""Linux in a VM of ours, given commands by a test: on the software CPU, so it needs no KVM."""

import base64
import contextlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.patience import PATIENCE
from virtiopy.accel import select
from virtiopy.boot.kernel import open_kernel
from virtiopy.boot.parameters import Initrd
from virtiopy.cache import cache_folder
from virtiopy.cli.kernelrun import DEFAULT_WORDS, SerialOutput
from virtiopy.cli.linux import WORDS
from virtiopy.closing import Closing
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.streams import Size, StreamUser
from virtiopy.eventloop import EventLoop
from virtiopy.linux import initramfs
from virtiopy.linux.kernels import LinuxKernel, find_kernel
from virtiopy.linux.unpacked import unpacked
from virtiopy.memory import GuestMemory
from virtiopy.virtqueue.buffers import Buffers, total
from virtiopy.vm.machine import Machine, RunResult
from virtiopy.vm.pc import Pc
from virtiopy.vm.slots import IoMode, Slot

#: Reads commands, a line each in base64, and says after each what its status was.
AGENT = (
    "stty -icanon -echo -onlcr; echo READY; while read -r line; do "
    'echo "$line" | base64 -d >/tmp/command; sh /tmp/command </dev/null 2>&1; echo "=STATUS=$?="; '
    "done"
)
_STATUS = re.compile(rb"=STATUS=(\d+)=\n")

#: Seconds that a boot may take, and a command, on a machine that has other things to do.
BOOT_SECONDS = COMMAND_SECONDS = PATIENCE

#: Modules for all devices.
MODULES = (
    *("virtio_blk", "ext4", "crc32c_generic", "virtio_net", "af_packet", "virtio_console"),
    *("virtio_balloon", "virtio_rng", "virtio_scsi", "sd_mod", "sr_mod", "isofs", "sg"),
    "vmw_vsock_virtio_transport",
)


class Typist:
    """The host's side of a port, for a test: what it types, and what it reads."""

    connected = True

    def __init__(self, size: Size | None = None) -> None:
        self.size = size
        self.output = bytearray()
        self.written = threading.Condition()
        self._typed = bytearray()
        self._loop: EventLoop | None = None
        self._user: StreamUser | None = None

    # What a test does

    def type(self, data: bytes) -> None:
        """Have the guest read `data`."""
        self._call(lambda: self._typed.extend(data), lambda user: user.input_ready())

    def resize(self, size: Size) -> None:
        """Make the terminal another size."""

        def set_size() -> None:
            self.size = size

        self._call(set_size, lambda user: user.size_changed())

    def _call(self, change: Callable[[], None], tell: Callable[[StreamUser], None]) -> None:
        assert self._loop is not None
        user = self._user
        assert user is not None

        def run() -> None:
            with user.lock:
                change()
                tell(user)

        self._loop.call_soon(run, "a test's typing")

    def wait_for(self, pattern: bytes, seconds: float = COMMAND_SECONDS) -> re.Match[bytes]:
        """Wait for output like this; what is up to its end is forgotten."""
        compiled = re.compile(pattern)

        def found() -> re.Match[bytes] | None:
            return compiled.search(bytes(self.output))

        with self.written:
            match = self.written.wait_for(found, seconds)
            assert match, f"no {pattern!r} in {bytes(self.output[-2000:])!r}"
            del self.output[: match.end()]
        return match

    # Stream

    def open(self, loop: EventLoop, user: StreamUser) -> None:
        self._loop, self._user = loop, user

    def read(self, count: int) -> bytes:
        data = bytes(self._typed[:count])
        del self._typed[:count]
        return data

    def write(self, buffers: Buffers) -> int:
        with self.written:
            for buffer in buffers:
                self.output += buffer
            self.written.notify_all()
        return total(buffers)

    def watch_input(self, on: bool) -> None:
        if on and self._typed:
            assert self._loop is not None
            self._loop.call_soon(self._offer, "a test's typing")

    def _offer(self) -> None:
        if self._user is not None and self._typed:
            with self._user.lock:
                self._user.input_ready()

    def watch_room(self, on: bool) -> None:
        pass

    def close(self) -> None:
        self._user = None


class Linux(Closing):
    """A booted Linux with devices, each given by its name; it runs until it is closed.

    Each is in `mode`, or in its own of `modes`. The kernel is told `words` besides.
    """

    def __init__(
        self,
        devices: dict[str, VirtioDevice],
        *,
        accel: str = "tcg",
        cpus: int = 1,
        memory: int = 256 << 20,
        mode: IoMode = IoMode.IOEVENTFD,
        modes: Mapping[str, IoMode] | None = None,
        modules: Sequence[str] = MODULES,
        programs: Sequence[Path] = (),
        image: Path | None = None,
        kernel: LinuxKernel | None = None,
        words: str = "",
    ) -> None:
        kernel = kernel or find_kernel(cache_folder())
        contents = initramfs.Contents(kernel, tuple(modules), tuple(programs))
        # The agent's input is the serial port, without a line discipline of its own.
        task = initramfs.Task([AGENT])
        initrd = Initrd(Path("initramfs"), initramfs.build(contents, task, cache_folder()))
        self.output = SerialOutput(shown=False)
        self.typist = Typist()
        self.result: RunResult | None = None
        self.failure: BaseException | None = None
        with contextlib.ExitStack() as stack:
            self.memory = stack.enter_context(GuestMemory.allocate(memory))
            accelerator = select(accel, self.memory)
            stack.callback(accelerator.close)
            self.machine = stack.enter_context(
                Machine(
                    self.memory,
                    accelerator,
                    console=lambda data: None,
                    cpus=cpus,
                    ignore_unassigned=True,
                )
            )
            for name, device in devices.items():
                self.machine.add_device(device, name, (modes or {}).get(name, mode))
            self.pc = stack.enter_context(Pc(self.machine, self.output.write, self.typist))
            path = image or unpacked(kernel.image, cache_folder())
            self.pc.boot(open_kernel(path), f"{DEFAULT_WORDS} {WORDS} {words}", initrd)
            self._thread = threading.Thread(target=self._run, name="machine")
            self._thread.start()
            stack.callback(self._stop)
            self.typist.wait_for(rb"READY\n", BOOT_SECONDS)
            self._release = stack.pop_all()

    def _run(self) -> None:
        try:
            self.result = self.machine.run()
        except BaseException as error:  # noqa: BLE001 - raised where the test closes the machine
            self.failure = error

    def _stop(self) -> None:
        self.machine.end(0)
        self._thread.join()

    def close(self) -> None:
        """End the guest; raises what its CPU or its devices raised."""
        self._release.close()
        if self.failure is not None:
            raise self.failure

    def slot(self, name: str) -> Slot:
        return next(slot for slot in self.machine.slots if slot.name == name)

    def sh(self, script: str, *, check: bool = True, seconds: float = COMMAND_SECONDS) -> str:
        """Run a script in the guest's shell; returns its output, and asserts that it succeeds."""
        self.start(script)
        return self.finish(check=check, seconds=seconds)

    def start(self, script: str) -> None:
        """Begin a script, whose end `finish` waits for."""
        self.typist.type(base64.b64encode(script.encode()) + b"\n")

    def finish(self, *, check: bool = True, seconds: float = COMMAND_SECONDS) -> str:
        """Wait for the end of a script that was begun."""
        typist = self.typist
        with typist.written:
            ended = typist.written.wait_for(lambda: _STATUS.search(bytes(typist.output)), seconds)
            assert ended, f"not done: {bytes(typist.output[-2000:])!r}"
            text = typist.output[: ended.start()].decode(errors="replace")
            del typist.output[: ended.end()]
        assert not check or ended[1] == b"0", f"status {ended[1].decode()}: {text}"
        return text.strip()

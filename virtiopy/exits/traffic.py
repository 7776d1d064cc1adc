"""Frames for a guest to receive: as many as it takes, never many more than its tap can hold."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from virtiopy.closing import Closing
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.entry import Options
from virtiopy.devices.net.control import MAC_SIZE
from virtiopy.errors import ConfigError, HostError
from virtiopy.host.tap import NAMESPACES

#: Local Experimental Ethertype 1 (IEEE 802): no other station on the link speaks it.
ETHERTYPE = 0x88B5

_SENDER = bytes.fromhex("0200000088b5")
_FRAME_SIZE = 60

#: Frames in the tap's queue: filled up to MOST when fewer than LEAST are left. A tap holds 500 at
#: least, unless it is told otherwise.
_LEAST, _MOST = 128, 256

#: Seconds between two looks.
_PAUSE = 0.001


def frames_for(
    options: Options,
) -> Callable[[VirtioDevice], contextlib.AbstractContextManager[object]]:
    """Return what makes a FrameSource for the network device on the tap that the options name."""

    def make(device: VirtioDevice) -> FrameSource:
        # 5.1.4: the configuration space begins with the address.
        mac = device.config_space()[:MAC_SIZE]
        return FrameSource(options.text("tap", ""), mac, options.text("netns", "") or None)

    return make


class FrameSource(Closing):
    """Sends to tap `name`, from the host's side, frames for the guest at `mac`; until closed.

    `netns` names its network namespace. Raises ConfigError where that takes rights that are not
    there, or the tap is not.
    """

    def __init__(self, name: str, mac: bytes, netns: str | None) -> None:
        self._name = name
        self._frame = (mac + _SENDER + ETHERTYPE.to_bytes(2, "big")).ljust(_FRAME_SIZE, b"\0")
        self._netns = netns
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="frame source")
        self._thread.start()
        self._ready.wait()
        if isinstance(self._failure, PermissionError):
            self._thread.join()
            raise ConfigError(
                "Frames for the guest to receive are sent by a packet socket, which takes root "
                "(CAP_NET_RAW): run as root, or measure --direction send."
            ) from self._failure

    def close(self) -> None:
        """Send no more; raises HostError if sending failed before."""
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise HostError(
                f"No frames can be sent to the tap {self._name} ({self._failure.strerror}): "
                "see that it is up, and stays."
            )

    def _run(self) -> None:
        try:
            if self._netns is not None:
                self._enter(self._netns)
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
                sender.bind((self._name, 0))
                # A thread's own namespace is what its own /proc shows.
                self._send(sender, Path("/proc/thread-self/net/dev"))
        except OSError as error:
            self._failure = error
        finally:
            self._ready.set()

    @staticmethod
    def _enter(netns: str) -> None:
        # Slow to import: only when it is needed.
        from pyroute2.netns import setns  # noqa: PLC0415

        with (NAMESPACES / netns).open() as stream:
            setns(stream.fileno())

    def _send(self, sender: socket.socket, counters: Path) -> None:
        before = self._gone(counters)
        sent = 0
        self._ready.set()
        while not self._stop.wait(_PAUSE):
            waiting = sent - (self._gone(counters) - before)
            if waiting < _LEAST:
                for _ in range(_MOST - waiting):
                    sender.send(self._frame)
                    sent += 1

    def _gone(self, counters: Path) -> int:
        """Count the frames that left the tap's queue: to the device, or dropped."""
        found = re.search(rf"^\s*{re.escape(self._name)}:(.*)$", counters.read_text(), re.MULTILINE)
        if found is None:
            raise OSError(0, "it is gone")
        # Documentation/filesystems/proc.rst: eight fields of what was received, then what was sent.
        fields = found[1].split()
        return int(fields[9]) + int(fields[11])

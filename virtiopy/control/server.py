"""Commands to a running machine, over a Unix socket: a JSON object a line, an answer a line.

    {"command": "balloon", "device": "balloon0", "target": "64M"}
    {"device": "balloon0", "target": 67108864}

What goes wrong is answered by {"error": "a sentence"}. A new command is a function, and its
entry in COMMANDS; what one device can do is among its `commands` (devices/base.py).
"""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from virtiopy.closing import Closing
from virtiopy.control.client import Answer, Json
from virtiopy.devices.base import DeviceCommand, VirtioDevice
from virtiopy.devices.entry import DeviceEntry
from virtiopy.devices.registry import device_commands, entries
from virtiopy.errors import ConfigError, VirtiopyError
from virtiopy.eventloop import READABLE, WRITABLE, EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.sizes import SIZE_MAX, parse_size
from virtiopy.sockets import SocketFile, bind_listener
from virtiopy.spec import DeviceStatus

log = logging.getLogger(__name__)

#: The most bytes of a request.
LINE_MAX = 16384

#: Bytes that are taken from a client at a time, so that a flood of requests leaves the loop room.
READ_SIZE = 4096

#: Clients at a time; the next takes the place of the one that was idle the longest.
CLIENTS_MAX = 16

#: The most open files of a request.
FILES_MAX = 2

#: Seconds after which a client that asks nothing, or takes no answer, is idle.
IDLE = 0.25

#: Seconds until a client is accepted again after the host had no file descriptor for one.
ACCEPT_PAUSE = 1.0


class ControlledDevice(Protocol):
    """A device that commands can be given to: one of a VM's, or one that is served."""

    @property
    def name(self) -> str:
        """Its name, as scsi0."""

    @property
    def device(self) -> VirtioDevice:
        """The device."""

    @property
    def mode(self) -> str:
        """Who works its rings."""

    @property
    def status(self) -> int:
        """The bits of the device status field."""

    def change_mode(self, mode: str) -> None:
        """Have its rings worked in another mode; raises ConfigError or HostError."""


class Controlled(Protocol):
    """What a control socket gives commands to, on its loop: a VM, or a device that is served."""

    @property
    def loop(self) -> EventLoop:
        """The loop, on whose thread commands run."""

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory."""

    @property
    def slots(self) -> Sequence[ControlledDevice]:
        """The devices."""


@dataclass(slots=True, frozen=True)
class Arguments:
    """What a request says besides its command; raises ConfigError for what it should not."""

    values: Mapping[str, Json]
    #: Open files that came with it.
    passed: Sequence[int] = ()

    def files(self) -> Sequence[int]:
        """Return the files that came with it, which are closed when the command is done."""
        return self.passed

    def text(self, key: str) -> str | None:
        """Return a string, or None where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{key} is {json.dumps(value)}: give a string.")
        return value

    def size(self, key: str) -> int:
        """Return a size in bytes, which is a number or written as 64M."""
        value = self.values.get(key)
        if isinstance(value, str):
            return parse_size(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f'{key} is {json.dumps(value)}: give a size, as in "64M".')
        if abs(value) > SIZE_MAX:
            # Python writes no number of more than 4300 digits.
            raise ConfigError(f'{key} is larger than any size: give one, as in "64M".')
        return value


@dataclass(slots=True, frozen=True)
class Command:
    """A command: what does it, on the loop's thread, and the keys that it may be given."""

    run: Callable[[Controlled, Arguments], Answer]
    keys: tuple[str, ...] = ()


# The commands


def status(machine: Controlled, arguments: Arguments) -> Answer:
    """Tell how the memory and every device fares."""
    memory = {"size": machine.memory.size, "allocated": machine.memory.allocated}
    return {"memory": memory, "devices": {slot.name: _describe(slot) for slot in machine.slots}}


def _describe(slot: ControlledDevice) -> Answer:
    with slot.device.lock:
        set_bits = DeviceStatus(slot.status)
        return {
            "type": slot.device.device_id.name,
            "mode": str(slot.mode),
            "status": [bit.name for bit in DeviceStatus if bit in set_bits],
            **slot.device.facts(),
        }


def mode(machine: Controlled, arguments: Arguments) -> Answer:
    """Have a device worked in another mode: see `Slot.change_mode`."""
    wanted = arguments.text("mode")
    if wanted is None:
        raise ConfigError('The request has no mode: write "mode": "vhost" or "mode": "ioeventfd".')
    # Any that another worker can have, where the mode is none of another worker's.
    can = [entry for entry in entries() if wanted in entry.device_class.workers] or [
        entry for entry in entries() if entry.device_class.workers
    ]
    kinds = {entry.device_id for entry in can}
    slot = _choose(
        {slot.name: slot for slot in machine.slots if slot.device.device_id in kinds},
        arguments.text("device"),
        can,
    )
    slot.change_mode(wanted)
    return {"device": slot.name, "mode": str(slot.mode)}


def _choose(
    found: Mapping[str, ControlledDevice], name: str | None, entries: Sequence[DeviceEntry]
) -> ControlledDevice:
    """Return the slot of this name, which need not be given where there is one of `entries`."""
    kind = " or ".join(entry.kind for entry in entries)
    if not found:
        options = " or ".join(entry.option.name for entry in entries)
        raise ConfigError(f"The machine has no {kind}: start it with {options}.")
    if name is None and len(found) == 1:
        (name,) = found
    there = f"give the device as one of {', '.join(found)}."
    if name is None:
        raise ConfigError(f"The machine has several {kind}s: {there}")
    if name not in found:
        raise ConfigError(f"The machine has no {kind} {name!r}: {there}")
    return found[name]


COMMANDS: Mapping[str, Command] = {
    "mode": Command(mode, ("device", "mode")),
    "status": Command(status),
}


def _of_a_device(name: str, command: DeviceCommand) -> Command:
    """Return the command that finds the device and has it do a command of its own."""

    def run(machine: Controlled, arguments: Arguments) -> Answer:
        slot = _choose(
            {slot.name: slot for slot in machine.slots if name in slot.device.commands},
            arguments.text("device"),
            [entry for entry in entries() if name in entry.device_class.commands],
        )
        answer = slot.device.commands[name].run(slot.device, arguments)
        return {"device": slot.name, **answer}

    return Command(run, ("device", *command.keys))


def _command_named(name: Json) -> Command:
    if isinstance(name, str):
        if name in COMMANDS:
            return COMMANDS[name]
        if (own := device_commands().get(name)) is not None:
            return _of_a_device(name, own)
    names = ", ".join([*COMMANDS, *device_commands()])
    raise ConfigError(f"There is no command {json.dumps(name)}: give one of {names}.")


def execute(machine: Controlled, line: bytes, files: Sequence[int] = ()) -> Answer:
    """Do what a request asks for; `files` came with it."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return {"error": "The request is no JSON: write an object on a line."}
    try:
        if not isinstance(request, dict):
            raise ConfigError('The request is no object: write {"command": "status"}.')
        name = request.pop("command", None)
        command = _command_named(name)
        if unknown := [key for key in request if key not in command.keys]:
            known = ", ".join(command.keys) or "nothing else"
            raise ConfigError(f"{name} does not know {unknown[0]!r}: it takes {known}.")
        return command.run(machine, Arguments(request, files))
    except VirtiopyError as error:
        return {"error": str(error)}


# The server


class ControlServer(Closing):
    """Serves commands to `machine` at `path`, by the machine's loop, until it is closed.

    The socket is its owner's alone. What a killed machine has left at `path` is replaced. Raises
    ConfigError, with a remedy, for a path that cannot be used.
    """

    def __init__(self, machine: Controlled, path: Path) -> None:
        self.machine = machine
        self.path = path
        self._clients: set[_Client] = set()
        self._socket = _listen(path)
        self._file = SocketFile.at(path)
        self._watch = machine.loop.watch(
            self._socket.fileno(), READABLE, self._accept, f"control socket {path}"
        )

    def close(self) -> None:
        """Close every connection, and take the socket's file away; the loop does not run."""
        for client in list(self._clients):
            client.close()
        self.machine.loop.unwatch(self._watch)
        self._socket.close()
        self._file.close()

    def _accept(self, events: int) -> None:
        if len(self._clients) == CLIENTS_MAX and not self._make_room():
            self._watch.events = 0
            self.machine.loop.call_later(IDLE, self._resume, "control socket")
            return
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("no client can be accepted: %s", error)
            self._watch.events = 0
            self.machine.loop.call_later(ACCEPT_PAUSE, self._resume, "control socket")
            return
        self._clients.add(_Client(self, connection))

    def _make_room(self) -> bool:
        """Close the client that was idle the longest; says whether there was one."""
        client = min(self._clients, key=lambda client: client.active)
        if time.monotonic() - client.active < IDLE:
            return False
        log.info("an idle client of %s makes room for another", self.path)
        client.close()
        return True

    def _resume(self) -> None:
        self._watch.events = READABLE

    def forget(self, client: "_Client") -> None:
        """Take note that a client is gone."""
        self._clients.discard(client)
        self._resume()


class _Client:
    """A connection: requests are read, unless the answer to one still waits to be taken."""

    def __init__(self, server: ControlServer, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._server = server
        self._connection = connection
        self._input = b""
        self._output = b""
        #: Those that came with the request that is read.
        self._files: list[int] = []
        self._ended = False
        #: When the client last sent a byte or took one, by the monotonic clock.
        self.active = time.monotonic()
        self._watch = server.machine.loop.watch(
            connection.fileno(), READABLE, self._ready, f"client of {server.path}"
        )

    def close(self) -> None:
        self._server.machine.loop.unwatch(self._watch)
        self._connection.close()
        self._close_files()
        self._server.forget(self)

    def _close_files(self) -> None:
        for fd in self._files:
            os.close(fd)
        self._files.clear()

    def _ready(self, events: int) -> None:
        self.active = time.monotonic()
        try:
            if not self._output:
                self._receive()
            if self._output:
                sent = self._connection.send(self._output)
                self._output = self._output[sent:]
        except BlockingIOError:
            pass
        except OSError as error:
            log.info("a client of %s is gone: %s", self._server.path, error)
            self.close()
            return
        if self._ended and not self._output:
            self.close()
        else:
            self._watch.events = WRITABLE if self._output else READABLE

    def _receive(self) -> None:
        data, files, _, _ = socket.recv_fds(
            self._connection, READ_SIZE, FILES_MAX, socket.MSG_CMSG_CLOEXEC
        )
        if files:
            self._close_files()
            self._files += files
        *lines, self._input = (self._input + data).split(b"\n")
        if not data:
            # The last line need not end in one.
            self._ended = True
            lines = [self._input] if self._input else []
        for line in lines:
            self._answer(execute(self._server.machine, line, self._files))
            self._close_files()
        if len(self._input) > LINE_MAX:
            self._answer(
                {"error": f"The request is longer than {LINE_MAX} bytes: make it shorter."}
            )
            self._ended = True

    def _answer(self, answer: Answer) -> None:
        self._output += json.dumps(answer).encode() + b"\n"


def _listen(path: Path) -> socket.socket:
    try:
        server = bind_listener(path, taken=f"Another machine listens at {path}: name another path.")
    except OSError as error:
        raise ConfigError(
            f"No control socket can be made at {path} ({error.strerror or error}): "
            "name a short path in a folder that you can write to."
        ) from error
    server.listen()
    return server

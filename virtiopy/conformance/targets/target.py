"""What is put to the test, and how a session with it is had."""

import contextlib
import importlib
import traceback
from dataclasses import dataclass
from pathlib import Path

from virtiopy.conformance.drivers import DRIVERS, driver_of
from virtiopy.conformance.problems import DeviceError
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.mmio import MmioSession
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.sessions.vhostuser import VhostUserSession
from virtiopy.conformance.targets.backends import (
    SPAWN_TIME,
    Backend,
    ServedDevice,
    SpawnedBackend,
    split,
)
from virtiopy.conformance.targets.builders import BUILDERS, Factory, Rig
from virtiopy.conformance.targets.hosts import Host
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.registry import entry_of
from virtiopy.errors import ConfigError
from virtiopy.spec import DeviceId
from virtiopy.transport.mmio import MmioTransport
from virtiopy.vhost.user.backend import Backend as ServingBackend
from virtiopy.vhost.user.frontend import connect

#: Seconds that anything which has to come is waited for, unless --virtio-patience says otherwise.
PATIENCE = 5.0

#: Seconds that a look at the device before all tests may take at each step.
_CHECK_PATIENCE = 2.0

TRANSPORTS = ("mmio", "vhost-user")


@dataclass(slots=True, frozen=True)
class Served:
    """A vhost-user backend, what its device is, and the suite's hand in its host's side."""

    device_id: DeviceId
    backend: Backend
    host: Host


class Target:
    """A device, or a backend, of which each test has a session of its own."""

    #: What the target is called in reports.
    name: str

    #: The name of the device's type; None where it is not known until there is a session.
    device: str | None

    @property
    def transport(self) -> str:
        """What the device is reached by: one of TRANSPORTS."""
        return "vhost-user"

    def check(self) -> None:
        """Raise ConfigError where there is nothing to have a session with; a run begins with it."""

    def serve(self, patience: float = PATIENCE) -> Served:
        """Return the vhost-user backend, for tests that are the frontend themselves.

        Raises ConfigError where there is nothing to test, and TypeError for a target that is none.
        """
        raise TypeError(f"{self.name} is no vhost-user backend")

    def open(self, trace: Trace, patience: float = PATIENCE) -> Session:
        """Make a session. Raises ConfigError where there is nothing to have one with."""
        served = self.serve(patience)
        return VhostUserSession(served.device_id, served.backend, served.host, trace, patience)


class InprocTarget(Target):
    """A device of this process: behind MMIO registers, or with `served` over vhost-user."""

    def __init__(
        self,
        factory: Factory,
        name: str,
        *,
        served: bool = False,
        transport: type[MmioTransport] = MmioTransport,
        backend: type[ServingBackend] = ServingBackend,
    ) -> None:
        self.name = f"{name} over vhost-user" if served else name
        self.served = served
        self._backend = backend
        self._factory = factory
        self._transport = transport
        rig = self._build()
        entry = entry_of(rig.device.device_id)
        self.device = None if entry is None else entry.name
        rig.device.close()
        rig.host.close()

    @property
    def transport(self) -> str:
        """What the device is reached by: one of TRANSPORTS."""
        return "vhost-user" if self.served else "mmio"

    def _build(self) -> Rig:
        try:
            made = self._factory()
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            if isinstance(error, TypeError) and len(frames) == 1:
                raise ConfigError(
                    f"{self.name} cannot be called ({error}): give what makes the device without "
                    "arguments, a function of your own for one."
                ) from error
            what = traceback.format_exception_only(error)[-1].strip()
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
            raise ConfigError(f"{self.name} cannot be made: it raised {what} ({where}).") from error
        rig = Rig(made) if isinstance(made, VirtioDevice) else made
        if not isinstance(rig, Rig):
            raise ConfigError(
                f"What {self.name} makes is no device ({type(made).__name__}): "
                "have it return a VirtioDevice."
            )
        return rig

    def check(self) -> None:
        """Make a device once, and see that it is one that the suite knows, and has a virtqueue."""
        # What the device does wrong is for the tests to find.
        with contextlib.suppress(DeviceError), self.open(Trace(), _CHECK_PATIENCE) as session:
            driver_of(session)
            with contextlib.suppress(DeviceError):
                if not session.queue_size_max(0):
                    raise ConfigError(
                        f"{self.name} has no virtqueue: give the device at least one, in "
                        "queue_sizes."
                    )

    def open(self, trace: Trace, patience: float = PATIENCE) -> Session:
        """Make a device, and a session with it."""
        if self.served:
            return super().open(trace, patience)
        return MmioSession(self._build(), trace, patience, transport=self._transport)

    def serve(self, patience: float = PATIENCE) -> Served:
        """Make a device, and serve it."""
        rig = self._build()
        backend = ServedDevice(rig.device, patience, self._backend)
        return Served(rig.device.device_id, backend, rig.host)


class SocketTarget(Target):
    """A backend that listens at a vhost-user socket, session after session."""

    def __init__(self, path: Path, device: str) -> None:
        self.name = f"vhost-user:{path}"
        self.device = device
        self._device_id = DRIVERS[device].device_id
        self._path = path

    def check(self) -> None:
        """Connect once: if no backend is there it is the user's fault, and later the backend's."""
        connect(self._path).close()

    def serve(self, patience: float = PATIENCE) -> Served:
        """Name the backend that is there."""
        return Served(self._device_id, Backend(self._path), Host())


class SpawnTarget(Target):
    """A backend that is started for each test by a command with {socket} in it.

    It may take `spawn_time` seconds until it listens.
    """

    def __init__(self, command: str, device: str, spawn_time: float = SPAWN_TIME) -> None:
        self.name = command
        self._spawn_time = spawn_time
        self.device = device
        self._device_id = DRIVERS[device].device_id
        split(command)

    def check(self) -> None:
        """Start the backend once, and have it say what it offers."""
        backend = SpawnedBackend(self.name, self._spawn_time)
        try:
            backend.greet()
        finally:
            backend.close()

    def serve(self, patience: float = PATIENCE) -> Served:
        """Start the backend."""
        backend = SpawnedBackend(self.name, self._spawn_time)
        return Served(self._device_id, backend, Host())


def inproc(
    factory: Factory,
    *,
    name: str | None = None,
    served: bool = False,
    transport: type[MmioTransport] = MmioTransport,
    backend: type[ServingBackend] = ServingBackend,
) -> InprocTarget:
    """Return the target for a device of your own.

    `factory` makes a new device for each test: a class will do. It may return a Rig, where the
    suite is to have a hand in the host's side. With `served` the device is reached over
    vhost-user, on a socket of its own, instead of MMIO registers; `backend` is what serves it.
    """
    words = name or getattr(factory, "__name__", repr(factory))
    return InprocTarget(
        factory, f"python:{words}", served=served, transport=transport, backend=backend
    )


def parse(
    text: str | None,
    *,
    device: str | None,
    spawn: str | None,
    spawn_time: float = SPAWN_TIME,
    transport: str = "mmio",
) -> Target:
    """Return the target that the options name; raises ConfigError."""
    served = transport == "vhost-user"
    if spawn is not None:
        if text is not None:
            raise ConfigError("Both a target and a command to spawn: leave one of them out.")
        return SpawnTarget(spawn, _needed(device), spawn_time)
    kind, _, rest = (text or "").partition(":")
    if kind == "inproc":
        if rest not in BUILDERS:
            raise ConfigError(
                f"There is no device {rest!r} here: name one of {', '.join(BUILDERS)}."
            )
        return InprocTarget(BUILDERS[rest], f"inproc:{rest}", served=served)
    if kind == "vhost-user" and rest:
        return SocketTarget(Path(rest), _needed(device))
    if kind == "python":
        return InprocTarget(_import(rest), f"python:{rest}", served=served)
    raise ConfigError(
        f"The target {text or 'is missing'}: give inproc:NAME, vhost-user:SOCKET, "
        "python:MODULE:FACTORY, or a command to spawn."
    )


def _needed(device: str | None) -> str:
    if device is None:
        raise ConfigError(
            "A vhost-user backend cannot say what device it is: "
            f"say --virtio-device={'|'.join(DRIVERS)}."
        )
    return device


def _import(text: str) -> Factory:
    module, _, name = text.partition(":")
    try:
        factory: Factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"python:{text} cannot be imported ({error}): give a module on the import path, "
            "and what makes the device in it, as in python:mydevices:MyDisk."
        ) from error
    return factory

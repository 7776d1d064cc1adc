"""A device that virtiopy does not have: it gives back what it reads, reversed.

`python -m tests.echo ARGUMENTS` is the command line of a virtiopy that has it, as a plugin would.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from virtiopy.devices.base import CommandArguments, DeviceCommand, Fact, VirtioDevice
from virtiopy.devices.entry import DeviceEntry, Direction, Example, Option, Options, Workload
from virtiopy.devices.registry import registered
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.buffers import gather, scatter
from virtiopy.virtqueue.queue import Chain, Virtqueue


def shout(device: VirtioDevice, arguments: CommandArguments) -> Mapping[str, Fact]:
    """Take a word that `virtiopy ctl` gives it."""
    assert isinstance(device, Echo)
    device.word = arguments.text("word") or "nothing"
    return {"word": device.word}


class Echo(VirtioDevice):
    """The device; its number is one of the specification's that has no section there."""

    device_id: ClassVar[DeviceId] = DeviceId.PARAMETER_SERVER
    commands = MappingProxyType({"shout": DeviceCommand("Give it a word.", ("word",), shout)})
    queue_sizes = (64,)

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.word = ""

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        """Write what was read, from its end."""
        return scatter(chain.writable, gather(chain.readable)[: self.limit][::-1])

    def facts(self) -> Mapping[str, Fact]:
        """Tell the option's value, and the word."""
        return {"limit": self.limit, "word": self.word}


def build(options: Options) -> Echo:
    """Make the device of `[limit=N]`."""
    return Echo(options.number("limit", 4096, 1, 1 << 20))


ENTRY = DeviceEntry(
    name="echo",
    device_id=DeviceId.PARAMETER_SERVER,
    kind="echo device",
    device="tests.echo:Echo",
    option=Option("--echo", "[limit=N]", "Attach an echo.", keys=("limit",), has_main=False),
    build="tests.echo:build",
    guest="probe",
    workload=Workload(
        "[limit=N]",
        "Measure an echo.",
        unit="echo",
        count=7,
        directions={"": Direction("reversed", "echo.requests={count} echo.depth={depth}")},
    ),
    example=Example(readable=b"stressed", answer=b"desserts"),
)


if __name__ == "__main__":
    from virtiopy.cli.main import main

    with registered(ENTRY):
        main()

"""What a device's requests cost in the lab, where no mode is missing."""

from virtiopy.cli.exits import device_setup
from virtiopy.devices.registry import entry_named
from virtiopy.exits.model import Costs
from virtiopy.exits.runner import compare
from virtiopy.vm.slots import IoMode


def costs_by_mode(device: str, text: str, count: int) -> dict[IoMode, Costs]:
    """Measure `count` requests, one at a time, trapped, by ioeventfd and by vhost.

    `text` is the value of the device's option. Registers are exits.
    """
    rows, accelerator = compare(
        device_setup(entry_named(device), text, count, 1, None),
        [IoMode.TRAPPED, IoMode.IOEVENTFD, IoMode.VHOST],
        (False,),
        progress=lambda line: None,
    )
    assert accelerator == "kvm"
    found = {}
    for row in rows:
        assert row.costs is not None, row.missing
        found[IoMode(row.mode)] = row.costs
    return found

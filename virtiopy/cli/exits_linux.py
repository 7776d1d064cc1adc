"""virtiopy exits with a command: what Linux's own drivers cost, in each I/O mode."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from virtiopy.cli import attachments
from virtiopy.cli.options import DeviceOptions, note
from virtiopy.devices.entry import DeviceEntry
from virtiopy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtiopy.exits.backend import Served
    from virtiopy.exits.runner import Setup


def linux_setup(
    entry: DeviceEntry,
    text: str,
    options: DeviceOptions,
    words: tuple[str, ...],
    *,
    kernel: Path | None,
    append: str,
    programs: tuple[str, ...],
    serve: "Callable[[], Served]",
) -> "Setup":
    """Describe a run of Linux with one device, in which a command is measured.

    Raises ConfigError for a kernel or a program that is not there.
    """
    from virtiopy.boot.parameters import Initrd
    from virtiopy.cache import cache_folder
    from virtiopy.cli.kernelrun import DEFAULT_WORDS
    from virtiopy.cli.linux import WORDS, guest_addresses
    from virtiopy.exits.guest import LinuxGuest
    from virtiopy.exits.model import Workload
    from virtiopy.exits.runner import Setup
    from virtiopy.linux import initramfs
    from virtiopy.linux.kernels import LinuxKernel, find_kernel
    from virtiopy.linux.unpacked import unpacked

    counter = entry.linux_counter
    if counter is None:
        raise ConfigError(
            f"Linux does not count the requests of a {entry.kind}: leave the command out, or "
            "measure another device."
        )
    cache = cache_folder()
    found = LinuxKernel.of(kernel) if kernel is not None else find_kernel(cache, note)
    contents = initramfs.Contents(
        found, entry.linux_modules, initramfs.programs_for(words, programs)
    )
    task = initramfs.Task(
        words,
        guest_addresses((text,)) if entry.name == "net" else (),
        interactive=False,
        count=counter.script,
    )
    line = words[0] if len(words) == 1 else shlex.join(words)
    return Setup(
        workload=Workload(
            entry.name, counter.unit, f"Linux {found.version}", None, None, command=line
        ),
        guest=LinuxGuest(
            unpacked(found.image, cache),
            f"{DEFAULT_WORDS} {WORDS} {append}".strip(),
            Initrd(cache / "initramfs", initramfs.build(contents, task, cache)),
        ),
        name=f"{entry.name}0",
        build=attachments.builder(entry, text),
        serve=serve,
    )

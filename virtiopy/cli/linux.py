"""virtiopy linux: Linux in a VM, with devices, for a shell or one command."""

import contextlib
import ipaddress
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virtiopy.cli.attachments import parse
from virtiopy.cli.devices import DeviceCommand, attach_options
from virtiopy.cli.inturn import asks_for_turns, run_in_turn
from virtiopy.cli.machines import MachineOptions, machine_options, open_machine
from virtiopy.cli.main import EXIT_GUEST_FAILED
from virtiopy.cli.options import DeviceOptions, note
from virtiopy.cli.sandboxed import AT_THE_END
from virtiopy.devices.registry import entries, entry_named
from virtiopy.errors import ConfigError
from virtiopy.files import check_output

if TYPE_CHECKING:
    from virtiopy.linux.initramfs import RootWrites

#: What makes a kernel quick to boot, and quiet: there is no other user here to protect it from.
WORDS = (
    "quiet loglevel=1 nokaslr mitigations=off random.trust_cpu=on cryptomgr.notests pci=off "
    "lsm= audit=0 ima=off no_timer_check rcupdate.rcu_expedited=1"
)


@click.command(
    cls=DeviceCommand,
    device_params=attach_options,
    context_settings={"ignore_unknown_options": False},
    epilog="""Examples:

\b
  virtiopy linux
  virtiopy linux -- uname -a
  virtiopy linux --disk d.img -- 'mkfs.ext2 /dev/vda && mount /dev/vda /mnt && df /mnt'
  virtiopy linux --net tap=t0,create=on,address=192.0.2.1/24 -- ping -c 3 192.0.2.1
  virtiopy linux --root / -- python3 -c 'print("Hello")'
  virtiopy linux --disk d.img --exits -- dd if=/dev/vda of=/dev/null bs=4k count=100 iflag=direct
""",
)
@click.option(
    "--kernel",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A bzImage, whose modules are beside it in an unpacked package or in /lib/modules. Where "
    "none is named: the newest in /boot, else Debian's, which is fetched once and not installed.",
)
@click.option("--append", default="", metavar="WORDS", help="More for the kernel's command line.")
@click.option(
    "--with",
    "programs",
    multiple=True,
    metavar="PROGRAM",
    help="A program of the host's to have in the guest, with its libraries, besides COMMAND's "
    "first word.",
)
@click.option(
    "--module",
    "modules",
    multiple=True,
    metavar="NAME",
    help="One more of the kernel's modules to insert, with those that it needs.",
)
@click.option(
    "--root",
    metavar="FOLDER[,writes=discard|refuse|keep]",
    help="Have this folder of the host's as the root, by 9P; / is the host's own. What the guest "
    "writes there is in its memory and goes with it, or is an error, or is kept in the folder.",
)
@click.option(
    "--exits",
    "show_exits",
    is_flag=True,
    help="Show what COMMAND cost in exits, without the boot, on standard error.",
)
@machine_options
@click.argument("words", nargs=-1, metavar="[-- COMMAND...]")
def command(
    *,
    options: MachineOptions,
    kernel: Path | None,
    append: str,
    programs: tuple[str, ...],
    modules: tuple[str, ...],
    root: str | None,
    show_exits: bool,
    timeout: float | None,
    json_path: Path | None,
    words: tuple[str, ...],
    **attached: tuple[str, ...],
) -> int:
    """Boot Linux with virtio devices, and run COMMAND or a shell in it.

    Disks are /dev/vda, /dev/vdb, ...; network devices are eth0, eth1, ..., and have the address
    after that of the host's side, where this was given one. One word is a line for the shell; more
    are a program and its arguments. The status is COMMAND's.
    """
    from virtiopy.boot.kernel import open_kernel
    from virtiopy.boot.parameters import Initrd
    from virtiopy.cache import cache_folder
    from virtiopy.cli import kernelrun
    from virtiopy.cli.ending import tell
    from virtiopy.cli.output import patient_output
    from virtiopy.cli.tapresults import parse_tap
    from virtiopy.linux import initramfs
    from virtiopy.linux.kernels import LinuxKernel, find_kernel
    from virtiopy.linux.unpacked import unpacked
    from virtiopy.vm.pc import Pc

    if asks_for_turns(options.device_variant, options.hostile):
        if not words:
            raise ConfigError("Each device in turn takes a command to run: give one after --.")
        return run_in_turn(click.get_current_context(), with_console=False)
    cache = cache_folder()
    found = LinuxKernel.of(kernel) if kernel is not None else find_kernel(cache, note)
    writes: initramfs.RootWrites | None = None
    needed: tuple[str, ...] = ()
    if root is not None:
        if programs:
            raise ConfigError(
                "--with has programs in the guest's own small root, and --root has the folder's: "
                "leave one of them out."
            )
        share, writes = parse_root(root)
        attached["ninep"] = (*attached["ninep"], share)
        needed = initramfs.ROOT_MODULES
    wanted = [name for entry in entries() if attached[entry.name] for name in entry.linux_modules]
    copied = () if root is not None else initramfs.programs_for(words, programs)
    contents = initramfs.Contents(found, (*wanted, *needed), copied, modules)
    typed = not words or sys.stdin.isatty()
    task = initramfs.Task(
        words,
        guest_addresses(attached["net"]),
        interactive=typed,
        size=terminal_size(),
        measured=show_exits,
        root=writes,
    )
    if show_exits and not words:
        raise ConfigError("--exits measures a command: give one after --.")
    image = unpacked(found.image, cache)
    opened = open_kernel(image)
    initrd = Initrd(cache / "initramfs", initramfs.build(contents, task, cache))
    with contextlib.ExitStack() as stack:
        printed = stack.enter_context(patient_output())
        stream, shown = kernelrun.open_serial("stdio" if typed else "stdout")
        output = kernelrun.SerialOutput(shown=shown)
        machine, checking = open_machine(
            stack,
            options,
            attached,
            console=lambda data: None,
            default_memory=kernelrun.DEFAULT_MEMORY,
            ignore_unassigned=True,
            for_kernel=True,
        )
        if json_path is not None:
            check_output(json_path, "The report")
        with Pc(machine, output.write, stream) as pc:
            line = f"{kernelrun.DEFAULT_WORDS} {WORDS} {append}"
            pc.boot(opened, line.strip(), initrd)
            if printed is not None:
                machine.on_stop.append(printed.hurry)
            options.sandbox.reads(image)
            options.sandbox.writes(json_path)
            options.sandbox.imports(*AT_THE_END)
            options.sandbox.enter()
            status, ending = kernelrun.run_to_the_end(machine, pc, output, image, timeout or 0)
        kept = True

        from rich.console import Console

        from virtiopy.cli import report

        def show() -> None:
            nonlocal kept
            kept = checking.finish(passed=ending.error is None and status == 0)
            for measurement in machine.measurement_port.measurements if show_exits else ():
                report.show_measurement(Console(stderr=True), measurement)

        save = partial(
            report.write_json,
            machine,
            ending,
            parse_tap(""),
            guest=" ".join(words) or "a shell",
            passed=status == 0,
        )
        tell(ending, show, save, json_path, printed)
    return status if kept else max(status, EXIT_GUEST_FAILED)


def parse_root(text: str) -> "tuple[str, RootWrites]":
    """Return the share that is the root, and what becomes of writes; raises ConfigError."""
    from virtiopy.linux.initramfs import ROOT_FOLDERS, ROOT_TAG, RootWrites

    options = DeviceOptions("--root", text, ["writes"])
    writes = RootWrites(options.choice("writes", list(RootWrites), RootWrites.DISCARD))
    folder = options.folder
    lacking = [name for name in ROOT_FOLDERS if not (folder / name).is_dir()]
    if writes is not RootWrites.DISCARD and lacking:
        raise ConfigError(
            f"The root {folder} has no folder {lacking[0]}, where the guest mounts what is its "
            "own: make it, or leave out writes=..."
        )
    readonly = "off" if writes is RootWrites.KEEP else "on"
    escaped = options.main.replace(",", ",,")
    return f"{escaped},tag={ROOT_TAG},readonly={readonly}", writes


def guest_addresses(nets: tuple[str, ...]) -> list[str]:
    """Return the guest's address on each network device: the one after the host's, or "-"."""
    addresses = []
    for text in nets:
        address = parse(entry_named("net"), text).text("address", "")
        if not address:
            addresses.append("-")
            continue
        host = ipaddress.ip_interface(address)
        addresses.append(f"{host.ip + 1}/{host.network.prefixlen}")
    return addresses


def terminal_size() -> str:
    """Return the size of our terminal as stty(1) takes it; nothing where there is none."""
    try:
        size = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return ""
    return f"rows {size.lines} cols {size.columns}"

"""The initramfs of `virtiopy linux`: busybox, modules, programs of the host's, and what to run.

The part that takes long to make, and is the same in each boot, is kept in the cache; what this
boot is to do comes behind it.
"""

import contextlib
import enum
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virtiopy.errors import ConfigError
from virtiopy.linux.cpio import Archive
from virtiopy.linux.kernels import LinuxKernel
from virtiopy.linux.modules import Module, ModuleTree, module_name
from virtiopy.linux.programs import add_program, find_program, libraries

_INIT = Path(__file__).with_name("init.sh")

#: Of the kernel's modules, those without which no device is seen.
_TRANSPORT = ("virtio_mmio",)

#: The mount tag of the folder that is the root, and the module that keeps changes out of it.
ROOT_TAG = "virtiopy-root"
ROOT_MODULES = ("overlay",)

#: Where the guest mounts file systems of its own: a root that it cannot make them in has them.
ROOT_FOLDERS = ("dev", "proc", "run", "sys", "tmp")

#: How many archives are kept.
_KEPT = 8


class RootWrites(enum.StrEnum):
    """What becomes of what the guest writes to its root."""

    #: It is in the guest's memory, and goes with it.
    DISCARD = "discard"
    #: It is an error.
    REFUSE = "refuse"
    #: It is in the folder.
    KEEP = "keep"


@dataclass(slots=True, frozen=True)
class Contents:
    """What is in an initramfs: modules by name, and files of programs besides busybox.

    Of `modules` those are left out that the kernel does not have; all of `asked_for` it must have.
    """

    kernel: LinuxKernel
    modules: tuple[str, ...] = ()
    programs: tuple[Path, ...] = ()
    asked_for: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class Task:
    """What a boot is to do.

    `command` is one line for a shell, or the words of a program's; empty for a shell to type in.
    `network` has an address for each network device, or "-"; without `interactive` the command has
    no input.
    """

    command: Sequence[str] = ()
    network: Sequence[str] = ()
    interactive: bool = True
    #: The size of the terminal, as stty(1) takes it.
    size: str = ""
    #: Whether what the command costs is to be measured.
    measured: bool = False
    #: What becomes of what is written to the folder of the host's that is the root, if one is.
    root: RootWrites | None = None
    #: Prints how many requests a device has served: they are counted and told, where it is given.
    count: str = ""


def find_busybox() -> Path:
    """Return a busybox that needs no libraries; raises ConfigError where there is none."""
    found = shutil.which("busybox") or shutil.which("busybox", path="/usr/bin:/bin:/sbin")
    if found is None or any(libraries(Path(found))):
        raise ConfigError(
            "A static busybox is needed for the guest's shell: apt-get install busybox-static."
        )
    return Path(found)


def applets(busybox: Path) -> list[str]:
    """Return the names that busybox answers to."""
    listed = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


def programs_for(command: Sequence[str], named: Sequence[str]) -> tuple[Path, ...]:
    """Return the host's programs that a guest needs: those named, and the command's own.

    Raises ConfigError where one is not there.
    """
    programs = {name: find_program(name) for name in named}
    first = (command[0].split() or [""])[0] if command else ""
    if first and first not in programs and first not in applets(find_busybox()):
        # A line for the shell may begin with a word of the shell's own.
        with contextlib.suppress(*([ConfigError] if len(command) == 1 else [])):
            programs[first] = find_program(first)
    return tuple(programs.values())


def build(contents: Contents, task: Task, cache: Path) -> bytes:
    """Return an initramfs; raises ConfigError where something is missing that goes into it."""
    return _base(contents, cache) + _last(task)


def _base(contents: Contents, cache: Path) -> bytes:
    """Return what is the same in each boot, from the cache where it is there."""
    busybox = find_busybox()
    tree = ModuleTree(contents.kernel)
    asked_for = [module_name(name) for name in contents.asked_for]
    for name in asked_for:
        tree.check(name)
    modules = tree.in_order((*_TRANSPORT, *asked_for), optional=contents.modules)
    key = hashlib.sha256()
    for path in (busybox, _INIT, *(module.path for module in modules), *contents.programs):
        status = path.stat()
        key.update(os.fsencode(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n"))
    folder = cache / "initramfs"
    kept = folder / f"{key.hexdigest()[:32]}.cpio"
    with contextlib.suppress(OSError):
        data = kept.read_bytes()
        with contextlib.suppress(OSError):
            # The least recently used are the first to go.
            os.utime(kept)
        return data
    data = _make(busybox, modules, contents.programs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{kept.name}.{os.getpid()}"
        new.write_bytes(data)
        new.rename(kept)
        _forget_old(folder)
    except OSError:
        # A cache that cannot be written is a slower one.
        pass
    return data


def _forget_old(folder: Path) -> None:
    kept = sorted(folder.glob("*.cpio"), key=lambda path: path.stat().st_mtime)
    for path in kept[:-_KEPT]:
        path.unlink(missing_ok=True)


def _make(busybox: Path, modules: Sequence[Module], programs: Sequence[Path]) -> bytes:
    archive = Archive()
    for path in ("proc", "sys", "dev", "run", "tmp", "root", "mnt", "etc"):
        archive.folder(path)
    # The kernel opens it for init before anything is mounted.
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), executable=True)
    for name in applets(busybox):
        if name != "busybox":
            archive.link(f"bin/{name}", "busybox")
    archive.file("init", _INIT.read_bytes(), executable=True)
    archive.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\n")
    for module in modules:
        archive.file(f"modules/{module.name}.ko", module.content())
    order = "".join(f"{module.name}.ko\n" for module in modules)
    archive.file("modules/order", order.encode())
    for program in programs:
        add_program(archive, program)
    return archive.encoded()


def _last(task: Task) -> bytes:
    archive = Archive()
    settings = {
        "NETWORK": " ".join(task.network),
        "QUIET_INPUT": "" if task.interactive else "1",
        "SIZE": task.size,
        "MEASURE": "1" if task.measured or task.count else "",
        "COUNT": task.count,
        "ROOT": task.root or "",
        "ROOT_TAG": ROOT_TAG,
    }
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in settings.items()]
    archive.file("virtiopy/settings", "".join(lines).encode())
    if task.command:
        line = task.command[0] if len(task.command) == 1 else shlex.join(task.command)
        # A file's name may be any bytes.
        archive.file("virtiopy/command", os.fsencode(f"{line}\n"))
    return archive.encoded()

"""What executes guest code: KVM, or a translator where there is none."""

import contextlib
import enum
import os
from collections.abc import Callable

from virtiopy.accel.base import Accelerator
from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.errors import ConfigError, HostError
from virtiopy.memory import GuestMemory

#: The module of a KVM without VT-x or SVM under it, which interprets ring 0.
INTERPRETING_MODULE = "kvm_pvm"


class AcceleratorName(enum.StrEnum):
    """What a user can ask for."""

    KVM = "kvm"
    TCG = "tcg"
    AUTO = "auto"  # KVM where it opens, else TCG


def select(
    name: str,
    memory: GuestMemory,
    *,
    interrupts: bool = True,
    cpus: int = 1,
    for_kernel: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> Accelerator:
    """Make the accelerator called `name` for a guest with `memory` and so many `cpus`.

    `auto` does without KVM where that does not open; and for a kernel, which lives in ring 0,
    where KVM interprets ring 0 (`for_kernel`). `note` is given one line then. Raises ConfigError
    for a name that is none, HostError for what the host lacks.
    """
    try:
        wanted = AcceleratorName(name)
    except ValueError:
        raise ConfigError(
            f"There is no accelerator {name!r}: name one of {', '.join(AcceleratorName)}."
        ) from None
    if wanted is AcceleratorName.KVM:
        return KvmAccelerator(memory, interrupts=interrupts)
    if wanted is AcceleratorName.TCG:
        return _tcg(memory, interrupts=interrupts)
    if for_kernel and cpus == 1 and kvm_interprets():
        with contextlib.suppress(HostError):
            accelerator = _tcg(memory, interrupts=interrupts)
            note(
                "Running on the software CPU (tcg): this host's KVM interprets ring 0 (its module "
                f"is {INTERPRETING_MODULE}), where a kernel would take minutes."
            )
            return accelerator
    try:
        return KvmAccelerator(memory, interrupts=interrupts)
    except HostError as why_no_kvm:
        try:
            accelerator = _tcg(memory, interrupts=interrupts)
        except HostError as why_no_tcg:
            raise HostError(f"{why_no_kvm} Or do without KVM: {why_no_tcg}") from why_no_tcg
        note(f"Running on the software CPU (tcg): {why_no_kvm}")
        return accelerator


def kvm_interprets() -> bool:
    """Say whether this host's KVM executes ring 0 instruction by instruction."""
    return os.path.exists(f"/sys/module/{INTERPRETING_MODULE}")


def _tcg(memory: GuestMemory, *, interrupts: bool) -> Accelerator:
    try:
        from virtiopy.accel.tcg.accelerator import TcgAccelerator  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise HostError(
            f"The software CPU needs Unicorn, which is not here ({error}): "
            "install it with pip install 'virtiopy[tcg]'."
        ) from error
    return TcgAccelerator(memory, interrupts=interrupts)

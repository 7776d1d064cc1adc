"""What executes guest code: KVM, or a translator where there is none."""

import enum
from collections.abc import Callable

from virtiopy.accel.base import Accelerator
from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.errors import ConfigError, HostError
from virtiopy.memory import GuestMemory


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
    note: Callable[[str], None] = lambda line: None,
) -> Accelerator:
    """Make the accelerator called `name` for a guest with `memory`.

    `note` is given one line when `auto` does without KVM. Raises ConfigError for a name that
    is none, HostError for what the host lacks.
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
    try:
        return KvmAccelerator(memory, interrupts=interrupts)
    except HostError as why_no_kvm:
        try:
            accelerator = _tcg(memory, interrupts=interrupts)
        except HostError as why_no_tcg:
            raise HostError(f"{why_no_kvm} Or do without KVM: {why_no_tcg}") from why_no_tcg
        note(f"Running on the software CPU (tcg): {why_no_kvm}")
        return accelerator


def _tcg(memory: GuestMemory, *, interrupts: bool) -> Accelerator:
    try:
        from virtiopy.accel.tcg.accelerator import TcgAccelerator  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise HostError(
            f"The software CPU needs Unicorn, which is not here ({error}): "
            "install it with pip install 'virtiopy[tcg]'."
        ) from error
    return TcgAccelerator(memory, interrupts=interrupts)

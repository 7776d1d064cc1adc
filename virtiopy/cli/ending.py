"""How a run of a guest ended."""

import enum
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from virtiopy.cli.output import PATIENCE, OutputError, PatientOutput
from virtiopy.cli.signals import SignalError
from virtiopy.devices.base import GONE_FOR
from virtiopy.errors import ConfigError, GuestError, PeerError
from virtiopy.files import STANDARD_OUTPUT
from virtiopy.vm.machine import Machine, RunResult
from virtiopy.vm.standing import Standing


class Reason(enum.StrEnum):
    """What ended a run."""

    EXIT = "exit"  # the guest, by its exit port
    TIMEOUT = "timeout"
    GUEST_FAULT = "guest-fault"  # a triple fault, an access to no device
    PEER_FAULT = "peer-fault"
    HOST_FAULT = "host-fault"
    INTERRUPTED = "interrupted"  # Ctrl-C
    TERMINATED = "terminated"  # SIGTERM
    HUNG_UP = "hung-up"  # SIGHUP
    OUTPUT_CLOSED = "output-closed"  # the reader of our output left


#: The ends of a run after which the guest might have gone on, or failed.
_STANDING = {
    Reason.GUEST_FAULT,
    Reason.PEER_FAULT,
    Reason.INTERRUPTED,
    Reason.TERMINATED,
    Reason.HUNG_UP,
}

_SIGNALS = {signal.SIGTERM: Reason.TERMINATED, signal.SIGHUP: Reason.HUNG_UP}


def reason_of(error: BaseException) -> Reason:
    """Say what an exception, which left a run, makes of it."""
    match error:
        case SignalError(number=number):
            return _SIGNALS[number]
        case KeyboardInterrupt():
            return Reason.INTERRUPTED
        case BrokenPipeError():
            return Reason.OUTPUT_CLOSED
        case GuestError():
            return Reason.GUEST_FAULT
        case PeerError():
            return Reason.PEER_FAULT
        case _:
            return Reason.HOST_FAULT


@dataclass(slots=True, frozen=True)
class Ending:
    """How a run ended, and what was counted until then; `error` is to be raised afterwards.

    `standing` says where a guest was that did not end by itself.
    """

    reason: Reason
    result: RunResult
    error: BaseException | None = None
    standing: Standing | None = None


def tell(
    ending: Ending,
    show: Callable[[], None],
    save: Callable[[Path], None],
    json_path: Path | None,
    printed: PatientOutput | None,
) -> None:
    """Show and write what was counted, and then raise what ended the run, if it was not the guest.

    Raises OutputError, BrokenPipeError and ConfigError for what cannot be shown or written.
    """
    unsaved: ConfigError | None = None
    # To a file first: standard output may have no reader.
    if json_path is not None and json_path != STANDARD_OUTPUT:
        try:
            save(json_path)
        except ConfigError as error:
            unsaved = error
    try:
        show()
        if json_path == STANDARD_OUTPUT:
            save(json_path)
        if printed is not None:
            printed.finish(None if ending.error is None else PATIENCE)
    except (BrokenPipeError, OutputError):
        if ending.error is None:
            raise
    if (raised := ending.error or unsaved) is not None:
        raise raised


def name_code(image: Path, address: int) -> str | None:
    """Return the function at an address of a guest's, where its image says."""
    from virtiopy.boot.symbols import symbol_at

    return symbol_at(image, address)


def run_to_end(machine: Machine, timeout: float, image: Path) -> Ending:
    """Run the guest for at most `timeout` seconds, or for ever with 0, whatever ends it.

    `image` is the guest's, with its symbols. Raises what kept the guest from running at all.
    """
    symbol_at = partial(name_code, image)
    try:
        result = machine.run(timeout or None)
    except BaseException as error:
        if machine.result is None:
            raise
        reason = reason_of(error)
        standing = machine.standing(symbol_at) if reason in _STANDING else None
        return Ending(reason, machine.result, error, standing)
    if result.status is not None:
        return Ending(Reason.EXIT, result)
    late = f"The guest was not done after {timeout:g} seconds"
    if gone := backends_gone(machine):
        late += f": {gone}: start it again, and see why it ended."
    else:
        late += ": give it more with --timeout, or find out what it waits for."
    return Ending(Reason.TIMEOUT, result, GuestError(late), machine.standing(symbol_at))


def backends_gone(machine: Machine) -> str:
    """Say which devices have no backend any more, and since when; nothing where all have."""
    return ", ".join(
        f"the vhost-user backend of {slot.name} left {seconds} seconds before that"
        for slot in machine.slots
        if (seconds := slot.device.facts().get(GONE_FOR)) is not None
    )

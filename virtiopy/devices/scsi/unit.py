"""What every logical unit is: a set of commands, and conditions that it has to tell of."""

import threading
from collections.abc import Sequence
from typing import ClassVar

from virtiopy.devices.scsi.address import Address, WellKnown
from virtiopy.devices.scsi.command import (
    NO_SENSE,
    Additional,
    CheckConditionError,
    Command,
    Sense,
    SenseKey,
)
from virtiopy.devices.scsi.commandset import CommandSet, Definition

#: Unit attention conditions that are kept for the driver; further ones say nothing new to it.
ATTENTIONS_MAX = 8


class LogicalUnit:
    """A logical unit. Several threads may serve its commands at a time.

    A subclass adds its commands to `commands`.
    """

    #: The peripheral device type (SPC-4, 6.6.2), and whether its medium can be taken out.
    peripheral_type: ClassVar[int]
    removable: ClassVar[bool] = False

    def __init__(self) -> None:
        #: Guards what is changed by commands.
        self.lock = threading.Lock()
        #: Where the device has it; set by the device.
        self.address: Address | WellKnown = WellKnown()
        self._set = CommandSet(self.commands())
        self._attentions: list[Additional] = [Additional.POWER_ON_OR_RESET]

    @property
    def command_set(self) -> CommandSet:
        """Its commands."""
        return self._set

    def commands(self) -> Sequence[Definition]:
        """Return its commands."""
        return []

    # A command

    def execute(self, command: Command) -> int:
        """Serve a command; returns how many bytes were transferred.

        Raises CheckConditionError and OverrunError.
        """
        return self._find(command).handler(command)

    def execute_at_once(self, command: Command) -> int | None:
        """Serve a command that waits for nothing; None for another, of which nothing is done.

        Raises as `execute` does.
        """
        definition = self._set.of(command.cdb)
        if definition.waits:
            return None
        return self._find(command).handler(command)

    def _find(self, command: Command) -> Definition:
        definition = self._set.of(command.cdb)
        definition.check(command.cdb)
        if self._attentions and not definition.always:
            self._report_attention()
        return definition

    # Unit attention conditions (SAM-5, 5.14)

    def attend(self, additional: Additional) -> None:
        """Tell the driver of a condition, once, with the next command that can."""
        with self.lock:
            if additional not in self._attentions and len(self._attentions) < ATTENTIONS_MAX:
                self._attentions.append(additional)

    def _report_attention(self) -> None:
        sense = self.take_attention()
        if sense.key == SenseKey.UNIT_ATTENTION:
            raise CheckConditionError(sense)

    def take_attention(self) -> Sense:
        """Return the oldest condition, and forget it; NO SENSE without one."""
        with self.lock:
            if not self._attentions:
                return NO_SENSE
            return Sense(SenseKey.UNIT_ATTENTION, self._attentions.pop(0))

    # Life

    def reset(self, reason: Additional = Additional.POWER_ON_OR_RESET) -> None:
        """Forget the driver; it is told why."""
        with self.lock:
            self._attentions = [reason]

    def measure(self) -> bool:
        """Take the size that the medium has now; says whether the driver is to be told."""
        return False

    def close(self) -> None:
        """Give back what it has of the host."""

    @property
    def medium_size(self) -> int:
        """Bytes of its medium; 0 without one."""
        return 0

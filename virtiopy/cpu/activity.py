"""What a virtual CPU does while it is stopped by the host."""

import enum


class Activity(enum.StrEnum):
    """Whether a CPU executes code when it is run."""

    RUNNING = "running"
    HALTED = "halted"  # by HLT, until an interrupt
    NOT_STARTED = "not started"  # waits for another CPU's INIT and SIPI

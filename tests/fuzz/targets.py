"""The targets of the fuzzer of Python, by name: each takes one input."""

import importlib
from collections.abc import Callable
from pathlib import Path

#: One folder a target: inputs that are tried each time, and that others are made of.
CORPUS = Path(__file__).with_name("corpus")

TARGETS = {
    "messages": "tests.fuzz.frontends:messages",
    "registers": "tests.fuzz.guests:registers",
    "rings": "tests.fuzz.guests:rings",
}


def open_target(name: str) -> Callable[[bytes], object]:
    """Return the function of a target."""
    module, function = TARGETS[name].split(":")
    target: Callable[[bytes], object] = getattr(importlib.import_module(module), function)
    return target

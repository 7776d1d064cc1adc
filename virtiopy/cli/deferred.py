"""Modules of the standard library that are not imported before something of them is used.

What the command line needs imports modules in its turn of which most runs use nothing: click takes
`inspect` to indent help, `pathlib` gets to `ipaddress` by way of URLs. Each takes milliseconds, and
all of them longer than the smallest guest.
"""

import sys
from _thread import RLock
from collections.abc import Callable
from types import ModuleType

#: One for all: a module that is imported may want another.
_LOCK = RLock()


class _Deferred(ModuleType):
    """Stands for a module, in whatever imported it, and is asked for what it does not have."""

    def __init__(self, name: str, afterwards: Callable[[], object]) -> None:
        super().__init__(name)
        self.__dict__["_afterwards"] = afterwards

    def __getattr__(self, attribute: str) -> object:
        return getattr(_module(self), attribute)


def _module(deferred: _Deferred) -> ModuleType:
    """Return the module that one stands for, imported."""
    name = deferred.__name__
    with _LOCK:
        if sys.modules.get(name) is deferred:
            del sys.modules[name]
            try:
                __import__(name)
            except BaseException:
                sys.modules[name] = deferred
                raise
            deferred.__dict__["_afterwards"]()
        return sys.modules[name]


def _nothing() -> None:
    """Do nothing."""


def defer(name: str, afterwards: Callable[[], object] = _nothing) -> None:
    """Have a module imported when it is first used, and `afterwards` called then.

    `name` is one of no package. Where it is imported already, `afterwards` is called at once.
    """
    known = sys.modules.get(name)
    if known is None:
        sys.modules[name] = _Deferred(name, afterwards)
    elif not isinstance(known, _Deferred):
        afterwards()


def import_deferred() -> None:
    """Import all of them now, while their files can be read."""
    for module in list(sys.modules.values()):
        if isinstance(module, _Deferred):
            _module(module)


def defer_inspect() -> None:
    """Have `inspect` imported late, and not for help of one line, in which nothing is indented."""
    defer("inspect")
    module = sys.modules["inspect"]
    if isinstance(module, _Deferred):

        def cleandoc(text: str) -> str:
            if "\n" in text or "\t" in text or text != text.strip():
                return str(_module(module).cleandoc(text))
            return text

        module.__dict__["cleandoc"] = cleandoc

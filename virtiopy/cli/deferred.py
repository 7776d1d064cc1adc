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
        # `from MODULE import NAME` asks for it, also where the name is a stand-in's.
        if attribute == "__path__" and self.__dict__.get("_is_file"):
            raise AttributeError(attribute)
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


def import_click() -> None:
    """Import click, and not what it imports for types, languages and help that are not used."""
    defer("inspect")
    _stand_in("inspect", cleandoc=_cleandoc)
    # Its own words are in English as ours are: it has no catalogues of others.
    defer("gettext")
    _stand_in("gettext", gettext=_gettext, ngettext=_ngettext)
    classes = (("datetime", "datetime"), ("uuid", "UUID"))
    for module, name in classes:
        defer(module)
        _stand_in(module, **{name: _LaterType(name, (), {"__module__": module})})
    import click  # noqa: F401

    # Only click's stay: another module may inherit from these.
    for module, name in classes:
        if isinstance(deferred := sys.modules[module], _Deferred):
            del deferred.__dict__[name]


def _stand_in(name: str, **attributes: object) -> None:
    """Give a module that is not imported yet, and no package, names for which it need not be."""
    if isinstance(module := sys.modules[name], _Deferred):
        module.__dict__.update(attributes, _is_file=True)


def _cleandoc(text: str) -> str:
    """Indent nothing in help of one line."""
    if "\n" in text or "\t" in text or text != text.strip():
        return str(_imported("inspect").cleandoc(text))
    return text


def _gettext(message: str) -> str:
    return message


def _ngettext(singular: str, plural: str, count: int) -> str:
    return singular if count == 1 else plural


class _LaterType(type):
    """The type of a class that stands for another, whose module is imported when it is used."""

    def _real(cls) -> type:
        real: type = getattr(_imported(cls.__module__), cls.__name__)
        return real

    def __getattr__(cls, name: str) -> object:
        return getattr(cls._real(), name)

    def __call__(cls, *values: object, **named: object) -> object:
        return cls._real()(*values, **named)

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, cls._real())


def _imported(name: str) -> ModuleType:
    module = sys.modules[name]
    return _module(module) if isinstance(module, _Deferred) else module

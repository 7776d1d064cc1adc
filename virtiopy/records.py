"""Data classes for what the smallest guest takes.

`dataclasses` compiles three functions of each class at import. For a CPU's registers and exits
that takes longer than it takes KVM to make the CPU: here the functions are the same for all.
"""

from typing import Any, ClassVar, Self, dataclass_transform


@dataclass_transform()
class _RecordType(type):
    """Makes slots of a class's annotated names, and keeps their defaults apart.

    A name of the class's own `__slots__` is no value of the record's.
    """

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> "_RecordType":
        own = tuple(each for each in body.get("__annotations__", ()) if not each.startswith("_"))
        inherited = bases[0] if bases else None
        body["__slots__"] = (*own, *body.get("__slots__", ()))
        body["__match_args__"] = (*getattr(inherited, "__match_args__", ()), *own)
        defaults = {each: body.pop(each) for each in own if each in body}
        body["_defaults"] = {**getattr(inherited, "_defaults", {}), **defaults}
        return super().__new__(cls, name, bases, body)


class Record(metaclass=_RecordType):
    """What `@dataclass(slots=True)` makes of a class, of which this is the base.

    A default that is a record is copied for each new one.
    """

    __match_args__: ClassVar[tuple[str, ...]]
    _defaults: ClassVar[dict[str, Any]]

    def __init__(self, *values: object, **named: object) -> None:
        names = self.__match_args__
        if len(values) > len(names):
            raise TypeError(f"{type(self).__name__}() takes {len(names)} values, not {len(values)}")
        given = dict(zip(names, values, strict=False))
        if unknown := [name for name in named if name in given or name not in names]:
            raise TypeError(f"{type(self).__name__}() takes no {unknown[0]!r}, or has it already")
        given.update(named)
        for name in names:
            if name in given:
                value = given[name]
            elif name in self._defaults:
                value = self._defaults[name]
                if isinstance(value, Record):
                    value = value.replace()
            else:
                raise TypeError(f"{type(self).__name__}() lacks {name!r}")
            setattr(self, name, value)

    def replace(self, **named: object) -> Self:
        """Return another with the same values but for those given."""
        return type(self)(**dict(zip(self.__match_args__, self._values(), strict=True)) | named)

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]  # as of all that can change and be equal

    def __repr__(self) -> str:
        shown = zip(self.__match_args__, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown)})"

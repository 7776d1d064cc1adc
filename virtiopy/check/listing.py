"""The statements to drivers as a text, each with who watches it or why it cannot be seen."""

import textwrap
from collections.abc import Iterator
from itertools import groupby

from virtiopy.check.catalogue import Area, DriverStatement, load
from virtiopy.check.hostile import HOSTILE
from virtiopy.check.variants import VARIANTS
from virtiopy.check.withheld import PREFIX
from virtiopy.errors import ConfigError

_ID, _TEXT, _WIDTH = 18, 30, 100


def listing(part: str | None) -> Iterator[str]:
    """Yield the lines, of a part if one is named: a section's number, or as "blk" is.

    Raises ConfigError for a part that there is not.
    """
    found = [one for one in load().values() if part is None or _in(part, one)]
    if not found:
        names = ", ".join(area.value for area in Area)
        raise ConfigError(
            f"No statement to a driver is in {part}: name a section, as 2.7, or one of {names}."
        )
    watched = sum(one.watcher is not None for one in found)
    provoked = sum(one.variant is not None for one in found)
    yield (
        f"virtio 1.4: {len(found)} statements to drivers, {watched} watched, {provoked} that take "
        f"an unusual device, {len(found) - watched - provoked} that no device can see"
    )
    for section, members in groupby(found, key=lambda one: one.section):
        statements = list(members)
        title = statements[0].title.removeprefix("Driver Requirements: ")
        yield ""
        yield f"{section} {title}"
        for one in statements:
            yield from _lines(one)


def _in(part: str, statement: DriverStatement) -> bool:
    return part == statement.area.value or f"{statement.section}.".startswith(f"{part}.")


def _lines(statement: DriverStatement) -> Iterator[str]:
    first = f"  {statement.id:<{_ID - 2}}{statement.keyword.value:<{_TEXT - _ID}}"
    indent = " " * _TEXT
    yield from textwrap.wrap(
        statement.paraphrase, _WIDTH, initial_indent=first, subsequent_indent=indent
    )
    if statement.watcher is not None:
        how = f"watched by {statement.watcher.value}"
    elif statement.variant is not None:
        how = f"takes the device variant {statement.variant}"
    else:
        how = f"not observable: {statement.unobservable}"
    yield from textwrap.wrap(how, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def variant_listing() -> Iterator[str]:
    """Yield the lines of the unusual and the hostile devices."""
    yield "Legal but unusual devices, for --device-variant:"
    for variant in VARIANTS.values():
        yield f"  {variant.name:<22} {variant.text} ({variant.section})"
    yield f"  {f'{PREFIX}FEATURE':<22} does not offer this feature, nor what requires it (2.2)"
    yield ""
    yield "Devices that break the specification, for --hostile:"
    for hostile in HOSTILE.values():
        yield f"  {hostile.name:<22} {hostile.text}"

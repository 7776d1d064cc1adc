"""The man page, made from the help: `virtiopy --man`."""

import re
from collections.abc import Iterator

import click

from virtiopy import __version__


def man_page(group: click.Group, context: click.Context) -> str:
    """Return the page of a command and all its subcommands, for man(7)."""
    name = context.info_name or "virtiopy"
    short = _escaped((group.help or "").strip().rstrip("."))
    lines = [
        f'.TH {name.upper()} 1 "" "{name} {__version__}" "User Commands"',
        *(".SH NAME", f"{name} \\- {short}"),
        *(".SH SYNOPSIS", f".B {name}", "[OPTIONS] COMMAND [ARGS]..."),
        *(".SH OPTIONS", *_options(group, context)),
    ]
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command is not None
        below = click.Context(command, info_name=word, parent=context)
        usage = _escaped(" ".join(command.collect_usage_pieces(below)))
        lines += [f'.SH "{name.upper()} {word.upper()}"', f".B {name} {word}", usage]
        lines += [*_text(command.help or ""), *_options(command, below)]
        lines += _text(command.epilog or "")
    return "\n".join(lines) + "\n"


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        if (record := parameter.get_help_record(context)) is not None:
            yield ".TP"
            # A line may be broken in a long one, and need not be filled.
            names = re.sub(r"([,|\]])", r"\1\\:", _escaped(record[0]))
            yield from (".na", f"\\fB{names}\\fR", ".ad")
            yield _escaped(record[1])


def _text(text: str) -> Iterator[str]:
    r"""Yield paragraphs; one that begins with click's \\b keeps its lines."""
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if paragraph.startswith("\b"):
            yield from (".PP", ".nf", *map(_escaped, paragraph.split("\n")[1:]), ".fi")
        elif paragraph.strip():
            yield from (".PP", _escaped(" ".join(paragraph.split())))


def _escaped(text: str) -> str:
    """Write a line so that roff shows it as it is."""
    text = " ".join(text.splitlines()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text

"""The command itself: global options, subcommands that are imported when asked for, errors."""

import gc
import io
import sys
from collections.abc import Callable

import click

from virtiopy import __version__
from virtiopy.cli.deferred import defer
from virtiopy.cli.output import OutputError, discard_standard_output, open_standard_files
from virtiopy.cli.signals import signal_of
from virtiopy.errors import VirtiopyError
from virtiopy.sizes import shorten_words

#: Exit statuses besides 0: the guest reports failure; the user, the host or the guest is at fault.
EXIT_GUEST_FAILED = 1
EXIT_ERROR = 2
EXIT_SIGNAL = 128  # and the signal's number

#: Where click keeps how often -v was given.
_VERBOSITY = "virtiopy.verbosity"

#: Subcommand: its one line of help. The module of the same name has it as `command`.
SUBCOMMANDS = {
    "run": "Run a guest driver or a kernel in a VM with virtio devices, and count its exits.",
    "linux": "Boot Linux with virtio devices, and run a command or a shell in it.",
    "serve": "Serve a device to another VMM over vhost-user.",
    "proxy": "Stand between a vhost-user frontend and a backend: show, judge, record what passes.",
    "replay": "Play a recorded driver to another backend, and say where it answers otherwise.",
    "conformance": "Put any virtio backend through the specification.",
    "check": "List what drivers are held against; `run --check-driver` holds them.",
    "exits": "Compare what each way of doing I/O costs, in exits and in time.",
    "ctl": "Give commands to a guest's devices while it runs.",
    "hello": "Run the smallest guest of each CPU mode.",
    "doctor": "Show what this host can do, and how to get what it lacks.",
}


class LazyGroup(click.Group):
    """Imports a subcommand's module when it is called, not to show the list."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the subcommands."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand."""
        if cmd_name not in SUBCOMMANDS:
            return None
        module = __import__(f"virtiopy.cli.{cmd_name}", fromlist=["command"])
        command: click.Command = module.command
        if not any("-v" in parameter.opts for parameter in command.params):
            command.params.append(verbose_option())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


def verbose_option() -> click.Option:
    """Make the option -v, which may stand before a subcommand and after it."""
    return click.Option(
        ["-v", "--verbose"],
        count=True,
        expose_value=False,
        is_eager=True,
        callback=_be_verbose,
        help="Tell what goes on; twice for every detail.",
    )


def _be_verbose(ctx: click.Context, option: click.Parameter, count: int) -> None:
    root = ctx.find_root()
    root.meta[_VERBOSITY] = verbosity = root.meta.get(_VERBOSITY, 0) + count
    if verbosity:
        import logging

        logging.getLogger().setLevel(logging.INFO if verbosity == 1 else logging.DEBUG)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: virtiopy run --disk disk.img",
)
@click.version_option(__version__, prog_name="virtiopy")
def cli() -> None:
    """Attach disks to a KVM test VM, and see what virtio costs."""


cli.params.append(verbose_option())


def _show_man_page(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from virtiopy.cli.manpage import man_page

        click.echo(man_page(cli, ctx), nl=False)
        ctx.exit()


cli.params.append(
    click.Option(
        ["--man"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_man_page,
        help="Print the man page: virtiopy --man | man -l -",
    )
)


def _set_up_logging() -> None:
    from virtiopy.cli.logs import set_up

    set_up()


def status_of(call: Callable[[], object]) -> int:
    """Return the exit status of what `call` does, and say in one sentence what it raised."""
    try:
        status = call()
        sys.stdout.flush()
    except click.exceptions.Exit as request:
        status = request.exit_code
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(shorten_words(shown.getvalue()), nl=False, err=True)
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo("virtiopy: interrupted", err=True)
        status = EXIT_SIGNAL + signal_of(error)
    except OutputError as error:
        # The interpreter flushes what is left to where it can go.
        discard_standard_output()
        click.echo(f"virtiopy: {error}", err=True)
        status = EXIT_ERROR
    except VirtiopyError as error:
        click.echo(f"virtiopy: {shorten_words(str(error))}", err=True)
        status = EXIT_ERROR
    except BrokenPipeError:
        # The reader of our output has had enough of it, as `| head` has.
        discard_standard_output()
        status = EXIT_GUEST_FAILED
    return status if isinstance(status, int) else 0


def main() -> None:
    """Run the command line; what is the user's fault ends in one sentence and status 2."""
    open_standard_files()
    # Most of what is run from a command line has nothing to log.
    defer("logging", _set_up_logging)
    status = status_of(lambda: cli.main(standalone_mode=False, prog_name="virtiopy"))
    # What is left at the end is not looked through for garbage: the kernel takes all of it.
    gc.freeze()
    sys.exit(status)


if __name__ == "__main__":
    main()

"""virtiopy conformance: the conformance suite, put to a target; and two of its reports compared."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virtiopy.cli.campaign import campaign
from virtiopy.cli.main import EXIT_ERROR
from virtiopy.cli.signals import ended_by_signals
from virtiopy.errors import ConfigError

if TYPE_CHECKING:
    import pytest


@click.command("virtiopy conformance compare")
@click.argument("reports", metavar="A.json B.json", nargs=-1, type=click.Path(path_type=Path))
@click.option("--html", metavar="FILE", help="Write them side by side as a page to this file.")
def compare(*, reports: tuple[Path, ...], html: str | None) -> int:
    """Put the reports of runs side by side, and show first where they differ.

    The exit status is 1 if a statement that one of them meets is not met by another.
    """
    from virtiopy.conformance.report import comparison, summary
    from virtiopy.conformance.report.document import read
    from virtiopy.conformance.report.reports import check_path, page_of, write_text

    if len(reports) < 2:
        raise ConfigError(
            "Name two reports to compare, as virtiopy conformance TARGET --report A.json made them."
        )
    page = check_path(html, {".html"}) if html is not None else None
    documents = [(str(path), read(path)) for path in reports]
    sides = comparison.sides(documents)
    rows = comparison.rows(sides)
    for line in summary.compared(sides, rows):
        click.echo(line)
    if page is not None:
        write_text(page, page_of(documents))
    return int(any(comparison.contradicts(row) for row in rows))


class _WithCompare(click.Command):
    """The command, with `compare` or `campaign` in its target's place for one of their own."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: object,
    ) -> click.Context:
        """Go to another command by its name."""
        for name, other in (("compare", compare), ("campaign", campaign)):
            if args[:1] == [name]:
                return other.make_context(f"{info_name} {name}", args[1:], parent)
        return super().make_context(info_name, args, parent, **extra)


@click.command(
    cls=_WithCompare,
    context_settings={"ignore_unknown_options": True},
    epilog="""Example: a disk of qemu-storage-daemon's, a fresh one for each test:

\b
  virtiopy conformance --device blk --spawn 'qemu-storage-daemon
    --blockdev driver=file,node-name=d,filename=scratch.img
    --export vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path={socket}'

virtiopy conformance compare A.json B.json puts two reports side by side, and virtiopy
conformance campaign FILE.toml tests many backends.
""",
)
@click.argument("target", required=False)
@click.argument("pytest_options", nargs=-1, type=click.UNPROCESSED)
@click.option("--device", metavar="NAME", help="What it is: blk, for one.")
@click.option("--spawn", metavar="COMMAND", help="Start a backend a test, at the socket {socket}.")
@click.option(
    "--spawn-time",
    metavar="SECONDS",
    help="Give a backend that was started so long to listen (60); its end is noticed at once.",
)
@click.option(
    "--transport",
    type=click.Choice(["mmio", "vhost-user"]),
    help="How a device of this process is reached (mmio).",
)
@click.option("--walks", metavar="N", help="Go so many random walks as a driver (25).")
@click.option(
    "--replay", metavar="FILE", help="Walk the walk in FILE again, and run no other test."
)
@click.option(
    "--frontend",
    metavar="NAME",
    help="Have sessions as this frontend of VMMs has them, or all, and run no other test.",
)
@click.option("--thorough", metavar="SECONDS", help="Go on so long with each random test.")
@click.option("--strict", is_flag=True, help="Have what a device SHOULD do be a failure, too.")
@click.option(
    "--output-format",
    "output",
    type=click.Choice(["text", "github"]),
    help="github: end with annotations for GitHub's runner (text).",
)
@click.option("--patience", metavar="SECONDS", help="Wait so long for what has to come (5).")
@click.option(
    "--jobs",
    metavar="N",
    help="Run so many tests beside one another (inproc:NAME: as many as there are CPUs, else 1).",
)
@click.option(
    "--timeout", metavar="SECONDS", help="Begin no test after so long, and say what was found."
)
@click.option(
    "--report",
    "reports",
    metavar="FILE",
    multiple=True,
    help="Write what every statement came to: .html, .json or .xml (JUnit). May come twice.",
)
@click.option(
    "--clauses",
    is_flag=True,
    help="List the statements and their tests, all or those of the section in TARGET's place.",
)
def command(
    *,
    target: str | None,
    pytest_options: tuple[str, ...],
    device: str | None,
    spawn: str | None,
    spawn_time: str | None,
    transport: str | None,
    walks: str | None,
    replay: str | None,
    frontend: str | None,
    patience: str | None,
    jobs: str | None,
    timeout: str | None,
    thorough: str | None,
    strict: bool,
    output: str | None,
    reports: tuple[str, ...],
    clauses: bool,
) -> int:
    """Put TARGET through the virtio specification, and say what it does not meet.

    TARGET is inproc:NAME for a device of virtiopy's, vhost-user:SOCKET for a backend that
    listens there, or python:MODULE:FACTORY for a device of your own. What a disk has on it is
    lost. PYTEST_OPTIONS go to pytest: -k WORDS for some tests, -x to stop at the first failure.
    """
    import pytest

    if clauses:
        _list_clauses(target)
        return 0
    rest = list(pytest_options)
    if target is not None and target.startswith("-"):
        # An option of pytest's, and no target.
        rest.insert(0, target)
        target = None
    if target is None and spawn is None:
        raise ConfigError("Say what to put to the test: inproc:blk, for one, or --spawn COMMAND.")
    given = {
        "target": target,
        "device": device,
        "spawn": spawn,
        "spawn-time": spawn_time,
        "transport": transport,
        "walks": walks,
        "replay": replay,
        "frontend": frontend,
        "patience": patience,
        "jobs": jobs,
        "timeout": timeout,
        "thorough": thorough,
        "output": output,
    }
    options = [f"--virtio-{name}={value}" for name, value in given.items() if value is not None]
    options += ["--virtio-strict"] if strict else []
    options += [f"--virtio-report={report}" for report in reports]
    # A module of the user's is imported from where they are.
    sys.path.insert(0, str(Path.cwd()))
    # The suite's own settings alone: whatever folder this is, no code of its is run.
    alone = ["-c", "/dev/null", "--noconftest", "-p", "no:cacheprovider", "--strict-markers"]
    # It would run a test again that is to be a finding, and its thread keeps the run from forking.
    alone += ["-p", "no:rerunfailures"]
    if not any(option.startswith("--hypothesis") for option in rest):
        # Walks ask hypothesis itself. Its plugin imports it in each run, a fifth of a short one's
        # time.
        alone += ["-p", "no:hypothesispytest"]
    # Of the package itself: the command line has it before pytest looks at its plugins.
    alone += ["-W", "ignore:Module already imported"]
    # The findings say more than pytest's summary, and than what it shows of each test.
    alone += ["-rN", "--tb=no"]
    ending = _Ending()
    with ended_by_signals():
        status = pytest.main(
            [*alone, "--pyargs", "virtiopy.conformance", *options, *rest], plugins=[ending]
        )
    if ending.error is not None:
        raise ending.error
    return EXIT_ERROR if status == pytest.ExitCode.USAGE_ERROR else int(status)


class _Ending:
    """Keeps the signal that ended pytest's session, which has one status for all."""

    error: KeyboardInterrupt | None = None

    def pytest_keyboard_interrupt(self, excinfo: "pytest.ExceptionInfo[BaseException]") -> None:
        """Take Ctrl-C and other signals, and not what pytest or the suite itself ended."""
        import pytest

        error = excinfo.value
        if isinstance(error, KeyboardInterrupt) and not isinstance(
            error, pytest.Session.Interrupted
        ):
            self.error = error


def _list_clauses(part: str | None) -> None:
    """Show every statement: its tests, or why there is none."""
    from virtiopy.conformance.clauses.listing import listing

    # A program that searches the list does not want it wrapped.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in listing(part, width):
        click.echo(line)

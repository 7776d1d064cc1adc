"""`--device-variant all` and `--hostile all`: a run with each device in turn, and one summary."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from virtiopy import __version__
from virtiopy.cli.check import NO_FILE
from virtiopy.cli.options import note
from virtiopy.cli.signals import ended_by_signals
from virtiopy.errors import ConfigError

if TYPE_CHECKING:
    from virtiopy.check.cases import Case, CaseResult, Files

#: How many lines of a run's output are shown where the run is not right.
_LINES_SHOWN = 12

#: What files a run writes that each case gets a file of its own of.
_FILES = ("trace", "pcap")


def asks_for_turns(*choices: str | None) -> bool:
    """Say whether one of the options asks for several devices in turn."""
    if not any(choices):
        return False
    from virtiopy.check.cases import is_in_turn

    return any(is_in_turn(choice) for choice in choices)


def run_in_turn(context: click.Context, *, with_console: bool) -> int:
    """Run the subcommand of `context` with each device that its options name.

    `with_console` says whether the guest is a kernel, whose console is standard input. The first
    run is with the devices as they are. Returns the status of the worst run; raises ConfigError.
    """
    from virtiopy.check.cases import ALL, Outcome, cases, withheld, worst
    from virtiopy.files import check_output

    params = dict(context.params)
    todo = cases(params["device_variant"], params["hostile"])
    judged = _report_path(params["check_driver"])
    for path in (judged, params["json_path"]):
        if path is not None:
            check_output(path, "The report")
    results: list[CaseResult] = []
    with (
        ended_by_signals(),
        tempfile.TemporaryDirectory(prefix="virtiopy-cases-") as folder,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(lambda: _summary(results, judged, params))
        while len(results) < len(todo):
            case = todo[len(results)]
            result = _run(context, case, Path(folder), results, with_console=with_console)
            if result.outcome is Outcome.NOT_RUN and not results:
                # What keeps one from running keeps all.
                click.echo(result.output.rstrip(), err=True)
                return result.status
            results.append(result)
            if len(results) == 1 and params["device_variant"] == ALL:
                # What the devices offer is known now.
                unusual = len(cases(ALL, None))
                todo[unusual:unusual] = withheld(result.offered)
            _tell(result, len(results), len(todo))
    return worst(results)


def _report_path(choice: str | None) -> Path | None:
    if choice is None or choice == NO_FILE:
        return None
    from virtiopy.check.report import FORMS

    path = Path(choice)
    if path.suffix not in FORMS:
        raise ConfigError(
            f"--check-driver={choice}: end the report's name with one of {', '.join(FORMS)}."
        )
    return path


def _run(
    context: click.Context,
    case: "Case",
    folder: Path,
    earlier: "Sequence[CaseResult]",
    *,
    with_console: bool,
) -> "CaseResult":
    """Run one case in a process of its own: what a sandbox gives up is given up for good."""
    from virtiopy.check.cases import CaseKind, Files, read_result

    files = Files.make(folder / case.name)
    params = dict(context.params)
    params["device_variant"] = case.name if case.kind is CaseKind.VARIANT else None
    params["hostile"] = case.name if case.kind is CaseKind.HOSTILE else None
    params["json_path"] = files.run
    if params["check_driver"] is not None:
        params["check_driver"] = str(files.judged)
    if params["timeout"] is None:
        params["timeout"] = _patience(earlier)
    if with_console and params.get("serial", "") is None:
        params["serial"] = "stdout"
    for name in _FILES:
        if params.get(name) not in (None, NO_FILE):
            params[name] = type(params[name])(_with_name(Path(params[name]), case.name))
    callback = context.command.callback
    assert callback is not None
    status = _in_a_child(lambda: callback(**params), files)
    return read_result(case, files, status)


def _patience(earlier: "Sequence[CaseResult]") -> float | None:
    """Return how long a run may take, in seconds: what the first took says."""
    from virtiopy.check.cases import PATIENCE_LEAST, PATIENCE_TIMES

    if not earlier:
        return None
    return max(PATIENCE_LEAST, PATIENCE_TIMES * earlier[0].seconds)


def _with_name(path: Path, name: str) -> str:
    return str(path.with_name(f"{path.stem}.{name}{path.suffix}"))


def _in_a_child(call: Callable[[], Any], files: "Files") -> int:
    """Call something in a child process with its output in a file, and return its status."""
    from virtiopy.cli.main import status_of

    sys.stdout.flush()
    sys.stderr.flush()
    # There are no threads yet, and the modules need not be imported again.
    child = os.fork()
    if child == 0:
        status = 2
        try:
            _redirect(files.output)
            status = status_of(call)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            # Whatever happened, this process does not go on as its parent.
            os._exit(status)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 15)
        os.waitpid(child, 0)
        raise


def _redirect(output: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.close(written)


def _tell(result: "CaseResult", number: int, count: int) -> None:
    click.echo(f"[{number}/{count}] {result.case.name}: {result.outcome}", nl=False)
    click.echo(f", {result.seconds:.1f} s" if result.seconds else "")
    if not result.survived:
        for line in result.said_last(_LINES_SHOWN):
            click.echo(f"    {line}")


def _summary(
    results: "Sequence[CaseResult]", judged: Path | None, params: Mapping[str, Any]
) -> None:
    """Show the table, and write the reports that were asked for."""
    from rich.console import Console
    from rich.table import Table

    from virtiopy.check import report
    from virtiopy.check.cases import document, merge, rows, worst
    from virtiopy.cli.tables import number_column, show_table
    from virtiopy.files import write_output

    if not results:
        return
    verdict = merge(results)
    table = Table("Devices", "the guest")
    for name in ("MUST broken", "SHOULD broken", "seconds"):
        number_column(table, name)
    for row in rows(results):
        table.add_row(*row)
    show_table(Console(), table)
    for result in results:
        if result.why:
            click.echo(f"{result.case.name}: the guest {result.outcome}: {result.why}.")
    if params["check_driver"] is not None:
        for line in report.lines(verdict):
            click.echo(line)
    right = sum(result.is_right for result in results)
    click.echo(f"{right} of {len(results)} runs are right.")
    if judged is not None:
        report.write(verdict, judged, told=note)
    if params["json_path"] is not None:
        whole = {
            "virtiopy": __version__,
            "status": worst(results),
            "runs": document(results),
            "drivers": report.document(verdict) if params["check_driver"] is not None else None,
        }
        text = json.dumps(whole, indent=2) + "\n"
        write_output(params["json_path"], "The report", text, told=note)

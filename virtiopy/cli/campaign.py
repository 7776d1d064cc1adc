"""virtiopy conformance campaign: the suite, put to many backends on many machines."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from virtiopy.errors import ConfigError


@click.command("virtiopy conformance campaign")
@click.argument("plan", metavar="FILE.toml", type=click.Path(path_type=Path))
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Dask's scheduler (a local cluster).")
@click.option("--workers", metavar="N", default=2, type=click.IntRange(1), help="Of that (2).")
@click.option(
    "--folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Where what is done is kept: FILE's name without .toml, beside it.",
)
def campaign(*, plan: Path, scheduler: str | None, workers: int, folder: Path | None) -> int:
    """Put backends, in versions, through the suite, and write one page of all.

    What is done is kept, and not done again by the next run of the same FILE. The page is
    matrix.html in the FOLDER, and matrix.json has the same. The exit status is 1 where a statement
    is not met, and 2 where a run has come to no report.
    """
    from virtiopy.conformance.campaign.matrix import matrix
    from virtiopy.conformance.campaign.plan import load

    cells = load(plan)
    try:
        from virtiopy.conformance.campaign.cluster import kept, run_all
        from virtiopy.conformance.campaign.page import render
    except ImportError as error:
        raise ConfigError(
            f"A campaign needs what is not here ({error}): "
            "install it with pip install 'virtiopy[campaign]'."
        ) from error
    folder = folder or plan.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    done = kept(folder, cells)
    if done:
        click.echo(f"{len(done)} of {len(cells)} runs are done already")
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("runs", total=len(cells), completed=len(done))
        todo = [cell for cell in cells if cell.key not in done]
        for one in run_all(todo, folder, scheduler=scheduler, workers=workers) if todo else ():
            done[one["key"]] = one
            progress.advance(task)
            progress.console.print(f"{one['key']}: exit status {one['status']}", highlight=False)
    found = matrix([done[cell.key] for cell in cells])
    (folder / "matrix.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "matrix.html").write_text(render(found))
    for failure in found["failures"]:
        columns = ", ".join(failure["columns"])
        first = failure["evidence"].partition("\n")[0]
        click.echo(f"{failure['statement']} {failure['outcome']}: {columns}: {first}")
    click.echo(f"{folder / 'matrix.html'}: {len(found['failures'])} different failures")
    if found["errors"]:
        return 2
    return int(any(failure["outcome"] == "failed" for failure in found["failures"]))

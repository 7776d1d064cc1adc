"""The cells of a campaign on a cluster of Dask's: one on this machine, or any by its address.

Importing this needs the extra "campaign".
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from distributed import Client, LocalCluster, as_completed

from virtiopy.conformance.campaign.cell import Done, run
from virtiopy.conformance.campaign.plan import Cell
from virtiopy.errors import ConfigError

#: Seconds within which a scheduler has to answer.
_CONNECT = 10


def kept(folder: Path, cells: Sequence[Cell]) -> dict[str, Done]:
    """Return what earlier runs have left in `folder` of these cells, by their keys."""
    found: dict[str, Done] = {}
    for cell in cells:
        with contextlib.suppress(FileNotFoundError):
            found[cell.key] = json.loads((folder / f"{cell.key}.json").read_text())
    return found


def run_all(
    cells: Sequence[Cell], folder: Path, *, scheduler: str | None, workers: int
) -> Iterator[Done]:
    """Run cells, and yield what each came to when it is done; it is kept in `folder` before.

    On `scheduler`, or on `workers` processes of this machine. Raises ConfigError.
    """
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=50
                )
            )
            client = stack.enter_context(Client(cluster))
        else:
            try:
                client = stack.enter_context(Client(scheduler, timeout=_CONNECT))
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"No Dask scheduler answers at {scheduler} ({error}): start one, as "
                    "dask scheduler, or leave --scheduler out."
                ) from error
        futures = client.map(run, cells, pure=False, retries=1)
        for _, done in as_completed(futures, with_results=True):
            path = folder / f"{done['key']}.json"
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(done))
            partial.rename(path)
            yield done

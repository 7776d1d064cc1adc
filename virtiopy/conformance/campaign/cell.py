"""One run of the suite on a worker: a process of its own, in a folder of its own."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypedDict

from virtiopy.conformance.campaign.plan import Cell
from virtiopy.conformance.report.document import Document

#: Bytes of a run's output that are kept.
_SAID = 4000


class Done(TypedDict):
    """What a cell came to: `document` is null where there is no report, and `said` says why."""

    key: str
    backend: str
    version: str
    device: str
    variant: str
    seed: int
    status: int
    said: str
    document: Document | None


def run(cell: Cell) -> Done:
    """Run the suite for a cell."""
    with tempfile.TemporaryDirectory(prefix="virtiopy-campaign-") as name:
        folder = Path(name)
        report, image = folder / "report.json", folder / "image"
        if cell.image:
            with image.open("wb") as file:
                file.truncate(cell.image)
        options = [option.replace("{image}", str(image)) for option in cell.options]
        command = [sys.executable, "-m", "virtiopy", "conformance", *options, "-q"]
        done = subprocess.run(
            [*command, f"--report={report}"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        document = json.loads(report.read_text()) if report.exists() else None
    return Done(
        key=cell.key,
        backend=cell.backend,
        version=cell.version,
        device=cell.device,
        variant=cell.variant,
        seed=cell.seed,
        status=done.returncode,
        said=done.stdout[-_SAID:],
        document=document,
    )

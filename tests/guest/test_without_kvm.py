import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.guest.support import (
    ISOLATED,
    VIRTIOPY,
    Outcome,
    greeting,
    holds_final_pattern,
    make_image,
    needs_isolation,
    run_guest,
)
from virtiopy.vm.hello import Mode

pytest.importorskip("unicorn", reason="Unicorn is missing: pip install 'virtiopy[tcg]'")

ROOT = Path(__file__).parent.parent.parent


def without_kvm(*command: str) -> Outcome:
    # In a mount namespace of its own, /dev/kvm is something that is not KVM.
    if not os.path.exists("/dev/kvm"):
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    else:
        hide = 'mount --bind /dev/null /dev/kvm && exec "$@"'
        done = subprocess.run(
            [*ISOLATED, "sh", "-c", hide, "sh", *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
    return Outcome(done.returncode, done.stdout, done.stderr, {})


@needs_isolation
def test_auto_runs_every_mode_on_the_software_cpu_and_says_so_once() -> None:
    outcome = without_kvm(*VIRTIOPY, "hello")

    assert outcome.status == 0, outcome.errors
    assert outcome.output == "".join(greeting(mode) for mode in Mode)
    notes = outcome.errors.splitlines()
    assert len(notes) == 1
    assert "Running on the software CPU (tcg)" in notes[0]


@needs_isolation
def test_asking_for_kvm_is_an_error_with_its_remedy() -> None:
    outcome = without_kvm(*VIRTIOPY, "hello", "--accel", "kvm")

    assert outcome.status == 2
    assert outcome.errors.startswith("virtiopy: /dev/kvm ")
    assert outcome.errors.count("\n") == 1


@needs_isolation
def test_the_demo_passes_and_says_what_it_ran_on() -> None:
    if not (ROOT / ".venv/bin/virtiopy").exists():
        pytest.skip("the demo runs what make setup installs, and that is not there")
    outcome = without_kvm("scripts/demo")

    assert outcome.status == 0, outcome.errors
    assert "Running on the software CPU (tcg)" in outcome.errors
    report = json.loads((ROOT / "build/demo/report.json").read_text())
    assert report["passed"]
    assert report["accelerator"] == "tcg"


def test_the_report_has_no_kernel_counts_where_there_is_no_kernel_to_count(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    outcome = run_guest(tmp_path, "blk", "--accel", "tcg", "--disk", image)

    assert outcome.status == 0, outcome.failures()
    assert outcome.report["accelerator"] == "tcg"
    assert outcome.report["exits"]["kernel"] is None
    assert outcome.report["exits"]["light"] is None
    assert holds_final_pattern(image)

"""The suite can fail: each mutant is found out by a test of the statement that it breaks."""

import importlib
import os
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.conformance import mutants
from tests.conformance.mutants import Mutant
from tests.conformance.runs import REPOSITORY, SuiteRuns, group_of, run_pytest
from tests.conformance.zoned import build_zoned
from virtiopy.conformance.marks import clauses_to_tests
from virtiopy.conformance.report.document import Document, read
from virtiopy.conformance.targets.builders import BUILDERS, Factory

#: How long a mutant is waited for, and a sound device: that may be slow, on a slow machine.
PATIENCE = {"broken": 0.5, "sound": 10}

#: The sound devices that test_targets.py puts to the suite anyway.
WHOLE: Mapping[Factory, str] = {
    **{builder: f"inproc:{name}" for name, builder in BUILDERS.items()},
    build_zoned: "python:tests.conformance.zoned:build_zoned",
}

MODULE = """\
from tests.conformance.mutants.{area} import MUTANTS
from virtiopy.conformance.targets.target import inproc

virtio_target = {target}
"""


def load(area: str) -> Sequence[Mutant]:
    module = importlib.import_module(f"tests.conformance.mutants.{area}")
    listed: Sequence[Mutant] = module.MUTANTS
    return listed


AREAS = {module.name: load(module.name) for module in pkgutil.iter_modules(mutants.__path__)}

MUTANTS = [
    pytest.param(area, mutant, id=f"{mutant.name}-{mutant.clause}", marks=group_of(area))
    for area, listed in AREAS.items()
    for mutant in listed
]


@dataclass(slots=True, frozen=True)
class Run:
    """What became of tests, and what pytest said of it."""

    document: Document
    output: str

    def outcomes(self, target: str, clause: str) -> set[str]:
        """Return how the tests of a statement ended on a target."""
        return {
            test["outcome"]
            for test in self.document["tests"]
            if test["target"] == target and clause in test["clauses"]
        }


def selection(clauses: Iterable[str]) -> Iterator[str]:
    """Yield the tests of statements, as a target's module has them."""
    tests = clauses_to_tests()
    names = {name for clause in clauses for name in tests.get(clause, ())}
    for path, _, name in (test.partition("::") for test in sorted(names)):
        yield f"virtio_target::{Path(path).stem}::{name}"


def run(area: str, kind: str, targets: Mapping[str, Iterable[str]], folder: Path) -> Run:
    """Run the tests of the statements for each target, which is an expression."""
    tests: list[str] = []
    for number, (target, clauses) in enumerate(targets.items()):
        path = folder / f"test_{kind}_{number}.py"
        path.write_text(MODULE.format(area=area, target=target))
        tests += [f"{path.name}::{test}" for test in selection(clauses)]
    report = folder / f"{kind}.json"
    done = run_pytest(
        *tests,
        "--tb=short",
        f"--virtio-patience={PATIENCE[kind]}",
        f"--virtio-report={report}",
        folder=folder,
        environment={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}, (
        done.stdout + done.stderr
    )
    return Run(read(report), done.stdout)


class Runs:
    """The runs of each area: one of all its mutants, one of their sound devices."""

    def __init__(self, factory: pytest.TempPathFactory, suite_runs: SuiteRuns) -> None:
        self.broken = cache(self._broken)
        self._sound = cache(self._run_sound)
        self._factory = factory
        self._suite_runs = suite_runs

    def _broken(self, area: str) -> Run:
        targets = {
            f"MUTANTS[{number}].target": [mutant.clause]
            for number, mutant in enumerate(AREAS[area])
        }
        return run(area, "broken", targets, self._factory.mktemp(area))

    def sound(self, area: str, mutant: Mutant) -> tuple[Run, str]:
        """Return a run with the sound device of a mutant, and what that is called there."""
        if (target := WHOLE.get(mutant.sound)) is not None:
            whole = self._suite_runs.on(target, "mmio")
            return Run(whole.document, whole.output), target
        return self._sound(area), f"python:{self._own(area)[mutant.sound]}"

    def _own(self, area: str) -> Mapping[Factory, str]:
        """Return the area's sound devices that nothing else is put to, as expressions."""
        own: dict[Factory, str] = {}
        for number, mutant in enumerate(AREAS[area]):
            if mutant.sound not in WHOLE:
                own.setdefault(mutant.sound, f"MUTANTS[{number}].sound")
        return own

    def _run_sound(self, area: str) -> Run:
        targets = {
            f'inproc({name}, name="{name}")': [
                mutant.clause for mutant in AREAS[area] if mutant.sound == sound
            ]
            for sound, name in self._own(area).items()
        }
        return run(area, "sound", targets, self._factory.mktemp(area))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, suite_runs: SuiteRuns) -> Runs:
    return Runs(tmp_path_factory, suite_runs)


@pytest.mark.parametrize(("area", "mutant"), MUTANTS)
def test_a_mutant_fails_a_test_of_the_statement_that_it_breaks(
    runs: Runs, area: str, mutant: Mutant
) -> None:
    done = runs.broken(area)
    assert "failed" in done.outcomes(mutant.target.name, mutant.clause), done.output


@pytest.mark.parametrize(("area", "mutant"), MUTANTS)
def test_the_sound_device_fails_no_test_of_the_statement_and_passes_one(
    runs: Runs, area: str, mutant: Mutant
) -> None:
    done, target = runs.sound(area, mutant)
    outcomes = done.outcomes(target, mutant.clause)
    assert "passed" in outcomes
    assert "failed" not in outcomes, done.output

"""The suite can fail: each mutant is found out by a test of the statement that it breaks."""

import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.conformance import mutants
from tests.conformance.mutants import Mutant
from tests.conformance.runs import Once, SuiteRun, WholeRuns, keep, kept
from tests.conformance.zoned import build_zoned
from virtiopy.conformance.marks import clauses_to_tests
from virtiopy.conformance.targets.builders import BUILDERS, Factory

# It tests the suite, and not what the suite tests: for `make test`.
pytestmark = pytest.mark.thorough

#: How long a mutant is waited for, and a sound device: that may be slow, on a slow machine.
PATIENCE = {"broken": 1.5, "sound": 10}

#: How many mutants of an area share a run.
PART = 20

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

#: Statements that a test remarks on, and passes.
REMARKED = {"2.6:2"}

MUTANTS = [
    pytest.param(area, mutant, id=f"{mutant.name}-{mutant.clause}")
    for area, listed in AREAS.items()
    for mutant in listed
]


def selection(clauses: Iterable[str]) -> Iterator[str]:
    """Yield the tests of statements, as a target's module has them."""
    tests = clauses_to_tests()
    names = {name for clause in clauses for name in tests.get(clause, ())}
    for path, _, name in (test.partition("::") for test in sorted(names)):
        yield f"virtio_target::{Path(path).stem}::{name}"


def run(area: str, kind: str, targets: Mapping[str, Iterable[str]], folder: Path) -> None:
    """Run the tests of the statements for each target, which is an expression."""
    tests: list[str] = []
    for number, (target, clauses) in enumerate(targets.items()):
        path = folder / f"test_{kind}_{number}.py"
        path.write_text(MODULE.format(area=area, target=target))
        tests += [f"{path.name}::{test}" for test in selection(clauses)]
    keep(folder, *tests, "--tb=short", f"--virtio-patience={PATIENCE[kind]}")


@dataclass(slots=True, frozen=True)
class Runs:
    """The runs of each area: of some of its mutants, and of those sound devices that need one."""

    once: Once
    whole: WholeRuns

    def broken(self, area: str, mutant: Mutant) -> SuiteRun:
        """Return the run of a mutant, and of some others of its area."""
        part = AREAS[area].index(mutant) // PART
        targets = {
            f"MUTANTS[{number}].target": [one.clause]
            for number, one in enumerate(AREAS[area])
            if number // PART == part
        }
        name = f"broken-{area}-{part}"
        return kept(self.once.fill(name, partial(run, area, "broken", targets)))

    def sound(self, area: str, mutant: Mutant) -> tuple[SuiteRun, str]:
        """Return a run with the sound device of a mutant, and what that is called there."""
        if (target := WHOLE.get(mutant.sound)) is not None:
            return self.whole.on(target, "mmio"), target
        own: dict[Factory, str] = {}
        clauses: defaultdict[str, list[str]] = defaultdict(list)
        for number, one in enumerate(AREAS[area]):
            if one.sound not in WHOLE:
                name = own.setdefault(one.sound, f"MUTANTS[{number}].sound")
                clauses[f'inproc({name}, name="{name}")'].append(one.clause)
        folder = self.once.fill(f"sound-{area}", partial(run, area, "sound", clauses))
        return kept(folder), f"python:{own[mutant.sound]}"


@pytest.fixture(scope="session")
def runs(once: Once, whole_runs: WholeRuns) -> Runs:
    return Runs(once, whole_runs)


@pytest.mark.parametrize(("area", "mutant"), MUTANTS)
def test_a_mutant_fails_a_test_of_the_statement_that_it_breaks(
    runs: Runs, area: str, mutant: Mutant
) -> None:
    done = runs.broken(area, mutant)
    outcomes = done.outcomes(mutant.target.name, mutant.clause)
    # What a device SHOULD do is a warning, and what is only remarked on fails no test.
    assert outcomes & {"failed", "warning"} or mutant.clause in REMARKED, done.output


@pytest.mark.parametrize(("area", "mutant"), MUTANTS)
def test_the_sound_device_fails_no_test_of_the_statement_and_passes_one(
    runs: Runs, area: str, mutant: Mutant
) -> None:
    done, target = runs.sound(area, mutant)
    outcomes = done.outcomes(target, mutant.clause)
    assert "passed" in outcomes
    assert "failed" not in outcomes, done.output

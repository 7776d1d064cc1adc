"""The suite can fail: each mutant is one finding, of the statement that it breaks."""

import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.conformance import mutants
from tests.conformance.exceptions import EXCEPTIONS
from tests.conformance.mutants import Mutant
from tests.conformance.runs import Once, SuiteRun, WholeRuns, keep, kept
from tests.conformance.zoned import build_zoned
from virtiopy.conformance.clauses.definitions import everything
from virtiopy.conformance.targets.builders import BUILDERS, Factory
from virtiopy.statements.terms import Keyword

# It tests the suite, and not what the suite tests: for `make test`.
pytestmark = pytest.mark.thorough

#: How long a mutant is waited for, and a sound device: that may be slow, on a slow machine.
PATIENCE = {"broken": 3, "sound": 10}

#: How many mutants of an area share a run.
PART = 10

#: The statement that a finding is to name where it is not the mutant's own. A device that does more
#: than it MAY breaks another statement; and the specification makes some statements twice.
FOUND_AS: Mapping[str, str] = {
    "5.1.9.2.2:6": "5.1.9.2.2:7",
    "5.1.9.4.1:2": "5.1.9.3.2:1",
    "5.4.6.2:2": "2.6:3",
    "5.5.3.2:1": "2.6:1",
    "5.5.6.2:1": "5.5.6:1",
    "5.5.6.2:2": "5.5.6:1",
    "5.5.6.5.2:4": "5.5.6:1",
    "5.5.6.7.2:1": "5.5.6:1",
}

#: The sound devices that test_targets.py puts to the suite anyway.
WHOLE: Mapping[Factory, str] = {
    **{builder: f"inproc:{name}" for name, builder in BUILDERS.items()},
    build_zoned: "python:tests.conformance.zoned:build_zoned",
}

#: The files of the suite that an area's mutants are put to, where not to all of it: the zoned
#: device of these tests is made for what is asked of zones.
FILES: Mapping[str, Sequence[str]] = {"zoned": ["test_zoned"]}

MODULE = """\
from tests.conformance.mutants.{area} import MUTANTS
from virtiopy.conformance.targets.target import inproc

virtio_target = {target}
"""

CONFTEST = """\
import pytest

from tests.conformance.selection import narrow, select

OWN = {own}


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if not {whole}:
        narrow(collector, report, OWN)
    return report


def pytest_collection_modifyitems(items):
    select(items, OWN, whole={whole}, files={files})
"""


def load(area: str) -> Sequence[Mutant]:
    module = importlib.import_module(f"tests.conformance.mutants.{area}")
    listed: Sequence[Mutant] = module.MUTANTS
    return listed


AREAS = {module.name: load(module.name) for module in pkgutil.iter_modules(mutants.__path__)}

MUTANTS = [
    pytest.param(
        area,
        mutant,
        id=f"{area}-{mutant.name}-{mutant.clause}",
        # They wait for what does not come, all in all for minutes.
        marks=[pytest.mark.nightly] if area.startswith("vhostuser") else [],
    )
    for area, listed in AREAS.items()
    for mutant in listed
]


def run(
    area: str,
    kind: str,
    targets: Mapping[str, Iterable[str]],
    folder: Path,
    *,
    whole: bool = False,
) -> None:
    """Put targets, which are expressions, to the suite, and above all to their statements."""
    own = {}
    for number, (target, clauses) in enumerate(targets.items()):
        name = f"test_{kind}_{number}.py"
        (folder / name).write_text(MODULE.format(area=area, target=target))
        own[name] = sorted(set(clauses))
    (folder / "conftest.py").write_text(
        CONFTEST.format(own=own, whole=whole, files=FILES.get(area, ()))
    )
    keep(folder, *own, "--tb=short", f"--virtio-patience={PATIENCE[kind]}")


@dataclass(slots=True, frozen=True)
class Runs:
    """The runs of each area: of some of its mutants, and of those sound devices that need one."""

    once: Once
    whole: WholeRuns

    def broken(self, area: str, mutant: Mutant, *, whole: bool) -> SuiteRun:
        """Return the run of a mutant, and of some others of its area."""
        part = AREAS[area].index(mutant) // PART
        targets = {
            f"MUTANTS[{number}].target": [one.clause, finding_of(one)]
            for number, one in enumerate(AREAS[area])
            if number // PART == part
        }
        name = f"{'whole' if whole else 'broken'}-{area}-{part}"
        return kept(self.once.fill(name, partial(run, area, "broken", targets, whole=whole)))

    def sound(self, area: str, mutant: Mutant) -> tuple[SuiteRun, str]:
        """Return a run with the sound device of a mutant, and what that is called there."""
        if (target := WHOLE.get(mutant.sound)) is not None:
            if mutant.served:
                return self.whole.on(target, "vhost-user"), f"{target} over vhost-user"
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


def finding_of(mutant: Mutant) -> str:
    """Return the statement that a mutant's finding is to name."""
    return FOUND_AS.get(mutant.clause, mutant.clause)


def check_findings(done: SuiteRun, mutant: Mutant) -> None:
    """See that a mutant is what it should be found as."""
    failed, warnings = done.findings(mutant.target.name)
    if (exception := EXCEPTIONS.get((mutant.name, mutant.clause))) is not None:
        # Not all of them are in the part of the suite that a mutant is put to by day.
        assert set(failed) <= set(exception.failed), done.output
        assert bool(failed) == bool(exception.failed), done.output
        return
    statement = finding_of(mutant)
    if everything()[statement].keyword in {Keyword.SHOULD, Keyword.SHOULD_NOT}:
        assert failed == [], done.output
        assert statement in warnings, done.output
    else:
        assert failed == [statement], done.output


@pytest.mark.parametrize(("area", "mutant"), MUTANTS)
def test_a_mutant_is_one_finding_of_the_statement_that_it_breaks(
    runs: Runs, area: str, mutant: Mutant
) -> None:
    check_findings(runs.broken(area, mutant, whole=False), mutant)


@pytest.mark.nightly
@pytest.mark.parametrize(("area", "mutant"), MUTANTS)
def test_a_mutant_is_one_finding_in_the_whole_suite(runs: Runs, area: str, mutant: Mutant) -> None:
    check_findings(runs.broken(area, mutant, whole=True), mutant)


@pytest.mark.parametrize(("area", "mutant"), MUTANTS)
def test_the_sound_device_fails_no_test_of_the_statement_and_passes_one(
    runs: Runs, area: str, mutant: Mutant
) -> None:
    done, target = runs.sound(area, mutant)
    outcomes = done.outcomes(target, mutant.clause)
    assert "passed" in outcomes
    assert done.findings(target)[0] == [], done.output


def test_no_exception_is_of_a_mutant_that_there_is_not() -> None:
    known = {(one.name, one.clause) for listed in AREAS.values() for one in listed}
    assert set(EXCEPTIONS) <= known


def test_what_a_device_may_do_is_not_what_a_mutant_is_found_by() -> None:
    clauses = everything()
    for listed in AREAS.values():
        for mutant in listed:
            assert clauses[finding_of(mutant)].keyword is not Keyword.MAY, mutant.name

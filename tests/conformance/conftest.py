"""What the tests of the suite share."""

import pytest

from tests.conformance.exceptions import EXCEPTIONS
from tests.conformance.runs import Once, WholeRuns

#: The tests that say what a mutant is found as.
_MUTANTS = "test_mutants.py::test_a_mutant_is_one_finding"


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Once:
    """Give what is made once for all processes: pytest-xdist gives each a folder in the run's."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent
    return Once(folder / "once")


@pytest.fixture(scope="session")
def whole_runs(once: Once) -> WholeRuns:
    """Give the runs of the suite on devices of this process."""
    return WholeRuns(once)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many mutants are one finding of the statement that they break."""
    counts = {
        outcome: [report for report in reports if _MUTANTS in getattr(report, "nodeid", "")]
        for outcome, reports in terminalreporter.stats.items()
        if outcome in {"passed", "failed"}
    }
    passed = [one for one in counts.get("passed", ()) if one.when == "call"]
    failed = counts.get("failed", [])
    names = ["-".join(pair) for pair in EXCEPTIONS]
    excepted = sum(any(one.nodeid.endswith(f"-{name}]") for name in names) for one in passed)
    if total := len(passed) + len(failed):
        terminalreporter.line(
            f"{len(passed) - excepted} of {total} mutants are one finding, of the statement that "
            f"they break; {excepted} are exceptions (tests/conformance/exceptions.py)"
        )

"""What the tests of the suite share."""

import pytest

from tests.conformance.runs import Once, WholeRuns


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

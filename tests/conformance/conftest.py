"""What the tests of the suite share."""

import pytest

from tests.conformance.runs import SuiteRuns


@pytest.fixture(scope="session")
def suite_runs(tmp_path_factory: pytest.TempPathFactory) -> SuiteRuns:
    """Give the runs of the suite on devices of this process."""
    return SuiteRuns(tmp_path_factory)

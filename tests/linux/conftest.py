"""What a failed test shows: the guest's console and output, fio's, and the backend's log."""

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.lab.machine import new_share

_SHARE = pytest.StashKey[Path]()

#: How many of a file's last lines are shown.
_LINES = 60


@pytest.fixture(scope="module")
def share(request: pytest.FixtureRequest) -> Path:
    """A folder that both sides write to; what is in it is shown when a test fails."""
    folder = new_share()
    folder.mkdir()
    request.node.stash[_SHARE] = folder
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    module = item.getparent(pytest.Module)
    folder = module.stash.get(_SHARE, None) if module else None
    if report.failed and folder is not None:
        for path in sorted([*folder.glob("*.log"), *folder.glob("*.txt")]):
            lines = path.read_text(errors="replace").splitlines()
            report.sections.append((f"the end of {path}", "\n".join(lines[-_LINES:])))
    return report

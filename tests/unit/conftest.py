"""Tests that are run with rings worked by Python, and by threads in C."""

import pytest

from tests.unit.vhost_user import Served

#: The modules whose tests serve devices to a frontend.
NATIVE = {
    "test_vhost_user_backend",
    "test_vhost_user_bad_memory",
    "test_vhost_user_bad_peers",
    "test_vhost_user_lost_memory",
    "test_vhost_user_mutations",
    "test_vhost_user_protocol",
}


@pytest.fixture
def rings_worked_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Served, "native", request.param == "native")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in NATIVE:
        metafunc.fixturenames.insert(0, "rings_worked_by")
        metafunc.parametrize("rings_worked_by", ["python", "native"], indirect=True)

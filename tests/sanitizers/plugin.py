"""A pytest plugin (-p) that has the process use the C part that was built with sanitizers."""

import importlib.util
import sys

import pytest

from tests.sanitizers.paths import LIBRARY

NAME = "virtiopy._native._lib"


def _load() -> None:
    assert NAME not in sys.modules, "the ordinary C part is loaded already"
    spec = importlib.util.spec_from_file_location(NAME, LIBRARY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module


_load()


def pytest_report_header(config: pytest.Config) -> str:
    return f"C part: {sys.modules[NAME].__file__}"

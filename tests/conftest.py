"""Settings that all tests share."""

import gc
import os
import signal
import sys

import pytest

from tests.lab.machine import INSIDE

pytest_plugins = ["tests.lab.plugin"]

# The lab's CPU takes many seconds to import Hypothesis, and no property test runs there. It has its
# bytecode from outside.
if INSIDE not in os.environ:
    # The suite starts hundreds of processes. Where the environment has Python keep no bytecode, as
    # containers often do, each of them would compile the package and its plugins again.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

    from hypothesis import HealthCheck, settings

    # `make test` takes the normal profile, `make check` the quick one; nightly looks much longer.
    _COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("quick", settings(max_examples=50, **_COMMON))  # type: ignore[arg-type]
    settings.register_profile("normal", settings(max_examples=200, **_COMMON))  # type: ignore[arg-type]
    settings.register_profile("nightly", settings(max_examples=10_000, **_COMMON))  # type: ignore[arg-type]
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "normal"))

# A shell has its background jobs ignore these, nohup(1) has its command, and so what they start;
# ours are to be ended.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    # Thousands of tests live as long as the process: no collection has to look at them.
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    # What Hypothesis imports to write a failure down warns of itself where it is old, and a
    # warning there would end the whole run instead of failing the one test.
    config.addinivalue_line("filterwarnings", "ignore:mypy_extensions.TypedDict is deprecated")

"""Settings that all tests share."""

import os

from hypothesis import HealthCheck, settings

# `make test` takes the normal profile; HYPOTHESIS_PROFILE=nightly looks much longer.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("normal", settings(max_examples=200, **_COMMON))  # type: ignore[arg-type]
settings.register_profile("nightly", settings(max_examples=10_000, **_COMMON))  # type: ignore[arg-type]
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "normal"))

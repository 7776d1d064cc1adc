"""How long a test waits for what has to come, on a machine that may have much else to do."""

import pytest

#: Seconds. It passes only where something is broken, so a short one would save nothing.
PATIENCE = 300.0

#: Of a test that holds a time to a bound: a machine that is busy with other things may miss it, and
#: does not miss it four times in a row.
timed = pytest.mark.flaky(reruns=3)

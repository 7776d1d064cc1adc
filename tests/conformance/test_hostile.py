"""The hostile driver finds devices that do not stand it, and says how they did not."""

import os
from pathlib import Path

import pytest

from tests.conformance.runs import run_pytest

REPOSITORY = Path(__file__).parents[2]

OWN_DEVICE = """\
from virtiopy.conformance.targets.target import inproc
from virtiopy.devices.rng import Rng
from virtiopy.transport.mmio import MmioTransport

{broken}

virtio_target = inproc(Broken{options})
"""

DIES_OF_A_CHAIN_WITHOUT_ROOM = """\
class Broken(Rng):
    def serve(self, queue, chain):
        chain.writable[0]
        return super().serve(queue, chain)
"""

STOPS_AFTER_A_CHAIN_THAT_IS_MALFORMED = """\
class Broken(Rng):
    def handle(self, queue):
        if not queue.rejected:
            super().handle(queue)
"""

LOOPS_WITH_A_LOOP = """\
from tests.conformance.faults import QueueProxy, over

class Endless(QueueProxy):
    def pop_many(self, limit=None):
        areas, size = self.real.areas, self.real.size
        index = self.field(areas.driver + 4 + 2 * (self.real.state.vring_base % size))
        while self.field(areas.descriptor + 16 * index + 12) & 1:
            index = self.field(areas.descriptor + 16 * index + 14)
        return super().pop_many(limit)

    def field(self, address):
        return int.from_bytes(self.memory.read(address, 2), "little")

Transport = over(0, Endless)
Broken = Rng
"""


@pytest.mark.parametrize(
    ("broken", "options", "act", "verdict"),
    [
        (DIES_OF_A_CHAIN_WITHOUT_ROOM, "", "only-readable", "the device died"),
        (DIES_OF_A_CHAIN_WITHOUT_ROOM, ", served=True", "only-readable", "the device died"),
        (STOPS_AFTER_A_CHAIN_THAT_IS_MALFORMED, "", "address-in-hole", "the device is wedged"),
        (LOOPS_WITH_A_LOOP, ", transport=Transport", "loop-of-two", "the device is wedged"),
    ],
    ids=["dies", "dies over vhost-user", "stops", "loops"],
)
def test_a_device_that_does_not_stand_an_act_is_told_how(
    tmp_path: Path, broken: str, options: str, act: str, verdict: str
) -> None:
    (tmp_path / "test_own.py").write_text(OWN_DEVICE.format(broken=broken, options=options))
    names = f"{act}] or test_version_1_is_offered"
    run = run_pytest(
        "--virtio-patience=0.3",
        "-k",
        names,
        folder=tmp_path,
        environment={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    assert verdict in run.stdout
    assert f"queue 0: {act}" in run.stdout
    assert "1 passed" in run.stdout

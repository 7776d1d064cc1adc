"""The hostile driver finds devices that do not stand it, and says how they did not."""

from pathlib import Path

import pytest

from tests.conformance.runs import run_pytest

OWN_DEVICE = """\
from virtiopy.conformance.targets.target import inproc
from virtiopy.devices.rng import Rng
from virtiopy.transport.mmio import MmioTransport
from virtiopy.virtqueue.split import SplitQueue

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
class Endless(SplitQueue):
    def _walk(self, head):
        index = head
        while self._descriptors[index].flags & 1:
            index = self._descriptors[index].next
            if self.memory is None:
                break
        return super()._walk(head)

def open_endless(memory, size, areas, *, features, index, **options):
    return Endless(memory, size, areas, index=index, indirect=True)

class Transport(MmioTransport):
    open_queue = staticmethod(open_endless)

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
    run = run_pytest("--virtio-patience=0.3", "-k", names, folder=tmp_path)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    assert verdict in run.stdout
    assert f"queue 0: {act}" in run.stdout
    assert "1 passed" in run.stdout

"""The C part under AddressSanitizer and UndefinedBehaviorSanitizer, and a fuzzer's rings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sanitizers.build import build_fuzzer, build_library, runtime
from tests.sanitizers.paths import CORPUS, ROOT

#: Seconds that the fuzzer has in `make test`, and in `make nightly`.
FUZZ_SECONDS, FUZZ_NIGHTLY_SECONDS = 30, 1800

#: The longest input that it makes, bytes.
FUZZ_LENGTH = 256

#: The unit tests that give C the rings of drivers and frontends that are not to be trusted.
UNIT_TESTS = [
    "test_native_queue.py",
    "test_worker.py",
    "test_blk_native.py",
    "test_net_native.py",
    "test_vhost_user_lost_memory.py",
    "test_vhost_user_bad_memory.py",
]

#: Tests of how little an idle thread costs: with sanitizers everything costs more.
NOT_HERE = "not idle_thread and not one_system_call"


def sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process whose C part has the sanitizers."""
    build_library()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LD_PRELOAD": f"{runtime('libasan')} {runtime('libubsan')}",
        # Python leaks by design; lost memory of a peer's is SIGBUS, which is ours to handle.
        "ASAN_OPTIONS": "detect_leaks=0:handle_sigbus=0:allow_user_segv_handler=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # Each of its objects is a block of the heap, with what is forbidden around it.
        "PYTHONMALLOC": "malloc",
        "HYPOTHESIS_PROFILE": "normal",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


def suite(*arguments: str) -> str:
    """Run pytest over the build with sanitizers, to its good end; returns what it says."""
    done = sanitized("-m", "pytest", "-p", "tests.sanitizers.plugin", *arguments)
    assert "C part: " in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rings_of_bad_drivers_are_worked_without_a_wrong_access() -> None:
    tests = [f"tests/unit/{name}" for name in UNIT_TESTS]
    said = suite("-k", NOT_HERE, "-p", "no:cacheprovider", "-rN", *tests)
    assert " passed" in said


@pytest.mark.parametrize("device", ["blk", pytest.param("net", marks=pytest.mark.nightly)])
def test_the_hostile_driver_is_served_without_a_wrong_access(device: str) -> None:
    # What it does to a queue is the same for every device: once is enough.
    acts = "hostile" if device == "blk" else "hostile and test_net"
    said = suite(
        *("--pyargs", "virtiopy.conformance", "-k", acts, "-p", "no:cacheprovider", "-rN"),
        f"--virtio-target=python:tests.sanitizers.targets:{device}",
        "--virtio-transport=vhost-user",
    )
    assert " passed" in said


def test_a_wrong_access_of_the_c_part_ends_the_run() -> None:
    # Two bytes that lie beside a block of the heap.
    code = (
        "import tests.sanitizers.plugin\n"
        "from virtiopy._native import ffi, lib\n"
        "block = ffi.new('char[64]')\n"
        "lib.vp_load_acquire(ffi.cast('uint16_t *', block + 64))\n"
    )
    done = sanitized("-c", code)
    assert "heap-buffer-overflow" in done.stderr
    assert done.returncode != 0


def fuzz(folder: Path, seconds: int) -> None:
    """Have the fuzzer go on from the corpus; it ends with the first input that breaks anything."""
    program = build_fuzzer()
    found = folder / "found"
    found.mkdir()
    done = subprocess.run(
        [
            *(str(program), str(found), str(CORPUS), f"-max_total_time={seconds}"),
            *(f"-max_len={FUZZ_LENGTH}", f"-artifact_prefix={folder}/", "-timeout=60"),
            "-print_final_stats=1",
        ],
        env={**os.environ, "ASAN_OPTIONS": "quarantine_size_mb=8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-10_000:]
    assert "stat::number_of_executed_units" in done.stderr


@pytest.mark.timeout(FUZZ_SECONDS + 900)
def test_no_ring_of_a_fuzzers_breaks_the_c_part(tmp_path: Path) -> None:
    fuzz(tmp_path, FUZZ_SECONDS)


@pytest.mark.nightly
@pytest.mark.timeout(FUZZ_NIGHTLY_SECONDS + 900)
def test_no_ring_of_a_fuzzers_breaks_the_c_part_in_half_an_hour(tmp_path: Path) -> None:
    fuzz(tmp_path, FUZZ_NIGHTLY_SECONDS)

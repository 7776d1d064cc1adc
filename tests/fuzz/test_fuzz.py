"""Fuzzers go on for a while: over guests and frontends in Python, and over rings in C."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.fuzz.frontends import close_bench
from tests.fuzz.fuzzer import fuzz, stored
from tests.fuzz.targets import CORPUS, TARGETS, open_target
from tests.sanitizers.build import build_fuzzer
from tests.sanitizers.paths import CORPUS as RINGS_OF_C
from tests.sanitizers.paths import ROOT

#: Seconds that each of them has, side by side, in `make test`, and in `make nightly`.
SECONDS, NIGHTLY_SECONDS = 30, 3600

#: The longest input of the fuzzer of C, bytes.
LENGTH_IN_C = 256

#: Where the nights keep what they find: each goes on from there.
KEPT = ROOT / "build" / "fuzz"


@pytest.fixture(autouse=True)
def bench() -> Iterator[None]:
    yield
    close_bench()


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_that_was_kept_breaks_its_target(name: str) -> None:
    inputs = stored([CORPUS / name])
    assert inputs
    target = open_target(name)
    for data in inputs:
        target(data)


def test_what_leads_to_a_new_call_is_kept_and_what_breaks_a_target_is_left(tmp_path: Path) -> None:
    from virtiopy.sizes import parse_size

    def target(data: bytes) -> None:
        if data[:1] == b"\x07":
            parse_size("64M")
            raise AssertionError("this one")

    with pytest.raises(AssertionError, match="this one"):
        fuzz(target, [], tmp_path, 60.0, seed=1)
    [crash] = tmp_path.glob("crash-*")
    assert crash.read_bytes()[:1] == b"\x07"


def _command_in_c(found: Path, seconds: int) -> list[str]:
    return [
        *(str(build_fuzzer()), str(found), str(RINGS_OF_C), f"-max_total_time={seconds}"),
        *(f"-max_len={LENGTH_IN_C}", f"-artifact_prefix={found}/", "-timeout=60"),
        "-print_final_stats=1",
    ]


def _command(name: str, found: Path, seconds: int) -> list[str]:
    command = [sys.executable, "-m", "tests.fuzz", name, f"--seconds={seconds}"]
    return [*command, f"--found={found}"]


@contextmanager
def _started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as said:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "ASAN_OPTIONS": "quarantine_size_mb=8"},
            stdout=said,
            stderr=said,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _fuzz_side_by_side(folder: Path, logs: Path, seconds: int) -> None:
    """Have all of them go on from what is kept; one ends with the first input that breaks it."""
    commands = {"in C": _command_in_c(_made(folder / "in C"), seconds)}
    commands |= {name: _command(name, _made(folder / name), seconds) for name in TARGETS}
    with ExitStack() as running:
        processes = {
            name: running.enter_context(_started(command, logs / f"{name}.log"))
            for name, command in commands.items()
        }
        failed = [name for name, process in processes.items() if process.wait() != 0]
    said = {name: (logs / f"{name}.log").read_text(errors="replace") for name in commands}
    assert not failed, "\n".join(f"{name}: {said[name][-10_000:]}" for name in failed)
    assert "stat::number_of_executed_units" in said["in C"]
    assert all(f"{name}: " in said[name] for name in TARGETS)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.timeout(SECONDS + 900)
def test_no_input_of_a_fuzzers_breaks_anything(tmp_path: Path) -> None:
    _fuzz_side_by_side(tmp_path, tmp_path, SECONDS)


@pytest.mark.nightly
@pytest.mark.timeout(NIGHTLY_SECONDS + 1800)
def test_no_input_of_a_fuzzers_breaks_anything_in_an_hour(tmp_path: Path) -> None:
    _fuzz_side_by_side(KEPT, tmp_path, NIGHTLY_SECONDS)

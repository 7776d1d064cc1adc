"""The C part built anew with two sanitizers of gcc's, and the fuzzer's target with clang's.

What was built stays in build/sanitized for as long as the sources are no newer.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.sanitizers.paths import FOLDER, FUZZER, LIBRARY
from virtiopy._native.build import HERE, SOURCES, ffibuilder

_FLAGS = [
    *("-std=gnu11", "-g", "-O1", "-fno-omit-frame-pointer", f"-I{HERE}"),
    *("-fno-sanitize-recover=undefined", "-Wall", "-Wextra", "-Werror"),
    # As in the ordinary build: cffi's wrappers trip over them.
    *("-Wno-missing-field-initializers", "-Wno-unused-parameter"),
    "-Wno-address-of-packed-member",
]


def _needs(target: Path, sources: list[Path]) -> bool:
    newest = max(path.stat().st_mtime for path in sources)
    return not target.exists() or target.stat().st_mtime < newest


def _run(command: list[str], target: Path) -> None:
    """Compile into a file that takes the target's place when it is whole."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is missing")
    partial = target.with_suffix(".new")
    subprocess.run([*command, "-o", str(partial)], check=True)
    partial.rename(target)


def _native_files() -> list[Path]:
    return [path for path in HERE.iterdir() if path.suffix in {".c", ".h", ".py"}]


def build_library() -> Path:
    """Build the extension with gcc's sanitizers; returns its library."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if _needs(LIBRARY, [*_native_files(), Path(__file__)]):
        wrappers = FOLDER / "_lib.c"
        ffibuilder.emit_c_code(str(wrappers))
        sources = [wrappers, *(HERE / f"{name}.c" for name in SOURCES)]
        include = f"-I{sysconfig.get_path('include')}"
        flags = [*_FLAGS, include, "-fsanitize=address,undefined", "-shared", "-fPIC"]
        _run(["gcc", *flags, *map(str, sources)], LIBRARY)
    return LIBRARY


def build_fuzzer() -> Path:
    """Build the fuzzer's target with clang's libFuzzer and sanitizers; returns the program."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    target = Path(__file__).with_name("rings.c")
    if _needs(FUZZER, [*_native_files(), target, Path(__file__)]):
        used = (
            "virtq",
            "memory",
            "dirty",
            "blk",
            "net",
            "net_receive",
            "net_transmit",
            "burst",
            "uring",
        )
        sources = [target, *(HERE / f"{name}.c" for name in used)]
        flags = [*_FLAGS, "-fsanitize=fuzzer,address,undefined"]
        _run(["clang", *flags, *map(str, sources)], FUZZER)
    return FUZZER


def runtime(name: str) -> Path:
    """Return gcc's library of a sanitizer, for LD_PRELOAD: Python itself has none."""
    done = subprocess.run(
        ["gcc", f"-print-file-name={name}.so"], capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())

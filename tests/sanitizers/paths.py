"""Where the builds with sanitizers are."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "sanitized"
LIBRARY = FOLDER / "_lib.abi3.so"
FUZZER = FOLDER / "rings"
CORPUS = Path(__file__).with_name("corpus")

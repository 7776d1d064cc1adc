"""A kernel that writes rubbish to what a PC has besides devices: rubbish.s."""

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".s")


def build_rubbish(folder: Path) -> Path:
    """Build it in a folder; it ends with status 7 after a line `h` on the serial port."""
    kernel = folder / "rubbish.elf"
    options = ["-m32", "-nostdlib", "-static", "-Wl,-Ttext=0x100000"]
    subprocess.run(["gcc", *options, "-o", kernel, SOURCE], check=True)
    return kernel

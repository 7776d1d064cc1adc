"""Build steps that pyproject.toml cannot say: the cffi extension, the guest images, the tag."""

import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

GUESTS = Path("virtiopy", "guests")

#: The first Python whose stable ABI the extension keeps to: its library runs on all later ones.
PYTHON = "cp311"

#: The libraries of glibc, which every manylinux has; the loader is one of them.
GLIBC = re.compile(r"(libc|libm|libdl|librt|libpthread|ld-linux-[\w-]+)\.so\.\d")


def check_tools() -> None:
    """End the build in one sentence where there is nothing to compile with."""
    lacking = [tool for tool in ("gcc", "make") if shutil.which(tool) is None]
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        lacking.append("Python.h (of python3-dev)")
    if lacking:
        sys.exit(
            f"virtiopy: to build it takes {' and '.join(lacking)}, which this host lacks: install "
            "gcc, make, libc6-dev, linux-libc-dev and python3-dev, or take a wheel."
        )


class BuildExtension(build_ext):
    """The ordinary build of the extension, where there is a compiler."""

    def run(self) -> None:
        """Look for the compiler first."""
        check_tools()
        super().run()


class BuildGuests(Command):
    """Compile guest_drivers/ to freestanding ELF images, shipped as the package data in guests/."""

    description = "compile the guest images"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    build_lib: str | None
    editable_mode: bool

    def initialize_options(self) -> None:
        """Set the options of a setuptools sub-command to their defaults."""
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        """Take the folder to build into from the build command."""
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def _target(self) -> Path:
        if self.editable_mode:
            return GUESTS
        assert self.build_lib is not None
        return Path(self.build_lib) / GUESTS

    def run(self) -> None:
        """Call guest_drivers/Makefile, which knows the compiler flags."""
        check_tools()
        objects = Path("build", "guests")
        subprocess.run(
            ["make", "-C", "guest_drivers", f"OUT={objects.absolute()}"],
            check=True,
        )
        self._target().mkdir(parents=True, exist_ok=True)
        for image in sorted(objects.glob("*.elf")):
            self.copy_file(str(image), str(self._target() / image.name))

    def get_source_files(self) -> list[str]:
        """Name the sources, for the sdist."""
        return [str(path) for path in Path("guest_drivers").rglob("*") if path.is_file()]

    def get_outputs(self) -> list[str]:
        """Name the files of the wheel."""
        return [str(path) for path in self._target().glob("*.elf")]

    def get_output_mapping(self) -> dict[str, str]:
        """Map nothing: no output stands for a file of the source tree."""
        return {}


class BuildWithGuests(build):
    """The ordinary build, and the guest images."""

    sub_commands = [*build.sub_commands, ("build_guests", None)]  # noqa: RUF012 - setuptools' name


class TaggedWheel(bdist_wheel):
    """A wheel whose tag says which Pythons and which C libraries it runs with."""

    def finalize_options(self) -> None:
        """Claim the stable ABI."""
        self.py_limited_api = PYTHON
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag, with the oldest glibc whose symbols suffice (PEP 600)."""
        python, abi, system = super().get_tag()
        libraries = list(Path(self.bdist_dir or ".").rglob("*.so"))
        glibc = [version for path in libraries if (version := glibc_of(path)) is not None]
        if system.startswith("linux_") and glibc and len(glibc) == len(libraries):
            major, minor = max(glibc)
            system = f"manylinux_{major}_{minor}_{platform.machine()}"
        return python, abi, system


def glibc_of(library: Path) -> tuple[int, int] | None:
    """Return the version of glibc that a shared library needs; None where it needs other things."""
    with library.open("rb") as stream:
        elf = ELFFile(stream)
        dynamic = elf.get_section_by_name(".dynamic")
        versions = elf.get_section_by_name(".gnu.version_r")
        if not isinstance(dynamic, DynamicSection) or not isinstance(versions, GNUVerNeedSection):
            return None
        needed = [vars(tag)["needed"] for tag in dynamic.iter_tags("DT_NEEDED")]
        names = [each.name for _, symbols in versions.iter_versions() for each in symbols]
    if not all(GLIBC.fullmatch(name) for name in needed):
        return None
    found = [re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", name) for name in names]
    if not found or not all(found):
        return None
    return max((int(match[1]), int(match[2])) for match in found if match is not None)


setup(
    cffi_modules=["virtiopy/_native/build.py:ffibuilder"],
    cmdclass={
        "bdist_wheel": TaggedWheel,
        "build": BuildWithGuests,
        "build_ext": BuildExtension,
        "build_guests": BuildGuests,
    },
)

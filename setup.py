"""Build steps that pyproject.toml cannot say: the cffi extension and the guest images."""

import subprocess
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build import build

GUESTS = Path("virtiopy", "guests")


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


setup(
    cffi_modules=["virtiopy/_native/build.py:ffibuilder"],
    cmdclass={"build": BuildWithGuests, "build_guests": BuildGuests},
)

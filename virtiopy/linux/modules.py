"""A kernel's modules: which are needed for others, and in what order they can be inserted."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from virtiopy.boot.unpack import packed_with, unpack
from virtiopy.errors import ConfigError
from virtiopy.linux.kernels import LinuxKernel

_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


@dataclass(slots=True, frozen=True)
class Module:
    """A module's file, by the name that the kernel knows it by."""

    name: str
    path: Path

    def content(self) -> bytes:
        """Return the module as the kernel takes it, unpacked; raises ConfigError."""
        data = self.path.read_bytes()
        return data if packed_with(data) is None else unpack(data, f"The module {self.path}")


def module_name(path: str) -> str:
    """Return what the kernel calls a module, by its file or by a name with hyphens."""
    file = path.rpartition("/")[2]
    for suffix in _SUFFIXES:
        file = file.removesuffix(suffix)
    return file.replace("-", "_")


class ModuleTree:
    """The modules of a kernel: by depmod's modules.dep, or what they say themselves."""

    def __init__(self, kernel: LinuxKernel) -> None:
        self._kernel = kernel
        self._files: dict[str, Path] = {}
        self._needs: dict[str, list[str]] | None = None
        self._built_in: set[str] = set()
        if kernel.modules is not None:
            self._read(kernel.modules)

    def _read(self, folder: Path) -> None:
        listing = folder / "modules.builtin"
        if listing.exists():
            self._built_in = {module_name(line) for line in listing.read_text().split()}
        dependencies = folder / "modules.dep"
        if dependencies.exists():
            self._needs = {}
            for line in dependencies.read_text().splitlines():
                path, _, others = line.partition(":")
                self._files[module_name(path)] = folder / path
                # depmod lists what is needed last first.
                self._needs[module_name(path)] = [module_name(other) for other in others.split()]
        else:
            for file in folder.rglob("*.ko*"):
                if file.name.endswith(_SUFFIXES):
                    self._files[module_name(file.name)] = file

    def in_order(self, names: Iterable[str], *, optional: Iterable[str] = ()) -> list[Module]:
        """Return the modules called so with all that they need, those that are needed first.

        What is built into the kernel is left out, and so is what is `optional` and not there.
        Raises ConfigError where one is missing.
        """
        ordered: dict[str, Module] = {}
        wanted = [*names]
        for name in (*wanted, *optional):
            if name not in wanted and name not in self._files:
                continue
            for module in self._with_needs(name, set()):
                ordered.setdefault(module.name, module)
        return list(ordered.values())

    def check(self, name: str) -> None:
        """Raise ConfigError where the kernel has no module called so, in a file or built in."""
        if name not in self._files and name not in self._built_in:
            raise ConfigError(
                f"The kernel {self._kernel.image} has no module {name}, in "
                f"{self._folder} or built in: leave it out, or see what modules.dep there lists."
            )

    @property
    def _folder(self) -> Path | str:
        return self._kernel.modules or f"/lib/modules/{self._kernel.version or 'VERSION'}"

    def _with_needs(self, name: str, above: set[str]) -> Iterator[Module]:
        if name in self._built_in or name in above:
            return
        path = self._files.get(name)
        if path is None:
            raise ConfigError(
                f"The kernel {self._kernel.image} needs its module {name}, which is not in "
                f"{self._folder}: unpack the kernel's package whole, or name another with --kernel."
            )
        module = Module(name, path)
        for other in self._needs_of(module):
            yield from self._with_needs(other, above | {name})
        yield module

    def _needs_of(self, module: Module) -> list[str]:
        if self._needs is not None:
            return self._needs[module.name]
        # The section .modinfo: words that end in zeroes.
        for word in module.content().split(b"\0"):
            if word.startswith(b"depends="):
                return [module_name(name) for name in word[8:].decode().split(",") if name]
        return []

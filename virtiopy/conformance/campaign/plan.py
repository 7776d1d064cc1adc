"""What a campaign tests: a TOML file, and the cells that it comes to."""

import hashlib
import itertools
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from virtiopy.errors import ConfigError

#: What is in the file, and in a table of `backend` and of `variant`.
_TOP = {"timeout", "patience", "seeds", "backend", "variant"}
_BACKEND = {"name", "devices", "versions", "target", "transport", "spawn", "image"}
_VARIANT = {"name", "options"}


@dataclass(slots=True, frozen=True)
class Cell:
    """One run of the suite: it goes to a worker, and what it came to is kept under its `key`."""

    backend: str
    version: str
    device: str
    variant: str
    seed: int
    options: Sequence[str]  # of `virtiopy conformance`; {image} stands for a scratch file
    image: int  # bytes of that, 0 for none

    @property
    def key(self) -> str:
        """What tells this run from each other that is not the same: a file name."""
        told = repr(sorted(asdict(self).items())).encode()
        words = f"{self.backend}-{self.version}-{self.device}-{self.variant}-{self.seed}"
        clean = "".join(one if one.isalnum() or one in "-." else "_" for one in words)
        return f"{clean}-{hashlib.sha256(told).hexdigest()[:12]}"

    @property
    def subject(self) -> str:
        """The column that it belongs to."""
        return f"{self.backend} {self.version}".strip()


@dataclass(slots=True)
class _Backend:
    """One table of `backend`."""

    name: str
    devices: list[str]
    versions: dict[str, str] = field(default_factory=lambda: {"": ""})
    target: str | None = None
    transport: str | None = None
    spawn: str | None = None
    image: int = 0


def load(path: Path) -> list[Cell]:
    """Return the cells of a campaign's file; raises ConfigError, with the remedy."""
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"The campaign {path} cannot be read ({error.strerror}): name a file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The campaign {path} is no TOML ({error}): mend that place.") from error
    return list(_cells(path, data))


def _cells(path: Path, data: dict[str, Any]) -> Sequence[Cell]:
    _known(path, "the file", data, _TOP)
    backends = [_backend(path, one) for one in data.get("backend", [])]
    if not backends:
        raise ConfigError(f"The campaign {path} has no backend: give it a [[backend]] at least.")
    variants = data.get("variant", [{"name": "", "options": []}])
    for variant in variants:
        _known(path, "a variant", variant, _VARIANT)
    common = [f"--{name}={data[name]}" for name in ("timeout", "patience") if name in data]
    cells = []
    for backend in backends:
        every = itertools.product(
            backend.versions.items(), backend.devices, variants, data.get("seeds", [0])
        )
        for (version, value), device, variant, seed in every:
            cells.append(
                Cell(
                    backend=backend.name,
                    version=version,
                    device=device,
                    variant=str(variant.get("name", "")),
                    seed=int(seed),
                    options=[
                        *_subject(backend, value, device),
                        *common,
                        *(str(option) for option in variant.get("options", [])),
                        f"--hypothesis-seed={seed}",
                    ],
                    image=backend.image,
                )
            )
    return cells


def _subject(backend: _Backend, version: str, device: str) -> list[str]:
    def filled(text: str) -> str:
        return text.replace("{version}", version).replace("{device}", device)

    options = [f"--transport={backend.transport}"] if backend.transport else []
    if backend.target is not None:
        return [filled(backend.target), *options]
    assert backend.spawn is not None, "_backend has looked"
    return [f"--spawn={filled(backend.spawn)}", f"--device={device}", *options]


def _backend(path: Path, table: dict[str, Any]) -> _Backend:
    _known(path, "a backend", table, _BACKEND)
    try:
        backend = _Backend(**table)
    except TypeError as error:
        raise ConfigError(
            f"The campaign {path}: a backend lacks its name or its devices ({error})."
        ) from error
    if (backend.target is None) == (backend.spawn is None):
        raise ConfigError(
            f"The campaign {path}: give the backend {backend.name} a target, or a command to spawn."
        )
    return backend


def _known(path: Path, what: str, table: dict[str, Any], names: set[str]) -> None:
    if unknown := sorted(set(table) - names):
        raise ConfigError(
            f"The campaign {path}: {what} has {', '.join(unknown)}, which means nothing here: "
            f"name {', '.join(sorted(names))}."
        )

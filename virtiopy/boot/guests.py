"""The guest images that come with virtiopy, by name."""

from pathlib import Path

from virtiopy.errors import ConfigError

GUESTS = Path(__file__).parent.parent / "guests"


def guest_names() -> list[str]:
    """List the guests that boot by PVH; the hello images are for `virtiopy hello` alone."""
    names = sorted(path.stem for path in GUESTS.glob("*.elf"))
    return [name for name in names if not name.startswith("hello-")]


def guest_path(name_or_path: str) -> Path:
    """Return the file of a guest named or given by its path; raises ConfigError for neither."""
    if "/" not in name_or_path:
        own = GUESTS / f"{name_or_path}.elf"
        if own.exists():
            return own
    path = Path(name_or_path)
    if path.exists():
        return path
    if "/" in name_or_path or "." in name_or_path:
        raise ConfigError(f"The guest image {path} does not exist: name an ELF file.")
    raise ConfigError(
        f"There is no guest {name_or_path!r}: name an ELF file or one of "
        f"{', '.join(guest_names()) or 'the guests, which are not built'}."
    )

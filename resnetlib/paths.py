"""The folders params/, notebooks/ and outputs/, and how a path is displayed."""

from pathlib import Path

from .errors import ConfigError, shorten

PACKAGE = Path(__file__).resolve().parent
PROJECT = PACKAGE.parent


def params_folder() -> Path:
    """`params/` of the checkout, or its copy in an installed package."""
    return _folder("params")


def notebooks_folder() -> Path:
    """`notebooks/` of the checkout, or its copy in an installed package."""
    return _folder("notebooks")


def _folder(name: str) -> Path:
    installed = PACKAGE / name
    return installed if installed.is_dir() else PROJECT / name


def output_folder(output_root: str | Path | None = None) -> Path:
    """The folder of run folders: the one given, otherwise `outputs/`.

    That is `outputs/` of the checkout, or of the working directory if the package is installed.
    """
    if output_root:
        return expand_home(output_root)
    return (PROJECT if (PROJECT / "params").is_dir() else Path.cwd()) / "outputs"


def expand_home(path: str | Path) -> Path:
    """The path with a leading `~` replaced. Raises `ConfigError` for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{shorten(str(path))}: there is no such user") from None


def display_path(path: Path) -> str:
    """The path relative to the project, the working directory or home."""
    path = path.resolve()
    for base, prefix in ((PROJECT, ""), (Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_relative_to(base):
            return prefix + path.relative_to(base).as_posix()
    return str(path)

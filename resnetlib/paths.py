"""Where params/, notebooks/ and outputs/ lie, and how a path is displayed."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
PROJECT = PACKAGE.parent


def params_folder() -> Path:
    """`params/` of the checkout, or the copy that an installed package carries."""
    return _carried("params")


def notebooks_folder() -> Path:
    """`notebooks/` of the checkout, or the copy that an installed package carries."""
    return _carried("notebooks")


def _carried(name: str) -> Path:
    installed = PACKAGE / name
    return installed if installed.is_dir() else PROJECT / name


def output_folder(output_root: str | Path | None = None) -> Path:
    """The folder of run folders: the one given, else `outputs/`.

    That is in the checkout, or in the working directory where the package is installed.
    """
    if output_root:
        return Path(output_root).expanduser()
    return (PROJECT if (PROJECT / "params").is_dir() else Path.cwd()) / "outputs"


def display_path(path: Path) -> str:
    """The path as a person would say it: from the project, the working directory or home."""
    path = path.resolve()
    for base, prefix in ((PROJECT, ""), (Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_relative_to(base):
            return prefix + path.relative_to(base).as_posix()
    return str(path)

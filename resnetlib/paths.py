"""The folders params/, notebooks/ and outputs/, and how a path is displayed."""

import os
import sys
from pathlib import Path

from .errors import ConfigError, printable, shorten

PACKAGE = Path(__file__).resolve().parent
PROJECT = PACKAGE.parent
KAGGLE_INPUT = Path("/kaggle/input")  # data sets that the user added; read only
KAGGLE_WORKING = Path("/kaggle/working")


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

    That is `outputs/` of the checkout, or of the working directory if the package is installed. On
    Kaggle it is in the one folder that is kept.
    """
    if output_root:
        return expand_home(output_root)
    if host() == "Kaggle":
        return KAGGLE_WORKING / "outputs"
    return project_folder() / "outputs"


def project_folder() -> Path:
    """The checkout, or the working directory if the package is installed among others."""
    return PROJECT if (PROJECT / "params").is_dir() else Path.cwd()


def host() -> str:
    """`Colab` or `Kaggle` where the notebook runs there, otherwise empty."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "Kaggle"
    return "Colab" if "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ else ""


def expand_home(path: str | Path) -> Path:
    """The path with a leading `~` replaced. Raises `ConfigError` for an unknown user."""
    try:
        return Path(str(path)).expanduser()  # papermill reads 2024 as a number
    except RuntimeError:
        raise ConfigError(f"{shorten(str(path))}: there is no such user") from None


def real_path(path: str | Path) -> Path:
    """The absolute path without links; of links that lead to each other, the first."""
    try:
        return Path(os.path.realpath(path))  # `Path.resolve` raises an error for these
    except ValueError:  # no path has a NUL character
        return Path(path).absolute()


def display_path(path: Path) -> str:
    """The path relative to the project, the working directory or home, in one printable line.

    Reports and notebooks, which are shared, have it too: wherever the user works, a path in the
    project names no place of this machine.
    """
    path = real_path(path)
    text = str(path)
    home = Path(os.path.expanduser("~"))  # unlike `Path.home`, where no home is known: `~`
    for base, prefix in ((project_folder(), ""), (Path.cwd(), ""), (home, "~/")):
        if path.is_relative_to(base):
            text = prefix + path.relative_to(base).as_posix()
            break
    return printable(text)

"""Write the set-up cell and the badges of the notebooks and README: `python docs/setup_cells.py`.

The address of the repository is `[tool.resnetlib] repository` of pyproject.toml. While it is empty
there are no badges, and the set-up cell says how to upload or clone the project.
"""

import re
import tomllib
from pathlib import Path

import nbformat

PROJECT = Path(__file__).resolve().parent.parent
COLAB = "https://colab.research.google.com"
KAGGLE = "https://kaggle.com"
BADGES = "<!-- badges: written by `python docs/setup_cells.py` -->"  # in the README
END = "<!-- /badges -->"
TEXT = """{badges}\
**On Colab or Kaggle**, first choose a GPU (Colab: *Runtime > Change runtime type*;
Kaggle: *Settings > Accelerator*, and turn on *Internet*). The next cell installs what is missing
there and leaves torch, numpy and pandas as they are; elsewhere it does nothing. {source}"""
UPLOAD = """It needs the
project beside this notebook: clone it, or upload its ZIP file and unpack it. On Kaggle, a data set
made of the ZIP file will do."""
MISSING = "clone the project here, or upload its ZIP file here and unpack it"
CLONE = "It clones the project."
CELL = """import os
import sys
from glob import glob
from importlib import metadata, util

hosted = "google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ
if hosted and getattr(util.find_spec("resnetlib"), "origin", None) is None:
{clone}\
    places = ["*", *(f"/kaggle/input{{'/*' * depth}}" for depth in (1, 2, 3, 4))]
    found = [path for place in places for path in glob(f"{{place}}/resnetlib/runs/../..")]
    if not found:
        raise FileNotFoundError("{missing}")
    kept = [f"{{name}}=={{metadata.version(name)}}" for name in ("torch", "numpy", "pandas")]
    %pip install --quiet {{" ".join(kept)}} --editable "{{found[0]}}"
    sys.path.insert(0, os.path.abspath(found[0]))"""


def repository() -> str:
    """The address of the repository on GitHub; empty while there is none."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"]["resnetlib"]["repository"].rstrip("/")


def badges(address: str, notebook: str) -> str:
    """Two links that open the notebook on Colab and on Kaggle; empty without an address."""
    if not address:
        return ""
    place = f"/blob/main/notebooks/{notebook}"
    github = address.removeprefix("https://github.com/")
    return (
        f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{github}{place}) "
        f"[![Open in Kaggle]({KAGGLE}/static/images/open-in-kaggle.svg)]"
        f"({KAGGLE}/kernels/welcome?src={address}{place})"
    )


def setup_cells(address: str, notebook: str) -> dict[str, str]:
    """The source of the two first cells after the title, by their ids."""
    links = badges(address, notebook)
    text = TEXT.format(badges=f"{links}\n\n" if links else "", source=CLONE if address else UPLOAD)
    clone = f"    !git clone --quiet --depth 1 {address} resnetlib-project\n" if address else ""
    missing = "the project could not be cloned: turn on the internet" if address else MISSING
    return {"setup-text": text, "setup": CELL.format(clone=clone, missing=missing)}


def write_all(folder: Path, address: str) -> None:
    """Renew the cells of every notebook, and the badges of the README, of the project there."""
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        sources = setup_cells(address, path.name)
        for cell in notebook.cells:
            cell.source = sources.get(cell.id, cell.source)
            if cell.id == "setup":
                cell.metadata["jupyter"] = {"source_hidden": True}  # folded in JupyterLab
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    readme = folder / "README.md"
    before = readme.read_text(encoding="utf-8")
    links = badges(address, "run_experiment.ipynb")
    marked = f"{BADGES}\n{links}\n{END}" if links else f"{BADGES}\n{END}"
    after = re.sub(f"{re.escape(BADGES)}.*?{re.escape(END)}", lambda _: marked, before, flags=re.S)
    readme.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    write_all(PROJECT, repository())

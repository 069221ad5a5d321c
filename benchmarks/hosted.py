"""Run the notebooks with the package versions of Colab and of Kaggle.

    python benchmarks/hosted.py                       # all of them, in the temporary folder
    python benchmarks/hosted.py kaggle --folder /tmp/hosted

The versions are in `benchmarks/hosts/`. Each environment (5 GB, built by uv; kept in the folder and
used again) gets what its host has, and nothing of this project. The notebooks are then executed by
the host's own nbconvert in a folder with the project beside them, so that their first cell installs
it. It is checked that they run to their end without a word on standard error, that no package of
the host changed its version, and that `resnetlib run` and `resnetlib doctor` work.

GPU, Drive and /kaggle/input are not imitated. The kernels of a host may write "Debugger warning"
into its log before any of our code runs; kernels that `resnetlib` itself starts do not.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from resnetlib.download import obtain_cifar10
from resnetlib.paths import PROJECT

HOSTS = PROJECT / "benchmarks" / "hosts"
OUTPUTS = {"output_root": "runs"}  # nothing is written outside the folder
PARAMETERS: dict[str, dict[str, Any]] = {  # in this order: the first one installs
    "run_experiment": {"dataset": "digits", "epochs": 2} | OUTPUTS,
    "compare_variants": {"first": "lite", "second": "laptop"} | OUTPUTS,
    "explore_architecture": {},
    "explore_augmentation": {},
    "analyze_errors": {"run": "lite", "images": 50} | OUTPUTS,
    "submit_kaggle": {"run": "lite"} | OUTPUTS,
}
# Colab's kernels have its own module, by which they are known.
COLAB_STARTUP = (
    'import sys, types\nsys.modules["google.colab"] = types.ModuleType("google.colab")\n'
)


def build(host: str, folder: Path) -> Path:
    """The environment of a host, made once for its list, whose first line has Python's version."""
    environment = folder / host
    packages, complete = HOSTS / f"{host}.txt", environment / "complete"
    listed = packages.read_text(encoding="utf-8")
    if not complete.exists() or complete.read_text(encoding="utf-8") != listed:
        version = re.search(r"python ([\d.]+)", listed)[1]
        uv = ["uv", "--quiet"]
        subprocess.run([*uv, "venv", "--clear", "--python", version, environment], check=True)
        install = [*uv, "pip", "install", "--compile-bytecode", "--python", environment]
        subprocess.run([*install, "-r", packages], check=True)
        complete.write_text(listed, encoding="utf-8")
    return environment


def lay_out(folder: Path) -> Path:
    """A working directory like that of a host: the notebooks, and beside them the project."""
    shutil.rmtree(folder, ignore_errors=True)
    listing = [shutil.which("git"), "-C", PROJECT, "ls-files", "-z"]
    tracked = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (folder / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, folder / "project" / name)
    for name, values in PARAMETERS.items():
        notebook = load_notebook_node(str(PROJECT / "notebooks" / f"{name}.ipynb"))
        nbformat.write(parameterize_notebook(notebook, values), folder / f"{name}.ipynb")
    return folder


def run_notebooks(environment: Path, folder: Path, variables: Mapping[str, str]) -> list[str]:
    """What went wrong in the notebooks, executed one after another."""
    problems = []
    for name in PARAMETERS:
        command = ["-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", f"{name}.ipynb"]
        done = _call(environment, folder, variables, *command)
        if done.returncode:
            problems.append(f"{name}: {done.stderr[-2000:]}")
            continue
        cells = json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        written = [output for cell in cells for output in cell.get("outputs", ())]
        errors = [output["text"] for output in written if output.get("name") == "stderr"]
        problems += [f"{name}: on standard error: {''.join(text)}" for text in errors]
        print(f"  {name}: {'done' if not errors else 'done, with words on standard error'}")
    return problems


def run_commands(environment: Path, folder: Path, variables: Mapping[str, str]) -> list[str]:
    """What went wrong in the commands of the installed project."""
    values = {"dataset": "digits", "epochs": "2", "seed": "1"} | OUTPUTS
    train = ["run", "lite", *(word for pair in values.items() for word in ("-p", *pair))]
    problems = []
    for command in (train, ["doctor"]):
        done = _call(environment, folder, variables, "-m", "resnetlib", *command)
        print(f"  resnetlib {' '.join(command)}: exit status {done.returncode}")
        if done.returncode or done.stderr:
            problems.append(f"{command}: {done.returncode} {done.stdout} {done.stderr}")
    return problems


def _call(
    environment: Path, folder: Path, variables: Mapping[str, str], *command: str
) -> subprocess.CompletedProcess:
    ours = {"PYTHONPATH", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    kept["PATH"] = f"{_python(environment).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [_python(environment), *command],
        cwd=folder,
        env=kept | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def _python(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _versions(environment: Path) -> dict[str, str]:
    command = [_python(environment), "-m", "pip", "list", "--format", "json"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {package["name"]: package["version"] for package in json.loads(listed)}


def check(host: str, folder: Path) -> list[str]:
    """Everything that went wrong on a host."""
    environment = build(host, folder)
    before = _versions(environment)
    work = lay_out(folder / f"{host}-work")
    variables = {"RESNETLIB_DATA": str(obtain_cifar10(None).parent)}
    if host == "colab":
        startup = work / "ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "colab.py").write_text(COLAB_STARTUP, encoding="utf-8")
        variables["IPYTHONDIR"] = str(startup.parents[1])
    else:
        variables["KAGGLE_KERNEL_RUN_TYPE"] = "Batch"
    print(f"{host}: torch {before['torch']}, nbconvert {before['nbconvert']}", flush=True)
    try:
        problems = run_notebooks(environment, work, variables)
        problems += run_commands(environment, work, variables)
    finally:  # the environment is used again
        after = _versions(environment)
        new = sorted(after.keys() - before.keys())
        print(f"  installed: {', '.join(f'{name} {after[name]}' for name in new) or 'nothing'}")
        uninstall = ["uv", "--quiet", "pip", "uninstall", "--python", environment]
        if new:
            subprocess.run([*uninstall, *new], check=True)
    changed = {name: after.get(name) for name in before if after.get(name) != before[name]}
    return problems + ([f"changed versions: {changed}"] if changed else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = sorted(path.stem for path in HOSTS.glob("*.txt"))
    parser.add_argument("hosts", nargs="*", help=f"of {', '.join(known)}; all unless given")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "hosted")
    options = parser.parse_args()
    if unknown := set(options.hosts) - set(known):
        parser.error(f"unknown: {', '.join(unknown)}; one of {', '.join(known)}")
    failed = False
    for host in options.hosts or known:
        problems = check(host, options.folder.resolve())
        print("\n".join(f"  FAILED: {problem}" for problem in problems))
        failed = failed or bool(problems)
    sys.exit(failed)


if __name__ == "__main__":
    main()

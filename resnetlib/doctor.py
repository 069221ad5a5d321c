"""`resnetlib doctor`: versions, devices, precision and data of this machine, and what is wrong."""

import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from .errors import DataError
from .paths import display_path, host, output_folder

PACKAGES = (  # in the order of what a problem is most often about
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "ipython",
    "ipykernel",
    "ipywidgets",
    "jupyter-client",
    "jupyterlab",
    "nbclient",
    "nbconvert",
    "papermill",
)
MISSING = "not installed"  # in place of a version
FREE_GB = 2  # of disk: a run of the largest network with its checkpoints takes 0.2

Facts = dict[str, str]


def examine() -> tuple[Facts, list[str]]:
    """Facts for a report by their names, and problems, each in a line with what to do."""
    facts: Facts = {}
    problems: list[str] = []
    for part in (_system, _requirements, _device, _data, _outputs, _kernel):
        try:
            problems += part(facts)
        except Exception as error:  # whatever a broken installation raises
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            problems.append(f"{part.__name__.strip('_')} cannot be examined: {reason}")
    return facts, problems


def format_examination(facts: Facts, problems: list[str]) -> str:
    """Plain text, one line for each fact and each problem."""
    width = max(map(len, facts)) + 2
    lines = [f"{name + ':':{width}}{value}" for name, value in facts.items()]
    found = [f"PROBLEM: {problem}" for problem in problems] or ["No problem was found."]
    return "\n".join([*lines, "", *found])


def _system(facts: Facts) -> Iterator[str]:
    facts["resnetlib"] = f"{_version('resnetlib')}, in {display_path(Path(__file__).parent)}"
    facts["python"] = f"{platform.python_version()}, {sys.executable}"
    facts["operating system"] = platform.platform() + (f" on {host()}" if host() else "")
    facts["console"] = f"encoding {getattr(sys.stdout, 'encoding', None) or 'unknown'}"
    facts |= {name: _version(name) for name in PACKAGES}
    if _version("resnetlib") == MISSING:
        yield f"resnetlib is {MISSING}: `{_pip()} install -e .`"


def _pip() -> str:
    """The program that installs packages here: uv makes environments without pip."""
    # Not by `find_spec`, for which setuptools gives up its own distutils, and torch cannot compile.
    return "uv pip" if _version("pip") == MISSING else "pip"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return MISSING


def _requirements(facts: Facts) -> Iterator[str]:
    from packaging.requirements import Requirement

    if _version("resnetlib") == MISSING:  # and with it the list of what it needs
        return
    for line in metadata.requires("resnetlib") or ():
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if found == MISSING or not requirement.specifier.contains(found, prereleases=True):
            needed = f"{requirement.name}{requirement.specifier}"
            yield f"{requirement.name} is {found}: `{_pip()} install '{needed}'`"


def _device(facts: Facts) -> Iterator[str]:
    import torch

    from .config import load_experiment
    from .device import has_compiler, resolve_device_settings

    with warnings.catch_warnings(record=True, action="always") as caught:
        settings = resolve_device_settings(load_experiment("lite"))
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            facts[f"card {index}"] = (
                f"{card.name}, compute capability {card.major}.{card.minor}, "
                f"{card.total_memory / 2**30:.1f} GiB"
            )
    built = torch.version.cuda or torch.version.hip
    facts["torch is built for"] = f"CUDA {built}" if built else "the CPU, without CUDA"
    of_run = {"compile", "memory format"}  # these depend on the network and the epochs
    for name, value in settings.in_words().items():
        facts[f"chosen {name}{' for lite' * (name in of_run)}"] = value
    facts["cores"] = f"{os.cpu_count()}"
    compiler = has_compiler(settings.device)
    facts["torch can compile"] = "yes" if compiler else "no; long runs are slower (docs/install.md)"
    yield from dict.fromkeys(str(warning.message) for warning in caught)


def _data(facts: Facts) -> Iterator[str]:
    from . import download

    if folder := download.find_cifar10():
        facts["CIFAR-10"] = display_path(folder)
        for name in download.CIFAR10_MD5:
            try:
                download.read_checked(folder / name)
            except DataError as error:
                yield str(error)
    elif archive := download.find_archive():
        facts["CIFAR-10"] = f"{display_path(archive)}, unpacked on first use"
        try:
            download.check_archive(archive)
        except DataError as error:
            yield str(error)
    else:
        places = download.data_roots()
        names = ", ".join(map(display_path, places))
        facts["CIFAR-10"] = f"not found in {names}; downloaded on first use"
        for one in download.incomplete(places):
            yield f"{one}: add what is missing, or delete these files"


def _outputs(facts: Facts) -> Iterator[str]:
    folder = output_folder()
    existing = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(existing).free / 2**30
    facts["outputs"] = f"{display_path(folder)}, {free:.0f} GiB free"
    if os.path.lexists(folder) and not folder.is_dir():  # a file, or a link to nothing
        yield f"{display_path(folder)} is not a folder: `-p output_root FOLDER` names another"
    if not os.access(existing, os.W_OK):
        yield f"{display_path(folder)} is not writable: `-p output_root FOLDER` names another"
    if free < FREE_GB:
        yield f"the disk of {display_path(folder)} is nearly full"


def _kernel(facts: Facts) -> Iterator[str]:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        yield "Jupyter has no kernel `python3`: `python -m ipykernel install --user`"
        return
    facts["kernel python3"] = command
    path = shutil.which(command)
    if Path(command).is_absolute() and (path is None or not _same_environment(Path(path))):
        yield (
            f"the kernel `python3` is {command}, not this Python: "
            "`python -m ipykernel install --user` replaces it"
        )


def _same_environment(interpreter: Path) -> bool:
    """Whether the interpreter is of the environment that this process runs in."""
    return interpreter.parent.resolve() == Path(sys.executable).parent.resolve()

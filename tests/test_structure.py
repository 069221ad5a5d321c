"""The rules of the repository: layers, public names, imports without effects, complete parts."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import typing
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
import yaml
from conftest import GOLDEN, PROJECT, size_by_torch
from matplotlib.text import Text

import resnetlib
from resnetlib import load_experiment, schema
from resnetlib.augment import BATCH_MIXES, IMAGE_AUGMENTATIONS, preview
from resnetlib.optim import build_optimizer
from resnetlib.plots.architecture import BLOCK_LAYERS, draw
from resnetlib.resnet import BLOCKS
from resnetlib.schedule import learning_rate
from resnetlib.size import BLOCK_SIZES, Size, measure_size

PUBLIC = {
    "build_model",
    "count_parameters",
    "evaluate",
    "experiment_from_notebook",
    "list_variants",
    "load_dataset",
    "load_experiment",
    "load_pretrained",
    "load_run",
    "model_summary",
    "train",
}
MODULES = {
    ".".join(path.relative_to(PROJECT).with_suffix("").parts)
    for path in (PROJECT / "resnetlib").rglob("[!_]*.py")
}
PARTS = yaml.safe_load((GOLDEN / "parts.yaml").read_text())


def test_imports_keep_the_layers():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_module_is_in_a_layer():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    (contract,) = project["tool"]["importlinter"]["contracts"]
    layered = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    covered = {name for name in MODULES if any(f"{name}.".startswith(f"{one}.") for one in layered)}
    assert covered == MODULES
    assert layered <= MODULES | {"resnetlib.__main__", "resnetlib.augment"}


def test_no_function_shares_the_name_of_a_module():
    stems = {name.rpartition(".")[2] for name in MODULES}
    for name in MODULES:
        tree = ast.parse((PROJECT / f"{name.replace('.', '/')}.py").read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not functions & stems, f"{name}: {functions & stems}"


def test_public_names_are_exactly_those_of_the_design():
    assert set(resnetlib.__all__) == PUBLIC
    assert all(callable(getattr(resnetlib, name)) for name in PUBLIC)


@pytest.mark.slow
def test_importing_has_no_side_effects(tmp_path):
    program = (
        "import random, numpy, torch\n"
        "before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()\n"
        "import resnetlib\n"
        "assert torch.equal(before[0], torch.get_rng_state())\n"
        "assert before[1] == random.getstate()\n"
        "assert (before[2] == numpy.random.get_state()[1]).all()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_command_line_opens_without_heavy_imports():
    heavy = {"torch", "numpy", "pandas", "matplotlib", "scipy", "sklearn", "IPython", "papermill"}
    modules = "resnetlib.cli, resnetlib.size, resnetlib.reports.leaderboard"
    program = f"import sys, {modules}; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "set()\n", done.stdout + done.stderr


# A part is its entry in the schema with all that belongs to it ------------------------------------


def check_parts(part, name, places):
    """Fail with the places, of these, that lack the part of this name."""
    missing = [place for place, entries in places.items() if name not in entries]
    assert not missing, f"{part} {name!r} is missing in {' and in '.join(missing)}"


@pytest.mark.parametrize("block", sorted({*schema.block_names(), *BLOCKS}))
def test_block_is_complete(block):
    places = {
        "schema.Architecture.block": schema.block_names(),
        "resnet.BLOCKS (its class)": BLOCKS,
        "size.BLOCK_SIZES (its arithmetic)": BLOCK_SIZES,
        "plots.architecture.BLOCK_LAYERS (its drawing)": BLOCK_LAYERS,
        "tests/golden/parts.yaml (its count)": PARTS["blocks"],
    }
    check_parts("block", block, places)
    architecture = schema.Architecture(block=block, depths=[1, 2], widths=[8, 16])
    golden = Size(**PARTS["blocks"][block])
    assert measure_size(architecture) == golden, f"the arithmetic of block {block!r} is wrong"
    assert size_by_torch(architecture) == golden, f"the class of block {block!r} is wrong"


def choices(key):
    """The names that a key of the architecture may have."""
    model = schema.Architecture
    for part in key.split("."):
        annotation = model.model_fields[part].annotation
        (model,) = schema.models_in(annotation) or [None]
    listed = [name for part in typing.get_args(annotation) for name in typing.get_args(part)]
    return listed or list(typing.get_args(annotation))


KINDS = ("stem", "activation", "conv_kind", "shortcut.kind", "shortcut.pool")
KINDS += ("squeeze_excitation.placement",)
CHOICES = {key: choices(key) for key in KINDS}
CHOICES |= {key: list(PARTS[key]) for key in ("conv_kernel", "shortcut.kernel", "pool_size")}


@pytest.mark.parametrize(("key", "name"), [(key, name) for key in CHOICES for name in CHOICES[key]])
def test_part_of_a_network_is_complete(key, name):
    check_parts(key, name, {f"tests/golden/parts.yaml under {key} (its count)": PARTS[key]})
    outer, _, inner = key.partition(".")
    settings = {outer: {inner: name} if inner else name}
    architecture = schema.Architecture(
        block="bottleneck", depths=[1, 2], widths=[8, 16], **settings
    )
    golden = Size(**PARTS[key][name])
    assert measure_size(architecture) == golden, f"the arithmetic of {key} {name!r} is wrong"
    assert size_by_torch(architecture) == golden, f"the class of {key} {name!r} is wrong"
    drawn = texts_of(architecture)
    default = schema.Architecture(block="bottleneck", depths=[1, 2], widths=[8, 16])
    assert architecture == default or drawn != texts_of(default), f"{key} {name!r} is not drawn"


@cache
def texts_of(architecture):
    axes = draw(architecture)
    texts = [text.get_text() for text in axes[0].figure.findobj(Text)]
    plt.close(axes[0].figure)
    return texts


@pytest.mark.parametrize("name", schema.tagged_models(schema.Optimizer))
def test_optimizer_is_complete(name):
    check_parts("optimizer", name, {"tests/golden/parts.yaml (its class)": PARTS["optimizers"]})
    settings = {"recipe.optimizer": {"name": name, "lr": 0.1}}
    recipe = load_experiment("lite", **settings).recipe
    try:
        optimizer = build_optimizer([torch.nn.Parameter(torch.ones(2, 2))], recipe)
    except KeyError:
        pytest.fail(f"optimizer {name!r} is missing in optim.build_optimizer")
    assert type(optimizer) is getattr(torch.optim, PARTS["optimizers"][name])


@pytest.mark.parametrize("name", schema.tagged_models(schema.Schedule))
def test_schedule_is_complete(name):
    check_parts("schedule", name, {"tests/golden/parts.yaml (its rates)": PARTS["schedules"]})
    golden = PARTS["schedules"][name]
    schedule = {"name": name} | golden["settings"]
    settings = {"recipe.schedule": schedule, "epochs": 10, "lr": 0.1}
    recipe = load_experiment("lite", **settings).recipe
    try:
        rates = [learning_rate(recipe, step, 10) for step in (0, 25, 50, 99)]
    except AttributeError as error:
        pytest.fail(f"schedule {name!r} is missing in schedule.learning_rate: {error}")
    assert rates == pytest.approx(golden["rates"], rel=1e-4), f"schedule {name!r} has other rates"


@pytest.mark.parametrize("name", schema.tagged_models(schema.Augment))
def test_augmentation_is_complete(name):
    kind = schema.tagged_models(schema.Augment)[name]
    known = {kind.__name__ for kind in (*IMAGE_AUGMENTATIONS, *BATCH_MIXES)}
    places = {"augment.IMAGE_AUGMENTATIONS or BATCH_MIXES (its draw and apply)": known}
    check_parts("augmentation", kind.__name__, places)
    required = [key for key, field in kind.model_fields.items() if field.is_required()]
    assert required == ["name"], f"augmentation {name!r} has no defaults for a preview"
    drawn = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = (255 * drawn).to(torch.uint8)
    seen = [preview(name, images, seed) for seed in range(4)]
    assert all(one.shape == images.shape and one.dtype == images.dtype for one in seen)
    assert any(not torch.equal(one, images) for one in seen), f"augmentation {name!r} does nothing"


def names_of(requirements):
    return {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0].lower() for line in requirements}


def test_pyproject_lock_and_environment_agree():
    content = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    project, constraints = content["project"], content["tool"]["uv"]["constraint-dependencies"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["lab"] + extras["sweep"] + extras["dev"] + constraints
    wanted.remove("resnetlib[lab,sweep]")
    lock = (PROJECT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", lock, re.MULTILINE))
    assert names_of(wanted) <= set(locked)

    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *conda, pip = environment["dependencies"]
    spelled = {"pytorch": "torch", "matplotlib-base": "matplotlib", "ray-core": "ray"}
    given = {re.sub(r"^[a-z-]+", lambda m: spelled.get(m[0], m[0]), line) for line in conda}
    assert "--editable ." in pip["pip"]
    given |= set(pip["pip"]) - {"--editable ."}
    assert given - {"pip", f"python{project['requires-python']}"} == set(wanted)
    assert f"python{project['requires-python']}" in given


def test_lock_has_hashes_and_names_no_host():
    lock = (PROJECT / "requirements.lock").read_text()
    packages = re.split(r"^(?=[a-z0-9._-]+==)", lock, flags=re.MULTILINE)[1:]
    assert packages
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in lock


def test_recorded_files_have_unix_line_ends():
    """Their checksums are of the bytes, which Git on Windows would change without the attribute."""
    assert "* -text" in (PROJECT / ".gitattributes").read_text().splitlines()
    recorded = (PROJECT / "outputs" / "reference").rglob("*.csv")
    assert not [path for path in recorded if b"\r\n" in path.read_bytes()]


@pytest.mark.parametrize("package", ["analysis", "explore", "plots", "runs", "sweep"])
def test_names_of_a_package_are_there_when_they_are_used(package):
    module = importlib.import_module(f"resnetlib.{package}")
    assert module.__all__ and all(callable(getattr(module, name)) for name in module.__all__)


def test_editors_find_the_types():
    """Every package that imports lazily says in a stub what its names are."""
    for path in (PROJECT / "resnetlib").rglob("__init__.py"):
        assert ("lazy_loader" in path.read_text()) == path.with_suffix(".pyi").exists(), path
    assert (PROJECT / "resnetlib" / "py.typed").exists()

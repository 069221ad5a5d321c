"""Grade submissions: weights and experiment.yaml, evaluated on the genuine test set, never trained.

`resnetlib grade --zip OUT` writes a Gradescope autograder, which runs
`python -m resnetlib.reports.grade ROOT` for each submission. No code of a submission is run.
"""

import io
import json
import math
import os
import re
import stat
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import combinations
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import files
from ..data import Dataset, Split
from ..errors import RunError, print_line, shorten_line
from ..experiment import DEFAULT_BUDGET
from ..paths import PACKAGE, display_path, params_folder
from ..resnet import trained_fixed_weights
from ..runs.evidence import (
    Damaged,
    Evidence,
    LacksMemory,
    Unavailable,
    clean_line,
    describe_error,
    without_folder,
)
from ..runs.run import WEIGHTS
from ..runs.verify import FAIL, NOT_CHECKED, PASS, Result
from ..schema import Architecture
from ..size import measure_size

SUBMITTED = ("experiment.yaml", WEIGHTS)
# Weights in float64 and as many buffers; more does not fit a network within the budget.
BYTES_PER_PARAMETER, OTHER_BYTES = 16, 2**20
# Limits of what is evaluated, a few times what networks of the budget need: `champion` has 0.8
# billion multiply-accumulates, `wide66` layers of at most 135,168 values, the largest of all known
# networks 1.9 million values in its blocks, the deepest 54 blocks.
MOST_OPERATIONS, LARGEST_OUTPUT, MOST_OUTPUTS, MOST_BLOCKS = 2_000_000_000, 2**19, 2**22, 500
# Independent seeds of a recorded recipe agree on 82 to 95 % of the test images, on 27 to 42 %
# of those that at least one of them gets wrong, and their weights do not correlate.
SAME_MISTAKES, SAME_WEIGHTS = 0.6, 0.9
NEAR_IDENTICAL = (
    "Near-identical: independent seeds of one recipe agree on 82 to 95 % of the test images,\n"
    "on 27 to 42 % where one of them is wrong. Equal seeds of one recipe are near-identical too."
)
FEWEST_MISTAKES = 20  # images; the share of fewer means nothing
SAMPLED_WEIGHTS = 2**16  # of a network, for the similarity
# What grading needs of the packages that are installed here, at the same versions.
PACKAGES = (
    *("filelock", "lazy-loader", "numpy", "pandas", "platformdirs", "pydantic", "pyyaml"),
    *("safetensors", "torch", "tqdm"),
)


@dataclass(frozen=True)
class Assignment:
    """What a submission is measured by."""

    dataset: str = "cifar10"
    budget: int = DEFAULT_BUDGET  # most trainable parameters, whatever the experiment says


@dataclass(frozen=True)
class GradingData:
    """The test images of a data set, and the statistics of its training images.

    It stands for a `Dataset` in an evaluation, and is all of it that an autograder has.
    """

    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    per_image_std: tuple[float, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> "GradingData":
        statistics = (dataset.mean, dataset.std, dataset.per_image_std)
        return cls(dataset.test, dataset.classes, *statistics)

    def to_bytes(self) -> bytes:
        """An .npz file."""
        images, labels = self.test
        buffer = io.BytesIO()
        statistics = {name: getattr(self, name) for name in ("mean", "std", "per_image_std")}
        np.savez(buffer, images=images, labels=labels, classes=self.classes, **statistics)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> "GradingData":
        with np.load(path, allow_pickle=False) as kept:
            test = torch.from_numpy(kept["images"]), torch.from_numpy(kept["labels"])
            names = ("classes", "mean", "std", "per_image_std")
            return cls(test, *(tuple(kept[name].tolist()) for name in names))


@dataclass
class Submission(Evidence):
    """The two files of a submission: regular ones, and no larger than the budget allows."""

    assignment: Assignment = Assignment()

    def path(self, name: str) -> Path:
        if self.folder.is_symlink() or (self.folder / name).is_symlink():
            raise Damaged(f"{name} is a link, or is in a folder that is one")
        if not (self.folder / name).exists():
            raise Unavailable(f"{name} is missing")
        path = super().path(name)
        largest = BYTES_PER_PARAMETER * self.assignment.budget + OTHER_BYTES
        if path.stat().st_size > largest:
            raise Damaged(f"{name} is too large: {path.stat().st_size:,} bytes of {largest:,}")
        return path


# Checks: each needs those before it -------------------------------------------------------------


def _check_files(submission: Submission) -> Result:
    sizes = {name: submission.path(name).stat().st_size for name in SUBMITTED}
    return Result(PASS, ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items()))


def _check_experiment(submission: Submission) -> Result:
    experiment, expected = submission.experiment, submission.assignment.dataset
    if experiment.dataset != expected:
        return Result(FAIL, f"the experiment is on {experiment.dataset}, not on {expected}")
    return Result(PASS, f"{experiment.variant} on {experiment.dataset}")


def _check_parameters(submission: Submission) -> Result:
    architecture, budget = submission.experiment.architecture, submission.assignment.budget
    size = measure_size(architecture)
    if size.parameters > budget:
        return Result(FAIL, f"{size.parameters:,} parameters exceed the budget of {budget:,}")
    outputs = _outputs(architecture)
    limits = {
        "operations": (size.macs + _comparisons(architecture), MOST_OPERATIONS),
        "values of a layer": (max(outputs), LARGEST_OUTPUT),
        "values of all blocks": (sum(outputs), MOST_OUTPUTS),
        "blocks": (sum(architecture.depths), MOST_BLOCKS),
    }
    for name, (count, most) in limits.items():
        if count > most:
            detail = f"{count:,} {name} are too many to evaluate an image: at most {most:,}"
            return Result(FAIL, detail)
    return Result(PASS, f"{size.parameters:,} of {budget:,}")


def _comparisons(architecture: Architecture) -> int:
    """Of numbers in the stem's max-pooling, for one image."""
    channels, side = architecture.outputs[0]
    return channels * (side * architecture.stem_pool.kernel) ** 2 if architecture.stem_pool else 0


def _outputs(architecture: Architecture) -> list[int]:
    """Limits of the values that each layer of the stem and of the blocks computes of one image."""
    stem = architecture.outputs[0][0] * max(architecture.stem_sides) ** 2
    blocks = [block for stage in architecture.blocks for block in stage]
    return [stem, *(block.out_channels * block.in_side**2 for block in blocks)]


def _check_weights(submission: Submission) -> Result:
    model = submission.model
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        return Result(FAIL, f"{WEIGHTS} holds a value that is not finite")
    if trained := trained_fixed_weights(model):
        return Result(FAIL, f"{WEIGHTS} holds trained {trained}, which are not counted")
    return Result(PASS, "they fit the experiment")


def _check_accuracy(submission: Submission) -> Result:
    evaluation = submission.recomputed
    if not evaluation.logits.isfinite().all():
        return Result(FAIL, "the outputs of the network are not finite")
    return Result(PASS, f"{evaluation.accuracy:.2%} of {len(evaluation.labels):,} test images")


CHECKS: dict[str, Callable[[Submission], Result]] = {
    "files": _check_files,
    "experiment": _check_experiment,
    "parameters": _check_parameters,
    "weights": _check_weights,
    "accuracy": _check_accuracy,
}


@dataclass(frozen=True)
class Grade:
    """What became of a submission; `accuracy` is None, and its score 0, unless all checks pass."""

    name: str
    checks: Mapping[str, Result]
    parameters: int | None = None
    accuracy: float | None = None  # fraction of 1
    predictions: Tensor | None = None  # (N,) int64
    correct: Tensor | None = None  # (N,) bool
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of all weights, by name
    weights: Tensor | None = None  # a sample of them

    @property
    def score(self) -> float:
        """The accuracy in per cent."""
        return round(100 * (self.accuracy or 0), 4)

    @property
    def reason(self) -> str:
        """Why the score is zero; empty where it is not."""
        failed = [f"{name}: {r.detail}" for name, r in self.checks.items() if r.status == FAIL]
        return "; ".join(failed)


def grade_submission(folder: Path, data: Dataset | GradingData, assignment: Assignment) -> Grade:
    """Check and evaluate the submission in a folder.

    A mistake of the submission never raises. Raises `RunError` where this machine lacks memory.
    """
    name = clean_line((folder if folder.name else folder.absolute()).as_posix())
    submission = Submission(folder, lambda name: data, assignment=assignment)
    checks: dict[str, Result] = {}
    for claim, check in CHECKS.items():
        if any(result.status == FAIL for result in checks.values()):
            checks[claim] = Result(NOT_CHECKED, "an earlier check failed")
            continue
        try:
            result = check(submission)
        except LacksMemory as error:
            raise RunError(
                f"{name}: {shorten_line(str(error))}. That is not the submission's fault: nothing "
                "was graded. Try again, or hide the card: CUDA_VISIBLE_DEVICES=-1"
            ) from None
        except Unavailable as error:
            result = Result(FAIL, str(error))
        except Exception as error:  # of any parser, on a file that a stranger has written
            result = Result(FAIL, f"it cannot be evaluated: {describe_error(error)}")
        checks[claim] = Result(result.status, clean_line(without_folder(result.detail, folder)))
    if any(result.status == FAIL for result in checks.values()):
        return Grade(name, checks)
    evaluation, model = submission.recomputed, submission.model
    return Grade(
        name,
        checks,
        measure_size(submission.experiment.architecture).parameters,
        evaluation.accuracy,
        evaluation.predictions,
        evaluation.correct,
        {_place(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        _sample_weights(model),
    )


def _place(name: str) -> str:
    """The name of a tensor without its numbers beside dropout, which acts in training only."""
    return re.sub(r"\b(tail|attention)(\.\d+)+\.", r"\1.", name)


def _sample_weights(model: nn.Module) -> Tensor:
    """Evenly spaced trained weights of convolutions and linear layers, each layer to one scale.

    In the order of their places: networks that compute the same may define them in another one.
    """
    trained = [(_place(name), p) for name, p in model.named_parameters() if p.requires_grad]
    layers = [p.detach() for _, p in sorted(trained, key=itemgetter(0)) if p.ndim > 1]
    step = math.ceil(sum(layer.numel() for layer in layers) / SAMPLED_WEIGHTS)
    scaled = [layer.flatten() / (layer.square().mean().sqrt() + 1e-12) for layer in layers]
    return torch.cat(scaled)[::step].clone()


# Downloaded submissions --------------------------------------------------------------------------


def find_submissions(folders: Sequence[Path]) -> list[Path]:
    """The submissions that these folders mean, as `downloaded/` and `downloaded/*` mean the same.

    Several folders are one submission each. So is a single one with a submitted file; otherwise its
    subfolders are. A submission whose files are below only subfolders is the last of these.
    """
    inside, others = _visible(folders[0])
    if len(folders) == 1 and not _has_files(folders[0]):
        for path in others:
            print_line(f"{display_path(path)} is not a folder: skipped", to_stderr=True)
        folders = inside or folders
    if len(folders) > 1:
        folders = [folder for folder in folders if folder.name != MACOS]
    return [_innermost(folder) for folder in folders]


def _has_files(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in SUBMITTED)


DEEPEST = 10  # folders inside each other
MACOS = "__MACOSX"  # which archives made on a Mac bring along


def _visible(folder: Path) -> tuple[list[Path], list[Path]]:
    """Its subfolders and its other files, without hidden ones; none of an unreadable folder."""
    _, *kinds = next(os.walk(folder), ("", [], []))
    hidden = (".", MACOS)
    folders, others = (
        [folder / name for name in sorted(names) if not name.startswith(hidden)] for names in kinds
    )
    return folders, others


def _innermost(folder: Path) -> Path:
    """The folder that has the files, as a zip file of `outputs/lite/<run>` is unpacked."""
    for _ in range(DEEPEST):
        inside, _ = _visible(folder)
        if _has_files(folder) or folder.is_symlink() or len(inside) != 1:
            break  # a link is refused, wherever it leads
        (folder,) = inside
    return folder


class Similarity(NamedTuple):
    """How alike two submissions are; shares of 1."""

    names: tuple[str, str]
    agreement: float  # equal predictions, of all test images
    mistakes: float  # equal predictions, of the images that at least one gets wrong
    mistaken: int  # the number of these images
    weights: float | None  # cosine similarity; None for weights of different shapes

    @property
    def is_near_identical(self) -> bool:
        """Whether predictions or weights are too alike to be independent."""
        predictions = self.mistaken >= FEWEST_MISTAKES and self.mistakes >= SAME_MISTAKES
        return predictions or (self.weights or 0) >= SAME_WEIGHTS

    def __str__(self) -> str:
        similarity = self.weights
        weights = "" if similarity is None else f"; cosine similarity of weights {similarity:.3f}"
        return (
            f"{' and '.join(self.names)}: {self.agreement:.1%} equal predictions, "
            f"{self.mistakes:.1%} where one of them is wrong{weights}"
        )


def compare_grades(one: Grade, other: Grade) -> Similarity:
    """How alike two submissions are that both have an accuracy."""
    same = one.predictions == other.predictions
    wrong = ~(one.correct & other.correct)
    mistakes = same[wrong].double().mean().item() if wrong.any() else 1.0
    weights = None
    if one.shapes == other.shapes:
        weights = torch.cosine_similarity(one.weights, other.weights, dim=0).item()
    agreement = same.double().mean().item()
    return Similarity((one.name, other.name), agreement, mistakes, int(wrong.sum()), weights)


def near_identical(grades: Sequence[Grade]) -> list[Similarity]:
    """The pairs of submissions that are too alike to be independent."""
    evaluated = [grade for grade in grades if grade.accuracy is not None]
    pairs = (compare_grades(*pair) for pair in combinations(evaluated, 2))
    return [pair for pair in pairs if pair.is_near_identical]


def format_grades(grades: Sequence[Grade], similar: Sequence[Similarity]) -> str:
    """A line for each submission, the best first, then the pairs that are near-identical."""
    width = max(len(name) for name in ("submission", *(grade.name for grade in grades)))
    lines = [f"{'submission':{width}}  accuracy  parameters"]
    for grade in sorted(grades, key=lambda grade: (-grade.score, grade.name)):
        parameters = "–" if grade.parameters is None else f"{grade.parameters:,}"
        reason = f"  {grade.reason}" if grade.reason else ""
        lines.append(f"{grade.name:{width}}  {grade.score:6.2f} %  {parameters:>10}{reason}")
    if similar:
        lines += ["", NEAR_IDENTICAL, *map(str, similar)]
    return "\n".join(lines)


def grades_json(grades: Sequence[Grade], similar: Sequence[Similarity]) -> str:
    """An object with `submissions` and `near_identical`."""
    submissions = [
        {
            "submission": grade.name,
            "score": grade.score,
            "parameters": grade.parameters,
            "reason": grade.reason or None,
            "checks": {name: result._asdict() for name, result in grade.checks.items()},
        }
        for grade in grades
    ]
    pairs = [pair._asdict() for pair in similar]
    return json.dumps({"submissions": submissions, "near_identical": pairs}, indent=2)


# Gradescope --------------------------------------------------------------------------------------

SETUP = """\
#!/usr/bin/env bash
# Gradescope runs this once, when it builds the image of the autograder.
set -euo pipefail
root="${AUTOGRADER_ROOT:-/autograder}"
apt-get update
apt-get install -y python3-pip
python3 -m pip install uv || python3 -m pip install --break-system-packages uv
python3 -m uv venv --python PYTHON "$root/venv"
python3 -m uv pip install --python "$root/venv" --torch-backend cpu \\
    -r "$root/source/requirements.txt"
"""
RUN = """\
#!/usr/bin/env bash
# Gradescope runs this for each submission and reads results/results.json.
root="${AUTOGRADER_ROOT:-/autograder}"
python="${AUTOGRADER_PYTHON:-$root/venv/bin/python}"
export PYTHONPATH="$root/source${PYTHONPATH:+:$PYTHONPATH}"
cd "$root/source"  # no module is imported from the submission
mkdir -p "$root/results"
cp "$root/source/unfinished.json" "$root/results/results.json"
timeout 35m "$python" -P -m resnetlib.reports.grade "$root"
exit 0
"""
UNFINISHED = {
    "score": 0,
    "output": "The submission could not be evaluated in the time and memory of the autograder.",
}


def write_autograder(path: Path, data: GradingData, assignment: Assignment) -> None:
    """Write the zip file that Gradescope takes."""
    packages = [f"{name}=={version(name).partition('+')[0]}\n" for name in PACKAGES]
    content: dict[str, bytes] = {
        # The versions of the packages are those for the Python that runs here.
        "setup.sh": SETUP.replace("PYTHON", "{}.{}".format(*sys.version_info)).encode(),
        "run_autograder": RUN.encode(),
        "requirements.txt": "".join(packages).encode(),
        "assignment.json": json.dumps(asdict(assignment)).encode(),
        "unfinished.json": json.dumps(UNFINISHED).encode(),
        "test.npz": data.to_bytes(),
    }
    for source in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")]):
        content[f"resnetlib/{source.relative_to(PACKAGE).as_posix()}"] = source.read_bytes()
    for source in sorted(params_folder().glob("*.yaml")):
        content[f"params/{source.name}"] = source.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in content.items():
            entry = zipfile.ZipInfo(name)  # dated 1980: the same content gives the same file
            entry.external_attr = (stat.S_IFREG | (0o644 if "." in name else 0o755)) << 16
            entry.external_attr |= (0o111 << 16) if name == "setup.sh" else 0
            archive.writestr(entry, part, zipfile.ZIP_DEFLATED)
    files.write_bytes(path, buffer.getvalue())


def results_of(grade: Grade) -> dict[str, Any]:
    """The content of Gradescope's results.json."""
    tests = [
        {"name": name, "status": "passed" if r.status == PASS else "failed", "output": r.detail}
        for name, r in grade.checks.items()
        if r.status != NOT_CHECKED
    ]
    results = {
        "score": grade.score,
        "output": grade.reason or f"Test accuracy {grade.score:.2f} %.",
        "tests": tests,
    }
    if grade.accuracy is not None:
        results["leaderboard"] = [
            {"name": "test accuracy (%)", "value": grade.score, "order": "desc"},
            {"name": "parameters", "value": grade.parameters, "order": "asc"},
        ]
    return results


def autograde(root: Path) -> None:
    """Grade `root/submission` as Gradescope asks; write `root/results/results.json`."""
    assignment = Assignment(**files.read_json(root / "source" / "assignment.json"))
    data = GradingData.read(root / "source" / "test.npz")
    submission = _innermost(root / "submission")
    files.write_json(
        root / "results" / "results.json",
        results_of(grade_submission(submission, data, assignment)),
    )


if __name__ == "__main__":
    autograde(Path(sys.argv[1]))

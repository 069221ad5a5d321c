"""The command `resnetlib sweep`: a grid or a search, on an engine or as a Slurm script."""

import math
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, counted
from ..experiment import Execution, parse_duration
from ..paths import display_path
from .grid import expand_grid, read_alternatives
from .pool import LocalPool, Needs, visible_gpus
from .scheduler import Engine, carry_out, exit_code
from .slurm import write_slurm_script
from .task import Task, describe


@dataclass(frozen=True)
class Place:
    """Where runs are carried out."""

    at_once: int | None = None  # runs at a time; as many as fit unless given
    gpus: float | None = None  # of each run, or the share of one; 1 where there are some
    memory: float = 2.0  # of each run, in GB
    address: str | None = None  # of a Ray cluster; this machine unless given

    def needs(self, execution: Execution, has_gpus: bool) -> Needs:
        """What each run needs: one core and one thread on a CPU. Raises `ConfigError`."""
        if ":" in execution.device:
            raise ConfigError(
                f"device = {execution.device!r}: a sweep gives each run a card; name those that it "
                "may use by CUDA_VISIBLE_DEVICES, such as 1 or 0,2"
            )
        gpus = self.gpus
        if gpus is not None and execution.device not in ("auto", "cuda" if gpus else "cpu"):
            raise ConfigError(f"--gpus {gpus:g} contradicts device = {execution.device!r}")
        if gpus is None:
            gpus = 1.0 if has_gpus and re.match("auto|cuda", execution.device) else 0.0
        threads = execution.threads
        if threads == "auto":
            threads = None if gpus else 1
        # A run that is placed on a CPU must not use a GPU that it sees: Ray hides or shows all, and
        # a Mac has one for as many runs as it has cores.
        is_placed = self.address is not None or self.gpus is not None or sys.platform == "darwin"
        device = ("cuda" if gpus else "cpu") if is_placed else None
        return Needs(threads, gpus, self.memory, device)

    def engine(self, execution: Execution) -> Engine:
        if self.address is None:
            at_once = self.at_once or (1 if execution.device == "mps" else None)
            return LocalPool(self.needs(execution, bool(visible_gpus())), at_once)
        from .cluster import Cluster, connect

        ray = connect(self.address)
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        return Cluster(ray, self.needs(execution, has_gpus), self.at_once)


def sweep_grid(variants: Sequence[str], parameters: Sequence[tuple[str, str]], place: Place) -> int:
    """Train every combination; the exit code."""
    tasks = expand_grid(variants, parameters)
    execution = tasks[0].experiment.execution
    outcomes = carry_out(tasks, place.engine(execution), _seconds(execution))
    print(results_summary(tasks))
    return exit_code(outcomes.values())


def sweep_search(
    variants: Sequence[str],
    parameters: Sequence[tuple[str, str]],
    place: Place,
    *,
    ranges: Sequence[str],
    trials: int,
    save: str | None,
) -> int:
    """Search, and print and save the best; the exit code.

    Args:
        variants: the variant.
        parameters: names and texts of what all trials have in common.
        place: where the trials run.
        ranges: what is searched, as text.
        trials: of the whole study.
        save: the variant file to write for the best trial.
    """
    from .study import Search, has_complete, read_range

    if len(variants) != 1:
        raise ConfigError("a search varies one variant")
    overrides = {}
    for name, values in read_alternatives(parameters):
        if len(values) != 1:
            raise ConfigError(f"-p {name}: give one value; a search tries several by --search")
        overrides[name] = values[0]
    search = Search(variants[0], overrides, [read_range(text) for text in ranges], save)
    execution = search.base.execution
    with search.opened() as study:
        engine = place.engine(execution)
        outcomes = search.carry_out(study, engine, trials, _seconds(execution))
        print(search.describe(study))
        if save and (path := search.write_variant(study)):
            print(f"best trial: {display_path(path)}")
        elif save:
            print(f"no trial is complete: {save} is not written")
        return exit_code(outcomes) or int(not has_complete(study))


def write_slurm(
    variants: Sequence[str], parameters: Sequence[tuple[str, str]], place: Place, file: Path
) -> str:
    """Write a Slurm array script for a grid; what to do with it."""
    tasks = expand_grid(variants, parameters)
    needs = place.needs(tasks[0].experiment.execution, bool(visible_gpus()))
    write_slurm_script(tasks, needs, file, place.at_once)
    submit = f"sbatch {shlex.quote(str(file))}"
    gpus = counted(math.ceil(needs.gpus), "GPU")
    each = f"{counted(needs.cpus, 'core')}, {needs.memory:g} GB and {gpus}"
    return f"{display_path(file)}: {len(tasks)} tasks with {each} each; submit them with: {submit}"


def _seconds(execution: Execution) -> float:
    return parse_duration(execution.stop_after) if execution.stop_after else math.inf


def plan_table(tasks: Sequence[Task]) -> str:
    """One line per run: whether it is done, its name and its folder."""
    lines = []
    for task in tasks:
        epochs = len(task.history())
        state = "done" if task.run else f"epoch {epochs}" if epochs else "new"
        lines.append(f"{state:10} {task.name}  ({display_path(task.folder)})")
    return "\n".join([*lines, counted(len(tasks), "run")])


def results_summary(tasks: Sequence[Task]) -> str:
    """Accuracy after the last epoch of each setting over its seeds, and which ones differ.

    It is that on held-out images if every run has some. On one data set every setting is compared
    with the first one, where both have two seeds or more.
    """
    has_holdout = all(task.experiment.recipe.holdout for task in tasks)
    column = "holdout_accuracy" if has_holdout else "test_accuracy"
    groups: dict[str, list[float]] = {}
    for task in tasks:
        if task.run:
            accuracy = float(task.history()[-1][column])
            groups.setdefault(_name_without_seed(task), []).append(accuracy)
    if not groups:
        return "no run is done"
    what = "held-out images" if has_holdout else "test set"
    head = f"accuracy on {what}, per cent"
    width = max(map(len, [head, *groups]))
    lines = [f"{head:{width}}   n    mean  s.d."]
    for name, values in groups.items():
        spread = f"{100 * statistics.stdev(values):5.2f}" if len(values) > 1 else "    –"
        mean = 100 * statistics.fmean(values)
        lines.append(f"{name:{width}} {len(values):3}  {mean:6.2f} {spread}")
    one_dataset = len({task.experiment.dataset for task in tasks}) == 1
    if one_dataset and len([values for values in groups.values() if len(values) > 1]) > 1:
        same_network = len({str(task.experiment.architecture) for task in tasks}) == 1
        lines += _comparison(groups, same_network)
    return "\n".join(lines)


def _comparison(groups: dict[str, list[float]], same_network: bool) -> list[str]:
    """A line for each setting that can be compared with the first one."""
    from ..analysis import significance  # imports torch

    (first, baseline), *others = groups.items()
    compare = significance.compare_recipes if same_network else significance.compare_networks
    table = compare(baseline, dict(others))
    test = "Dunnett's test" if same_network else "Welch's test, Holm's correction"
    lines = [f"compared with {first} ({test}):"] if len(table) else []
    for name, row in table.iterrows():
        low, high = (significance.format_points(row[bound]) for bound in ("low", "high"))
        verdict = "different" if row["significant"] else "not distinguishable"
        lines.append(
            f"  {name}: {significance.format_points(row['difference'])} points "
            f"(95 % interval {low} to {high}), {verdict}"
        )
    return lines


def _name_without_seed(task: Task) -> str:
    overrides = {k: v for k, v in task.overrides.items() if k.rpartition(".")[2] != "seed"}
    return describe(task.variant, overrides)

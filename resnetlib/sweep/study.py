"""Search for parameters by Optuna, judged on held-out training images alone."""

import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..config import list_variants, load_experiment, parse_value
from ..errors import ConfigError, RunError, shorten
from ..experiment import TRAINING_IMAGES, Execution, Experiment, Variant
from ..paths import display_path, output_folder, params_folder
from ..size import check_size
from ..yaml_core import read_yaml, write_yaml
from .display import Display
from .grid import each_note_once, split_outside_brackets
from .scheduler import Engine, Outcome, Scheduler
from .task import Task, describe

if TYPE_CHECKING:
    from optuna import Study, Trial

HOLDOUT_SHARE = 0.1  # of the training images, unless `holdout` is given: 5,000 of CIFAR-10
REDUCTION = 3  # at each rung a third of the trials continues
METRIC = "holdout_accuracy"
EPOCHS = "epochs"  # attribute of a trial: those reported so far
AGAIN = "again"  # attribute of a trial: the number of the one, cut off, that it carries out again
SAVED = "saved"  # attribute of a study: the SHA-256 of the variant file that it wrote last


@dataclass(frozen=True)
class Range:
    """The values that a parameter may take in a search."""

    name: str
    kind: str  # log, linear, int or choice
    values: tuple[str, ...]  # lower and upper bound, or the choices

    def suggest(self, trial: "Trial") -> Any:
        if self.kind == "choice":
            return parse_value(trial.suggest_categorical(self.name, self.values))
        low, high = (parse_value(value) for value in self.values)
        if self.kind == "int":
            return trial.suggest_int(self.name, low, high)
        return self._round(trial.suggest_float(self.name, low, high, log=self.kind == "log"))

    def _round(self, value: float) -> float:
        """Readable in names and files: three digits, or as many as a narrow range needs."""
        low, high = (parse_value(bound) for bound in self.values)
        rounded = float(f"{value:.3g}")
        step = 10 ** (math.floor(math.log10(high)) - 2) if high > 0 else 0
        if step > (high - low) / 50:
            rounded = round(value, 2 - math.floor(math.log10(high - low)))
        return min(max(rounded, low), high)

    def examples(self) -> list[Any]:
        """Its choices or its bounds, and of `log` and `linear` also a number that is not whole."""
        values = [parse_value(value) for value in self.values]
        if self.kind in ("log", "linear"):
            low, high = values
            inner = [self._round(low + (high - low) * step / 97) for step in range(1, 97)]
            values += [value for value in inner if value % 1][:1]
        return values

    def __str__(self) -> str:
        return f"{self.name}={self.kind}({','.join(self.values)})"


def read_range(text: str) -> Range:
    """`lr=log(0.01,0.3)` as a range. Raises `ConfigError`."""
    hint = "write NAME=log(0.01,0.3), linear(0,1), int(2,5) or choice(sgd,adam)"
    match = re.fullmatch(r"\s*([\w.]+)\s*=\s*(log|linear|int|choice)\((.*)\)\s*", text)
    if not match:
        raise ConfigError(f"--search {shorten(text)}: {hint}")
    name, kind, inside = match.groups()
    if name.rpartition(".")[2] in {"seed", "holdout", "dataset", *Execution.model_fields}:
        raise ConfigError(f"--search {name}: a search chooses network and recipe; set -p {name}")
    values = tuple(part.strip() for part in split_outside_brackets(inside))
    if kind == "choice":
        if len(set(values)) < len(values) or len(values) < 2 or "" in values:
            raise ConfigError(f"--search {shorten(text)}: give two or more different choices")
        return Range(name, kind, values)
    number = int if kind == "int" else int | float
    bounds = [parse_value(value) for value in values]
    if len(bounds) != 2 or not all(
        isinstance(bound, number) and not isinstance(bound, bool) and math.isfinite(bound)
        for bound in bounds
    ):
        what = "whole numbers" if kind == "int" else "numbers"
        raise ConfigError(f"--search {shorten(text)}: give two {what}; {hint}")
    if not bounds[0] < bounds[1] or (kind == "log" and bounds[0] <= 0):
        above = " above 0" if kind == "log" else ""
        raise ConfigError(f"--search {shorten(text)}: give a lower bound{above} and a higher one")
    return Range(name, kind, values)


class Search:
    """A study: a variant, fixed overrides and ranges; its trials are in a journal file.

    The objective is the accuracy after the last epoch on images held out of the training images.
    Test images are not used. Trials that are worse than others after about a ninth or a third of
    the epochs are stopped (asynchronous successive halving, Li et al. 2020), unless the epochs are
    searched: at the same epoch, schedules of other lengths are not as far.

    Args:
        variant: the variant that is varied.
        overrides: the same in all trials; `holdout` is set if it is missing.
        ranges: what is searched.
        save: the name of a variant file to write for the best trial.
    """

    def __init__(
        self,
        variant: str,
        overrides: Mapping[str, Any],
        ranges: Sequence[Range],
        save: str | None = None,
    ):
        names = [one.name for one in ranges]
        for name in names:
            if names.count(name) > 1 or name in overrides:
                raise ConfigError(f"{name} is specified twice")
        self.variant, self.ranges, self.save = variant, ranges, save
        with each_note_once():
            base = load_experiment(variant, **overrides)
            self.overrides = dict(overrides)
            if not base.recipe.holdout:
                if any(name.rpartition(".")[2] == "holdout" for name in overrides):
                    raise ConfigError("holdout = 0: a search needs held-out training images")
                self.overrides["holdout"] = round(HOLDOUT_SHARE * TRAINING_IMAGES[base.dataset])
            self.base = load_experiment(variant, **self.overrides)
            for values in self._corners():
                check_size(self._experiment(values))
        self._check_name()
        self.name = f"{self.base.variant.replace('/', '-')}-{self._digest()[:8]}"
        root = output_folder(self.base.execution.output_root)
        self.folder = root / "searches" / self.name

    def _experiment(self, values: Mapping[str, Any]) -> Experiment:
        """What a trial with these values trains."""
        return load_experiment(self.variant, **(self.overrides | values))

    def _corners(self) -> Iterator[dict[str, Any]]:
        """Lowest and highest values, each choice: mistakes are found before any work."""
        first = {one.name: parse_value(one.values[0]) for one in self.ranges}
        yield {one.name: parse_value(one.values[-1]) for one in self.ranges}
        for one in self.ranges:
            yield from (first | {one.name: value} for value in one.examples())

    def _digest(self) -> str:
        """Of what trials of one study have in common."""
        return files.sha256_of(
            "\n".join([self.base.digest, *sorted(map(str, self.ranges))]).encode()
        )

    @contextmanager
    def opened(self) -> Iterator["Study"]:
        """The study; trials that were cut off are enqueued again."""
        try:
            import optuna
            from optuna.storages import JournalStorage, journal
        except ImportError:
            raise ConfigError(
                "--search needs Optuna: in the project pip install -e '.[sweep]'"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with files.lock(self.folder / ".lock"):
            path = str(self.folder / "journal.log")
            _drop_unfinished_line(Path(path))
            backend = journal.JournalFileBackend(path, journal.JournalFileOpenLock(path))
            try:
                study = optuna.create_study(
                    study_name=self.name,
                    storage=JournalStorage(backend),
                    direction="maximize",
                    load_if_exists=True,
                )
            except (ValueError, LookupError, TypeError, AssertionError, AttributeError):
                raise RunError(
                    f"{display_path(Path(path))} is damaged; rename it to start the search anew"
                ) from None
            # Not the same draws again in a study that is continued.
            study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
            again = _carried_out_again(study)
            states = optuna.trial.TrialState
            for trial in study.get_trials(states=[states.RUNNING, states.FAIL]):
                # One whose run failed, perhaps for lack of a GPU, but none that was refused.
                was_cut_off = trial.state == states.RUNNING
                if trial.number not in again and (was_cut_off or "run" in trial.user_attrs):
                    study.enqueue_trial(trial.params, {AGAIN: trial.number})
                if was_cut_off:
                    study.tell(trial.number, state=states.FAIL)
            self._check_save(study)
            yield study

    def carry_out(
        self, study: "Study", engine: Engine, trials: int, seconds: float = math.inf
    ) -> list[Outcome]:
        """Carry out trials until the study has this many; what became of those of this call.

        Args:
            study: of `opened`.
            engine: where the trials run.
            trials: of the whole study, earlier calls included.
            seconds: after this time the trials stop; the same call resumes them.
        """
        from optuna.trial import TrialState

        outcomes = []
        done = min(trials, _ended(study))
        display = Display((trials - done) * self._usual_work, trials, done)
        for trial in study.get_trials(states=[TrialState.COMPLETE]):
            name = describe(self.variant, self.overrides | self._values(trial))
            display.compare(trial.value, METRIC, name)
        display.line(f"{done} of {trials} trials are done; up to {engine.slots} at once")
        active: dict[Task, list[Trial]] = {}
        with Scheduler(engine, display, seconds) as scheduler:
            while True:
                outcomes += self._ask_for_trials(study, trials, scheduler, active)
                for task, outcome in scheduler.poll():
                    if outcome.status == "failed" and task.has_diverged:
                        outcome = Outcome("cancelled")  # as a bad trial: a search meets some
                    outcomes.append(outcome)
                    for trial in active.pop(task):
                        self._tell(study, trial, task, outcome)
                display.done = min(trials, _ended(study))
                for task in scheduler.running.keys() - scheduler.cancelled:
                    if self._is_pruned(task, active[task]):
                        display.line(f"pruned    {task.name}")
                        scheduler.cancel(task)
                if not active and (_begun(study) >= trials or not scheduler.has_time):
                    break
        if _begun(study) < trials:
            outcomes.append(Outcome("stopped"))
        return outcomes

    @cached_property
    def _usual_work(self) -> int:
        """That of a trial which changes neither network nor epochs."""
        with redirect_stderr(io.StringIO()):  # `Search` has printed what it notes
            return Task(self.variant, self.overrides).work

    def _ask_for_trials(
        self, study: "Study", trials: int, scheduler: Scheduler, active: dict[Task, list["Trial"]]
    ) -> list[Outcome]:
        """Start trials while there is room; what became of those that cannot be started.

        Args:
            study: which proposes them.
            trials: the most of the whole study.
            scheduler: to which their tasks are added.
            active: the trials of each task that has not ended, which is updated.
        """
        from optuna.trial import TrialState

        refused = []
        slots = scheduler.engine.slots
        while scheduler.has_time and len(active) < slots and _begun(study) < trials:
            trial = study.ask()
            scheduler.display.work -= self._usual_work
            values = {one.name: one.suggest(trial) for one in self.ranges}
            try:
                with redirect_stderr(io.StringIO()):
                    task = Task(self.variant, self.overrides | values)
                    check_size(task.experiment)
            except ConfigError as error:  # settings that contradict each other
                scheduler.display.line(f"FAILED    trial {trial.number}: {error}")
                study.tell(trial, state=TrialState.FAIL)
                refused.append(Outcome("failed", str(error)))
                continue
            same = next((other for other in active if other.folder == task.folder), None)
            if same is None:
                active[task] = [trial]
                scheduler.add(task)
                scheduler.display.work += task.work
            else:
                active[same].append(trial)
        return refused

    def _is_pruned(self, task: Task, trials: Sequence["Trial"]) -> bool:
        """Report the epochs saved so far; whether the trial is worse than others at a new rung."""
        epochs = task.experiment.recipe.epochs
        reported = _report(trials[0], task.history()[: epochs - 1])
        if any(one.name.rpartition(".")[2] == "epochs" for one in self.ranges):
            return False
        rungs = [rung for rung in _rungs(epochs) if rung in reported]
        return len(trials) == 1 and any(_is_worse(trials[0], rung) for rung in rungs)

    def _tell(self, study: "Study", trial: "Trial", task: Task, outcome: Outcome) -> None:
        """Tell the study how a trial ended; one stopped at the time limit is left running."""
        from optuna.trial import TrialState

        trial.set_user_attr("run", f"{task.experiment.variant}/{task.folder.name}")
        if outcome.status == "done":
            history = task.history()
            _report(trial, history)
            study.tell(trial, float(history[-1][METRIC]))
        elif outcome.status == "cancelled":
            study.tell(trial, state=TrialState.PRUNED)
        elif outcome.status == "failed":
            study.tell(trial, state=TrialState.FAIL)

    def describe(self, study: "Study") -> str:
        """The best trials and the number of all, as text."""
        from optuna.trial import TrialState

        states = [trial.state for trial in study.trials]
        complete = study.get_trials(states=[TrialState.COMPLETE])
        lines = [
            f"{len(complete)} trials complete, {states.count(TrialState.PRUNED)} stopped early, "
            f"{states.count(TrialState.FAIL) - len(_carried_out_again(study))} failed; "
            f"accuracy on {self.base.recipe.holdout:,} held-out training images, one seed each:"
        ]
        for trial in sorted(complete, key=lambda trial: -trial.value)[:5]:
            settings = ", ".join(f"{k} {v}" for k, v in self._values(trial).items())
            lines.append(f"  {trial.value:7.2%}  {settings}  ({trial.user_attrs['run']})")
        return "\n".join(lines)

    def _values(self, trial: Any) -> dict[str, Any]:
        """The settings of a finished trial, as they were trained."""
        from optuna.trial import FixedTrial

        return {one.name: one.suggest(FixedTrial(trial.params)) for one in self.ranges}

    # The best trial as a variant -----------------------------------------------------------------

    @property
    def _save_path(self) -> Path:
        return params_folder() / f"{self.save}.yaml"

    def _check_name(self) -> None:
        if self.save and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", self.save):
            raise ConfigError(f"--save {shorten(self.save)}: give a name of letters and digits")
        if self.save and files.is_read_only(params_folder()):
            raise ConfigError(f"--save: {display_path(params_folder())} cannot be written")

    def _check_save(self, study: "Study") -> None:
        """Refuse a file that this study did not write, or that was changed."""
        if not self.save or not (path := self._save_path).exists():
            return
        content = path.read_bytes()
        checksum = files.sha256_of(content)
        if checksum == study.user_attrs.get(SAVED):
            return
        if has_complete(study) and content == self.variant_yaml(study).encode():
            study.set_user_attr(SAVED, checksum)  # killed just after it wrote the file
        else:
            raise ConfigError(
                f"--save {self.save}: {display_path(path)} exists and is not replaced; "
                f"give another name than {', '.join(list_variants())}"
            )

    def variant_yaml(self, study: "Study") -> str:
        """The best trial as a variant file, without `published`."""
        best = study.best_trial
        original = load_experiment(self.variant)
        with each_note_once():
            experiment = self._experiment(self._values(best))
        content = experiment.model_dump(
            mode="json", include=set(Variant.model_fields), exclude_defaults=True
        )
        for of_the_original in ("published", "earlier_recipes"):
            content.pop(of_the_original, None)
        if not experiment.recipe.holdout_user:
            content["recipe"].pop("holdout", None)
        if original.recipe.holdout:
            content["recipe"]["holdout"] = original.recipe.holdout
        chosen = [one.name for one in self.ranges]
        content["assumed"] = [
            name
            for name in content.get("assumed", [])
            if not any(f".recipe.{name}".endswith(f".{one}") for one in chosen)
        ]
        content["variant"] = self.save
        content["title"] = f"{original.title}, {', '.join(chosen)} from a search"
        content["source"] = (
            f"resnetlib sweep from variant {original.variant}: best of {_ended(study)} trials over "
            f"{', '.join(map(str, self.ranges))} by accuracy on {self.base.recipe.holdout} "
            f"held-out training images of {self.base.dataset} ({best.value:.2%}, one seed)"
        )
        return write_yaml(content)

    def write_variant(self, study: "Study") -> Path | None:
        """Write the best trial as a variant file; None where no trial is complete."""
        if not has_complete(study):
            return None
        self._check_save(study)  # again: the trials may have taken days
        text = self.variant_yaml(study)
        Variant.model_validate(read_yaml(text))
        files.write_text(self._save_path, text)
        study.set_user_attr(SAVED, files.sha256_of(text.encode()))
        return self._save_path


def _drop_unfinished_line(journal: Path) -> None:
    """Remove what a full disk or a killed process left of a line: the next would be added to it."""
    if journal.exists():
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)


def has_complete(study: "Study") -> bool:
    """Whether a trial has come to its last epoch."""
    return any(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False))


def _carried_out_again(study: "Study") -> set[int]:
    """The numbers of trials that were cut off, and enqueued again under another number."""
    trials = study.get_trials(deepcopy=False)
    return {trial.user_attrs[AGAIN] for trial in trials if AGAIN in trial.user_attrs}


def _begun(study: "Study") -> int:
    """How many different trials have been started."""
    return sum(trial.state.name != "WAITING" for trial in _different_trials(study))


def _ended(study: "Study") -> int:
    """How many different trials are complete, stopped early or failed."""
    return sum(trial.state.is_finished() for trial in _different_trials(study))


def _different_trials(study: "Study") -> list["Trial"]:
    """Those that no later one carries out again."""
    again = _carried_out_again(study)
    return [trial for trial in study.get_trials(deepcopy=False) if trial.number not in again]


def _report(trial: "Trial", history: Sequence[Mapping[str, str]]) -> list[int]:
    """Report the epochs that were not reported yet, and return them."""
    new = history[trial.user_attrs.get(EPOCHS, 0) :]
    for row in new:
        trial.report(float(row[METRIC]), int(row["epoch"]))
    if new:
        trial.set_user_attr(EPOCHS, len(history))
    return [int(row["epoch"]) for row in new]


def _rungs(epochs: int) -> tuple[int, int]:
    """The epochs after which trials are compared: a ninth of all, and three times that."""
    first = max(1, round(epochs / REDUCTION**2))
    return first, REDUCTION * first


def _is_worse(trial: "Trial", rung: int) -> bool:
    """Whether a trial is not in the best third of those that have come to this epoch.

    Optuna's own pruner would have more rungs, where they come before the last epoch, and would
    count a trial twice that was cut off and is carried out again.
    """
    trials = trial.study.get_trials(deepcopy=False)
    again = _carried_out_again(trial.study)
    reported = {t.number: t.intermediate_values for t in trials if t.number not in again}
    values = sorted((of[rung] for of in reported.values() if rung in of), reverse=True)
    return reported[trial.number][rung] < values[max(0, len(values) // REDUCTION - 1)]

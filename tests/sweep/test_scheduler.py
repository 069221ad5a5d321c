"""What becomes of runs: done, failed, killed and started again, locked, out of time."""

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import PROJECT, wait_until

from resnetlib import files
from resnetlib.sweep import process, scheduler
from resnetlib.sweep.display import Display
from resnetlib.sweep.pool import LocalPool, Needs
from resnetlib.sweep.scheduler import ATTEMPTS, carry_out, exit_code
from resnetlib.sweep.task import Task

pytestmark = pytest.mark.slow


def local(at_once=2):
    return LocalPool(Needs(), at_once)


def starts(task):
    return len((task.folder / "starts.txt").read_text().splitlines())


def statuses(outcomes):
    return [outcome.status for outcome in outcomes.values()]


def test_run_that_fails_without_its_log_stops_no_other(quick, monkeypatch):
    read = process.RunProcess._message
    monkeypatch.setattr(process.RunProcess, "_message", lambda run: run.log.unlink() or read(run))
    outcomes = carry_out([quick(lr=0.9), quick(lr=0.1)], local(1))
    assert statuses(outcomes) == ["failed", "done"]


def test_failed_run_fails_alone_with_its_message(quick, capsys):
    tasks = [quick(lr=0.9), quick(lr=0.1), quick(lr=0.2)]
    outcomes = carry_out(tasks, local())
    assert [outcomes[task].status for task in tasks] == ["failed", "done", "done"]
    assert exit_code(outcomes.values()) == 1
    printed = capsys.readouterr().out
    assert "0 of 3 runs are done; up to 2 at once" in printed
    assert f"FAILED    {tasks[0].name}: it fails (full output in {tasks[0].log})" in printed
    assert f"finished  {tasks[1].name}: test 52.00%" in printed
    assert starts(tasks[0]) == 1


def test_finished_runs_are_not_repeated(quick, capsys):
    first, second = quick(seed=0), quick(seed=1)
    carry_out([first], local())
    outcomes = carry_out([first, second], local())
    assert statuses(outcomes) == ["done", "done"]
    assert "1 of 2 runs are done" in capsys.readouterr().out
    assert (starts(first), starts(second)) == (1, 1)


@pytest.mark.parametrize("second", [{"holdout": 100}, {"dataset": "cifar10"}], ids=str)
def test_accuracies_of_two_kinds_are_not_compared(quick, monkeypatch, second):
    made = []
    monkeypatch.setattr(
        scheduler, "Display", lambda *a, **k: made.append(Display(*a, **k)) or made[-1]
    )
    monkeypatch.setattr(scheduler.Scheduler, "is_idle", True)  # nothing is trained
    for tasks in ([quick(), quick(seed=1)], [quick(), quick(**second)]):
        with pytest.raises(KeyError):  # no task has an outcome
            carry_out(tasks, local())
    assert [display.comparable for display in made] == [True, False]


def test_time_limit_ends_what_no_node_takes(quick, monkeypatch):
    class Full:
        """A cluster without room, which never places a task."""

        slots, given, stopped = 1, 0, ()
        patience = time.monotonic() + 20

        def start(self, task, **settings):
            self.given += 1

        def stop(self, task):
            self.stopped = (task,)

        def finished(self):
            time.sleep(0.01)
            assert time.monotonic() < self.patience, "the sweep waits although its time is over"
            return [(task, process.Exit(None, "cancelled")) for task in self.stopped]

        def close(self):
            pass

    monkeypatch.setattr(scheduler, "OVERTIME_SECONDS", 0.1)
    engine = Full()
    outcomes = carry_out([quick(seed=0), quick(seed=1)], engine, seconds=0.2)
    assert (statuses(outcomes), exit_code(outcomes.values())) == (["stopped"] * 2, 4)
    assert engine.given == 1


@pytest.mark.parametrize("content", [b"", b"x\n1\n", b"\xff\xfe", b"epoch,test_accuracy\n1,high\n"])
def test_damaged_run_does_not_stop_the_others(quick, capsys, content):
    first, second = quick(seed=0), quick(seed=1)
    carry_out([first], local())
    (first.folder / "run.json").write_text("{")
    assert first.run is None and not first.has_diverged
    carry_out([first], local())
    (first.folder / "history.csv").write_bytes(content)
    assert first.history() == [] and first.run is None
    assert statuses(carry_out([first, second], local()))[1] == "done"


def test_full_output_does_not_end_the_runs(quick):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "no space")

    with contextlib.redirect_stdout(Full()):
        outcomes = carry_out([quick()], local())
    assert statuses(outcomes) == ["done"]


def test_run_without_report_is_completed(quick):
    task = quick()
    carry_out([task], local())
    (task.folder / "report.html").unlink()
    carry_out([task], local())
    assert (task.folder / "report.html").exists() and starts(task) == 2
    (task.folder / "notebook.ipynb").unlink()  # the run was killed before its notebook was executed
    assert not task.is_complete
    (task.folder / "report.html").unlink()  # as of a recorded run that was trimmed
    files.write_json(task.folder / "run.json", task.run.record | {"not_kept": {"report": ""}})
    carry_out([task], local())
    assert starts(task) == 2


def test_killed_run_is_started_again_and_resumes(quick, capsys):
    task = quick(lr=0.7)
    assert statuses(carry_out([task], local())) == ["done"]
    assert starts(task) == 2
    assert [row["epoch"] for row in task.history()] == ["1", "2"]
    assert "started again" in capsys.readouterr().out


def test_run_of_a_variant_that_has_changed_fails_and_says_so(quick, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    text = (PROJECT / "params" / "lite.yaml").read_text().replace("variant: lite", "variant: mine")
    path.write_text(text)
    task = Task(str(path), quick().overrides)
    path.write_text(text.replace("lr: 0.01", "lr: 0.02"))
    assert statuses(carry_out([task], local())) == ["failed"]
    assert f"{path} was changed since the sweep began" in capsys.readouterr().out
    assert not list(tmp_path.rglob("starts.txt"))  # nothing was trained


def test_run_that_is_always_killed_fails(quick, monkeypatch, capsys):
    program = "import os; print('epoch 1/2', flush=True); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(process, "PROGRAM", ("-c", program))
    task = quick()
    started = []
    pool = local()
    monkeypatch.setattr(
        pool, "start", lambda *a, f=pool.start, **k: (started.append(1), f(*a, **k))
    )
    outcomes = carry_out([task], pool)
    assert statuses(outcomes) == ["failed"] and len(started) == ATTEMPTS
    assert f"FAILED    {task.name}: killed by signal 9 (" in capsys.readouterr().out


def test_locked_run_is_left_to_its_process(quick, capsys):
    """Two sweeps at once: the second one waits for the run, and does not train it again."""
    task, other = quick(seed=0, epochs=20), quick(seed=1)
    words = [sys.executable, *process.PROGRAM, *task.words()]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as elsewhere:
        wait_until(lambda: task.is_locked, process=elsewhere)
        outcomes = carry_out([task, other], local())
        elsewhere.stdin.close()
    assert statuses(outcomes) == ["done", "done"]
    assert starts(task) == 1
    printed = capsys.readouterr().out
    assert f"waiting   {task.name}: in use by another process" in printed
    assert "by another process or trial\n" in printed


def test_run_of_somebody_else_is_not_waited_for(quick, monkeypatch):
    """Its lock file cannot be opened: whether a process holds it cannot be told."""
    task = quick()
    carry_out([task], local())
    (task.folder / "notebook.ipynb").unlink()
    assert not task.is_complete
    monkeypatch.setattr(files, "is_read_only", lambda folder: folder == task.folder)
    monkeypatch.setattr(files, "is_locked", lambda path: True)
    assert not task.is_locked and task.is_complete


def test_sweep_stops_in_time_and_resumes(quick):
    """The limit holds for the sweep: the second run, which would start after it, does not."""
    tasks = [quick(seed=seed, epochs=20) for seed in range(2)]
    outcomes = carry_out(tasks, local(1), seconds=1)
    assert statuses(outcomes) == ["stopped", "stopped"]
    assert exit_code(outcomes.values()) == 4
    assert starts(tasks[0]) == 1 and not tasks[1].folder.exists()
    assert statuses(carry_out(tasks, local())) == ["done", "done"]
    assert [starts(task) for task in tasks] == [2, 1]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_runs_end_with_the_sweep(quick, end, tmp_path):
    """Even a driver that is killed leaves no process behind; what was trained is kept."""
    tasks = [quick(seed=seed, epochs=100) for seed in range(2)]
    program = (
        "import signal, sys\n"
        "from resnetlib.signals import stop_now\n"
        "from resnetlib.sweep import process\n"
        "from resnetlib.sweep.pool import LocalPool, Needs\n"
        "from resnetlib.sweep.scheduler import carry_out\n"
        "from resnetlib.sweep.task import Task\n"
        "signal.signal(signal.SIGTERM, stop_now)\n"
        f"process.PROGRAM = {process.PROGRAM!r}\n"
        f"tasks = [Task('lite', settings) for settings in {[t.overrides for t in tasks]!r}]\n"
        "carry_out(tasks, LocalPool(Needs(), 2))\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: all(task.history() for task in tasks), process=driver)
    pids = [int((task.folder / "starts.txt").read_text()) for task in tasks]
    os.kill(driver.pid, end)
    _, errors = driver.communicate(timeout=60)
    if end == signal.SIGTERM:
        assert "interrupted; 0 of 2 runs are done: the same command resumes" in errors
    wait_until(lambda: not any(map(is_alive, pids)), 30)
    for task in tasks:
        assert files.read_json(task.folder / "run.json")["status"] == "interrupted"
        assert 0 < len(task.history()) < 100


def is_alive(pid):
    """Whether the process exists and is no zombie, which nobody has waited for."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_lower_priority_holds_for_the_process(quick):
    task = quick(epochs=100)
    pool = LocalPool(Needs(), 1, niceness=7)
    pool.start(task)
    pid = pool.processes[task].process.pid
    try:
        assert os.getpriority(os.PRIO_PROCESS, pid) == max(7, os.getpriority(os.PRIO_PROCESS, 0))
        assert os.getsid(pid) != os.getsid(0)  # whose priority is lowered too
    finally:
        pool.close()
    assert not is_alive(pid)

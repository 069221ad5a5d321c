"""Runs on a Ray cluster: lost workers, nodes and drivers; nodes without our file system."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from conftest import TINY, wait_until

from resnetlib import files, load_run, train
from resnetlib.errors import STOPPED_IN_TIME, ConfigError
from resnetlib.sweep import cluster, process
from resnetlib.sweep.pool import Needs
from resnetlib.sweep.scheduler import carry_out
from resnetlib.sweep.task import Task

pytestmark = pytest.mark.slow

STORE_BYTES = 80 * 2**20  # of each node's object store: the smallest that Ray takes


@pytest.fixture(scope="module")
def ray_cluster():
    """A cluster without nodes that carry out runs; afterwards nothing of it is left."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: Ray puts sockets into it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        utils = pytest.importorskip("ray.cluster_utils")
        os.makedirs(f"{folder}/ray", exist_ok=True)
        found = utils.Cluster()
        yield found
        found.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def add_node(ray_cluster, cpus):
    """A node; Ray gives it 30 s to start, which beside other work may not be enough."""
    for attempt in range(5):
        try:
            return ray_cluster.add_node(
                num_cpus=cpus,
                memory=3 * cpus * 10**9,
                object_store_memory=STORE_BYTES,
                include_dashboard=False,
                include_log_monitor=False,
                no_monitor=True,
            )
        except Exception as error:  # Ray raises just this
            if attempt == 4 or "timed out during startup" not in str(error):
                raise
    return None


@pytest.fixture(scope="module")
def node(ray_cluster):
    return add_node(ray_cluster, 2)


@pytest.fixture
def engine(ray_cluster, node):
    return cluster.Cluster(cluster.connect(ray_cluster.address), Needs(device="cpu"))


def starts(task):
    return [int(pid) for pid in (task.folder / "starts.txt").read_text().split()]


def test_lost_worker_is_replaced_and_failed_run_fails_alone(quick, engine, capsys, monkeypatch):
    tasks = [quick(lr=0.9), quick(lr=0.1), quick(lr=0.2, epochs=15)]
    finished = engine.finished
    killed = []

    def kill_one():
        if not killed and tasks[2].history():
            (pid,) = starts(tasks[2])  # whose parent is the worker of Ray
            with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                worker = int(file.read().rpartition(")")[2].split()[1])
            killed.append(os.kill(worker, signal.SIGKILL))
        return finished()

    monkeypatch.setattr(engine, "finished", kill_one)
    outcomes = carry_out(tasks, engine)
    assert [outcome.status for outcome in outcomes.values()] == ["failed", "done", "done"]
    assert outcomes[tasks[0]].message == "it fails"
    assert [len(starts(task)) for task in tasks] == [1, 1, 2]
    assert [row["epoch"] for row in tasks[2].history()] == [str(n) for n in range(1, 16)]
    printed = capsys.readouterr().out
    assert f"lost      {tasks[2].name}: its node or worker was lost" in printed
    assert not list(tasks[0].folder.parents[1].glob(".sweep-*"))


def test_node_without_our_files_sends_the_folder(quick, engine):
    task = quick()
    engine.probes.add(task.folder.parents[1])  # so that no node finds a probe file
    engine.start(task)
    ended = wait_until(engine.finished)
    assert ended == [(task, process.Exit(0))]
    engine.close()
    assert task.is_complete
    assert not (task.folder / ".lock").exists()  # which is not sent


def test_folder_from_a_node_replaces_no_run_that_is_further(tmp_path):
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    for folder, status, epoch in ((here, "interrupted", 39), (there, "interrupted", 2)):
        record = {"status": status, "checkpoints": {f"epoch-{epoch:05d}-step-000000.pt": ""}}
        files.write_json(folder / "run.json", record)
    cluster.unpack_folder(cluster.pack_folder(there), here)
    assert "00039" in (here / "run.json").read_text()
    files.write_json(there / "run.json", {"status": "done"})
    cluster.unpack_folder(cluster.pack_folder(there), here)
    assert files.read_json(here / "run.json") == {"status": "done"}
    assert [path.name for path in here.parent.iterdir()] == ["run"]


def test_folder_from_a_node_replaces_no_run_in_use(tmp_path):
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    files.write_json(here / "run.json", {"status": "running"})
    files.write_json(there / "run.json", {"status": "done"})
    content = cluster.pack_folder(there)
    with files.lock(here / ".lock"):
        cluster.unpack_folder(content, here)
    assert files.read_json(here / "run.json") == {"status": "running"}
    cluster.unpack_folder(content, here)
    assert files.read_json(here / "run.json") == {"status": "done"}


def test_interrupted_arrival_of_a_folder_keeps_the_one_before(tmp_path, monkeypatch):
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    files.write_json(here / "run.json", {"status": "interrupted"})
    files.write_json(there / "run.json", {"status": "done"})
    rename = Path.rename

    def interrupted(path, target):
        if ".receiving-" in str(path) and path.name == "run":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cluster.unpack_folder(cluster.pack_folder(there), here)
    assert files.read_json(here / "run.json") == {"status": "interrupted"}
    assert [path.name for path in here.parent.iterdir()] == ["run"]


def test_run_on_a_node_sends_no_empty_folder_and_keeps_to_the_time(quick):
    """The time of a sweep also runs while its task waits for a node."""
    echo = ("-c", "import sys; sys.exit('Error: ' + ' '.join(sys.argv))")

    def run(until):
        end, folder = cluster.run_on_node(
            quick(), {}, {}, until=until, program=echo, directory=".", probe="no such file"
        )
        assert folder is None
        return end

    assert run(math.inf).code == 1 and "stop_after" not in run(math.inf).message
    assert "-p stop_after 1000s" in run(time.time() + 1000.3).message
    assert run(time.time() - 5) == process.Exit(STOPPED_IN_TIME)


def test_closed_cluster_leaves_no_process(quick, engine):
    task = quick(epochs=1000)
    engine.start(task)
    wait_until(task.history)
    engine.close()
    (pid,) = starts(task)
    assert not psutil.pid_exists(pid)  # no zombie either
    assert load_run(task.folder).status == "interrupted"


def test_missing_cluster_is_named():
    with pytest.raises(ConfigError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        cluster.connect("127.0.0.1:1")


@pytest.mark.exhaustive
def test_sweep_survives_a_lost_node_and_a_lost_driver(ray_cluster, tmp_path):
    """Twelve real runs on two nodes: all done, each to the end once, equal to single runs."""
    nodes = [add_node(ray_cluster, 1) for _ in range(2)]
    settings = TINY | {"epochs": 20, "threads": 1}
    tasks = [
        Task("lite", settings | {"seed": seed, "output_root": str(tmp_path / "sweep")})
        for seed in range(12)
    ]
    words = tasks[0].words()
    words[words.index("seed") + 1] = "0..11"
    command = [sys.executable, "-m", "resnetlib", "sweep", *words]
    command += ["--address", ray_cluster.address]

    def done():
        return sum(task.run is not None for task in tasks)

    def is_under_way(ended):
        return done() >= ended and any(task.history() and not task.run for task in tasks)

    driver = subprocess.Popen(command)
    wait_until(lambda: is_under_way(3), 1800, driver)
    ray_cluster.remove_node(nodes[1], allow_graceful=False)
    wait_until(lambda: is_under_way(6), 1800, driver)
    driver.kill()
    driver.wait()
    add_node(ray_cluster, 1)
    assert subprocess.run(command, check=False).returncode == 0

    assert done() == 12
    for task in tasks:
        assert task.is_complete and (task.folder / "notebook.ipynb").is_file()
        log = task.log.read_text()
        assert len(re.findall(r"^epoch 20/20 ", log, re.MULTILINE)) == 1, log
        single = train(task.experiment, output=tmp_path / "single" / task.folder.name)
        ours = load_run(task.folder)
        assert ours.record["inexact_resumes"] == []
        for name in ("model.safetensors", "predictions.npz", "confusion_matrix.csv"):
            assert ours.record["artifacts"][name] == single.record["artifacts"][name], name
        columns = [name for name in single.history.columns if name != "seconds"]
        assert ours.history[columns].equals(single.history[columns])

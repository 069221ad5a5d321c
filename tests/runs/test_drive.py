"""Runs on Google Drive: made locally, copied, resumed on a new machine."""

import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from resnetlib import files, load_run, train
from resnetlib.errors import ConfigError, DataError, RunError
from resnetlib.runs import checkpoint, drive, lifecycle, record
from resnetlib.runs.record import record_checksums
from resnetlib.training import Callback


@pytest.fixture
def machine(quick_figures, tmp_path, monkeypatch):
    """A mounted Drive, and the local disk of a machine."""
    mounted = SimpleNamespace(drive=tmp_path / "drive", disk=tmp_path / "disk")
    monkeypatch.setattr(drive, "DRIVE", mounted.drive)
    monkeypatch.setenv("XDG_CACHE_HOME", str(mounted.disk))
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SHARE", 1e9)  # after each epoch
    (mounted.drive / "MyDrive").mkdir(parents=True)
    return mounted


class MachineLost(Callback):
    """Keeps what is on Drive when the second epoch has been copied."""

    def __init__(self, folder, kept):
        self.folder = folder
        self.kept = kept

    def after_step(self, training):  # before the copy of this step
        if training.epochs_done == 2 and not self.kept.exists():
            shutil.copytree(self.folder, self.kept)


def on_drive(tiny, machine, **overrides):
    return tiny(epochs=3, output_root=machine.drive / "MyDrive" / "my runs", **overrides)


def lose_content_of_record(folder):
    (folder / "run.json").write_text("")


def lose_record_and_checkpoint(folder):
    (folder / "run.json").unlink()
    max(folder.glob("checkpoints/*.pt")).unlink()


def bring_back_earlier_record(folder):
    earlier = min(folder.glob(f"checkpoints/*{drive.RECORD}"))
    assert list(files.read_json(earlier)["checkpoints"]) == [EPOCH.format(1)]
    shutil.copy(earlier, folder / "run.json")


EPOCH = "epoch-{:05}-step-000000.pt"
LOSSES = {  # epochs that are left
    lose_content_of_record: 2,
    lose_record_and_checkpoint: 1,
    bring_back_earlier_record: 2,
}


@pytest.mark.slow
def test_new_machine_resumes_from_drive(machine, tiny, tmp_path, capsys):
    """Also where Drive lost what was written last: the result is that of an uninterrupted run."""
    experiment = on_drive(tiny, machine)
    folder = experiment.folder
    whole = train(experiment, callbacks=[MachineLost(folder, tmp_path / "kept")])
    assert whole.path == folder and whole.status == "done"
    assert not list(folder.glob("checkpoints/*"))
    for lose, epochs in LOSSES.items():
        shutil.rmtree(folder)
        shutil.rmtree(machine.disk)
        shutil.copytree(tmp_path / "kept", folder)
        lose(folder)
        capsys.readouterr()
        resumed = train(experiment)
        assert f"resuming after epoch {epochs}\n" in capsys.readouterr().out, lose.__name__
        for name in ("model.safetensors", "predictions.npz"):
            assert resumed.record["artifacts"][name] == whole.record["artifacts"][name]


def test_record_is_that_of_the_newest_checkpoint_on_drive(tmp_path):
    def write(path, *epochs, status="running", started="today"):
        names = {EPOCH.format(epoch): "" for epoch in epochs}
        record = {"status": status, "started": started, "checkpoints": names}
        files.write_json(tmp_path / path, record)

    for epoch in (3, 4):  # the earlier ones have been removed
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / EPOCH.format(epoch)).touch()
        write(f"checkpoints/{EPOCH.format(epoch)}{drive.RECORD}", epoch - 1, epoch)
    write("run.json", 1, 2)
    assert max(drive.read_record(tmp_path)["checkpoints"]) == EPOCH.format(4)
    (tmp_path / "checkpoints" / EPOCH.format(4)).unlink()
    assert max(drive.read_record(tmp_path)["checkpoints"]) == EPOCH.format(3)
    write("run.json", 4, 5)
    assert max(drive.read_record(tmp_path)["checkpoints"]) == EPOCH.format(5)
    write("run.json", 1, started="later")  # over again: the checkpoints are of the earlier run
    assert max(drive.read_record(tmp_path)["checkpoints"]) == EPOCH.format(1)
    write("run.json", status="done")
    assert drive.read_record(tmp_path)["status"] == "done"


@pytest.mark.slow
def test_folder_on_drive_with_another_experiment_is_refused(machine, tiny, tmp_path):
    first = on_drive(tiny, machine)
    train(first, callbacks=[MachineLost(first.folder, tmp_path / "kept")])
    second = on_drive(tiny, machine, seed=1)
    with pytest.raises(ConfigError, match="holds another experiment"):
        train(second, output=first.folder)
    shutil.rmtree(first.folder)
    shutil.copytree(tmp_path / "kept", first.folder)  # one that is not finished
    shutil.rmtree(machine.disk)
    with pytest.raises(ConfigError, match="holds another experiment"):
        train(second, output=first.folder)
    assert not machine.disk.exists()


@pytest.mark.slow
def test_finished_run_on_drive_is_loaded_and_mended(machine, tiny, capsys, monkeypatch):
    experiment = on_drive(tiny, machine)
    run = train(experiment)
    weights = run.path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(b"")
    assert train(experiment).path == run.path
    assert weights.read_bytes() == content

    files.write_text(run.path / "notebook.ipynb", "made from the run")
    record_checksums(run.path, ["notebook.ipynb"])
    (run.path / "notebook.ipynb").write_text("edited")
    assert train(experiment).path == run.path
    weights.unlink()  # and is mended
    assert train(experiment).path == run.path
    assert (run.path / "notebook.ipynb").read_text() == "edited"

    shutil.rmtree(machine.disk)
    capsys.readouterr()
    assert train(experiment).record["started"] == run.record["started"]
    assert capsys.readouterr().out == "" and not machine.disk.exists()

    (run.path / "figures" / "curves.png").unlink()
    assert train(experiment).path == run.path
    weights.unlink()
    with pytest.raises(RunError, match=r"but model\.safetensors is lost, .* trains it again"):
        train(experiment)

    (run.path / "report.html").touch()
    (run.path / "notes.txt").touch()
    # Runs are told apart by the second in which they began, and such short ones may share it.
    monkeypatch.setattr(record, "now", lambda: "2100-01-01T00:00:00+00:00")
    train(on_drive(tiny, machine, fresh=True))
    assert not (run.path / "report.html").exists()
    assert (run.path / "notes.txt").exists()
    assert load_run(run.path).status == "done"

    (run.path / "run.json").write_text("")
    with pytest.raises(RunError, match="is damaged"):
        train(experiment)
    assert train(on_drive(tiny, machine, fresh=True)).status == "done"


@pytest.mark.slow
def test_run_on_drive_survives_a_fresh_one_that_cannot_start(machine, tiny, monkeypatch):
    folder = train(on_drive(tiny, machine)).path
    shutil.rmtree(machine.disk)  # a new machine
    monkeypatch.setattr(lifecycle, "load_dataset", Mock(side_effect=DataError("no network")))
    with pytest.raises(DataError):
        train(on_drive(tiny, machine, fresh=True))
    kept = drive.read_record(folder)
    assert kept["status"] == "done" and not drive.lost_files(folder, kept["artifacts"])


@pytest.mark.slow
def test_full_drive_does_not_end_a_training(machine, tiny, monkeypatch):
    """It is made locally all the same, and the same call copies it later."""
    experiment = on_drive(tiny, machine)

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    real = drive.files.write_bytes
    monkeypatch.setattr(
        drive.files,
        "write_bytes",
        lambda path, content: (full if machine.drive in path.parents else real)(path, content),
    )
    with (
        pytest.warns(UserWarning, match="No space left"),
        pytest.raises(RuntimeError, match="the same call copies it again"),
    ):
        train(experiment)
    monkeypatch.setattr(drive.files, "write_bytes", real)
    assert train(experiment).status == "done"


def test_unmounted_drive_is_refused(machine, tiny):
    shutil.rmtree(machine.drive)
    with pytest.raises(ConfigError, match="not mounted"):
        train(on_drive(tiny, machine))
    assert not machine.drive.exists() and not machine.disk.exists()

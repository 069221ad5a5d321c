"""The examination of an installation: what it reports, and the faults that it finds."""

import builtins
import os
import stat
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec

import pytest
import torch
from click.testing import CliRunner

from resnetlib import device, doctor, files
from resnetlib.cli import main
from resnetlib.doctor import examine, format_examination
from resnetlib.download import CIFAR10_ARCHIVE, CIFAR10_MD5


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    """CIFAR-10 is not looked at, which takes half a second."""
    monkeypatch.setattr("resnetlib.download.data_roots", lambda root=None: [tmp_path / "data"])


def test_examine_reports_versions_devices_and_data(no_data):
    facts, _ = examine()
    assert facts["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert facts["chosen device"] in ("cpu", "cuda", "mps") and "chosen precision" in facts
    assert {"chosen compile for lite", "chosen memory format for lite"} <= facts.keys()
    assert "not found" in facts["CIFAR-10"] and "GiB free" in facts["outputs"]
    assert all(name in facts for name in (*doctor.PACKAGES, "python", "operating system", "cores"))


def test_doctor_prints_and_exits_with_3_for_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda: ({"torch": "2.15", "cores": "2"}, []))
    done = CliRunner().invoke(main, ["doctor"])
    assert (done.exit_code, done.output) == (
        0,
        "torch: 2.15\ncores: 2\n\nNo problem was found.\n",
    )
    monkeypatch.setattr(doctor, "examine", lambda: ({"torch": "2.15"}, ["numpy is missing"]))
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 3
    assert "PROBLEM: numpy is missing" in done.output and "No problem" not in done.output


def test_examine_names_unsatisfied_requirements(no_data, monkeypatch):
    wanted = ["numpy>=99", "nothing-of-this-name>=1", "click", "pytest>=99; extra == 'dev'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    facts, problems = examine()
    pip = doctor._pip()
    missing = f"nothing-of-this-name is not installed: `{pip} install 'nothing-of-this-name>=1'`"
    assert f"PROBLEM: {missing}\n" in format_examination(facts, [*problems, "x"])
    assert any("pip install 'numpy>=99'`" in one for one in problems)
    assert not [one for one in problems if one.startswith(("click", "pytest"))]


@pytest.mark.skipif(find_spec("setuptools") is None, reason="takes setuptools")
def test_look_for_pip_leaves_distutils_to_setuptools():
    """It must be setuptools' own where torch compiles."""
    program = "from resnetlib import doctor; doctor._pip(); import setuptools"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_examine_reports_a_clone_that_is_not_installed(no_data, monkeypatch):
    real = metadata.distribution

    def absent(name):
        if name == "resnetlib":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    facts, problems = examine()
    assert facts["resnetlib"].startswith("not installed, in ")
    assert {"python", "torch", "numpy"} <= facts.keys()
    assert any(
        one.startswith("resnetlib is not installed:") and "pip install -e .`" in one
        for one in problems
    )
    assert not [one for one in problems if "cannot be examined" in one]


def test_examine_survives_a_broken_torch(no_data, monkeypatch):
    """As on Windows without the libraries that torch needs; the rest is still reported."""
    real = builtins.__import__

    def broken(name, *rest):
        if name == "torch":
            raise OSError("DLL load failed")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    facts, problems = examine()
    assert "device cannot be examined: OSError: DLL load failed" in problems
    assert "outputs" in facts


@pytest.fixture
def nvidia_card(tmp_path, monkeypatch):
    """The driver's program names a card, which torch does not see."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4060'\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device.unused_card.cache_clear()
    yield program
    device.unused_card.cache_clear()


@pytest.mark.skipif(os.name == "nt", reason="the driver's program is a shell script")
@pytest.mark.parametrize("built", [None, "13.0"])
def test_torch_without_cuda_beside_a_card_is_reported(
    no_data, nvidia_card, monkeypatch, tiny, built
):
    monkeypatch.setattr(torch.version, "cuda", built)
    reason = "needs a newer driver" if built else "is built without CUDA"
    message = (
        f"the NVIDIA GeForce RTX 4060 is not used: torch {torch.__version__} {reason}. `uv pip"
    )
    _, problems = examine()
    (problem,) = [one for one in problems if "RTX" in one]
    assert problem.startswith(message) and "--torch-backend=auto" in problem
    with pytest.warns(UserWarning, match="RTX 4060 is not used"):
        device.resolve_device_settings(tiny(device="auto"))
    device.resolve_device_settings(tiny(device="cpu"))  # it was asked for
    device.unused_card.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert device.unused_card() == ""


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a card here")
def test_run_names_the_unused_card_in_one_line(nvidia_card, tmp_path):
    program = [sys.executable, "-m", "resnetlib", "run", "lite", "--dry-run"]
    values = ["-p", "dataset", "digits", "-p", "output_root", str(tmp_path)]
    done = subprocess.run([*program, *values], capture_output=True, text=True)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("the NVIDIA GeForce RTX 4060 is not used: ")


def test_examine_names_damaged_data(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in CIFAR10_MD5:
        (folder / name).touch()
    monkeypatch.setattr("resnetlib.download.data_roots", lambda root=None: [tmp_path])
    _, problems = examine()
    assert len([one for one in problems if "is damaged: its MD5 is" in one]) == len(CIFAR10_MD5)


def test_examine_names_missing_files_and_a_damaged_archive(tmp_path, monkeypatch):
    monkeypatch.setattr("resnetlib.download.data_roots", lambda root=None: [tmp_path])
    for name in CIFAR10_MD5.keys() - {"test_batch"}:
        (tmp_path / name).touch()
    facts, problems = examine()
    assert "downloaded on first use" in facts["CIFAR-10"]
    (problem,) = [one for one in problems if "test_batch" in one]
    assert problem.endswith(" lacks test_batch: add what is missing, or delete these files")
    archive = tmp_path / CIFAR10_ARCHIVE
    archive.write_bytes(b"half")
    facts, problems = examine()
    assert facts["CIFAR-10"].endswith(f"{CIFAR10_ARCHIVE}, unpacked on first use")
    (problem,) = [one for one in problems if CIFAR10_ARCHIVE in one]
    assert "is damaged: its MD5 is" in problem
    monkeypatch.setattr("resnetlib.download.CIFAR10_ARCHIVE_MD5", files.md5(archive))
    assert not [one for one in examine()[1] if CIFAR10_ARCHIVE in one]


def test_examine_names_outputs_that_are_no_folder(no_data, tmp_path, monkeypatch):
    outputs = tmp_path / "outputs"
    monkeypatch.setattr(doctor, "output_folder", lambda: outputs)
    problem = "is not a folder: `-p output_root FOLDER` names another"
    assert not [one for one in examine()[1] if problem in one]
    outputs.symlink_to(tmp_path / "nothing")
    assert f"{tmp_path / 'nothing'} {problem}" in examine()[1]


def test_examine_names_the_kernel_of_another_python(no_data, tmp_path, monkeypatch):
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "python"
    other.symlink_to(sys.executable)
    content = f'{{"argv": ["{other}", "-m", "ipykernel_launcher"], "display_name": "x"}}'
    (kernel / "kernel.json").write_text(content)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    _, problems = examine()
    assert any(f"the kernel `python3` is {other}, not this Python" in one for one in problems)
    (kernel / "kernel.json").write_text(content.replace(str(other), sys.executable))
    assert not [one for one in examine()[1] if "kernel" in one]

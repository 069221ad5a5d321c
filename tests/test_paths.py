"""The folders of the project, here and on Kaggle."""

import sys
import types
from pathlib import Path

import pytest

from resnetlib import paths


@pytest.fixture
def nowhere(monkeypatch):
    """No host of notebooks, wherever the tests run."""
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)


def test_host_is_known_by_its_kernel(nowhere, monkeypatch):
    assert paths.host() == ""
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert paths.host() == "Colab"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")  # its image is made from Colab's
    assert paths.host() == "Kaggle"


def test_display_path_is_one_printable_line(tmp_path):
    assert paths.display_path(tmp_path / "a\nb\x1b[2J\udc80 模型") == f"{tmp_path}/a?b?[2J? 模型"
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert paths.display_path(loop / "run") == f"{loop}/run"


def test_display_path_without_a_home(monkeypatch):
    monkeypatch.setattr(paths.os.path, "expanduser", lambda path: path)  # no user, no HOME
    assert paths.display_path(Path("/elsewhere/run")) == "/elsewhere/run"


def test_installed_package_shortens_only_the_users_folders(nowhere, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "PROJECT", tmp_path)  # site-packages
    monkeypatch.chdir(tmp_path.parent)
    assert paths.display_path(tmp_path / "resnetlib") == f"{tmp_path.name}/resnetlib"


def test_output_folder_on_kaggle_is_kept(nowhere, monkeypatch):
    assert paths.output_folder() == paths.PROJECT / "outputs"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert paths.output_folder() == Path("/kaggle/working/outputs")
    assert paths.output_folder("elsewhere") == Path("elsewhere")

"""A variant is one file: everything that loops over variants accepts a new one."""

import shutil

import pytest
import yaml
from click.testing import CliRunner
from conftest import PROJECT, benchmark

from resnetlib import config, explore, list_variants, load_experiment, paths, plots
from resnetlib.cli import main
from resnetlib.reports.leaderboard import markdown_table, results_table, with_table
from resnetlib.reports.page import write_index
from resnetlib.runs.find import reference_runs
from resnetlib.runs.lifecycle import check_experiment

pytestmark = pytest.mark.slow

NAME = "brand-new_net2"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one more variant file and no code for it."""
    params = shutil.copytree(PROJECT / "params", tmp_path / "params")
    content = yaml.safe_load((params / "lite.yaml").read_text())
    content |= {"variant": NAME, "title": "A new network", "published": {"test_accuracy": 0.5}}
    content["architecture"]["widths"] = [8, 16]
    content["architecture"]["depths"] = [1, 2]
    (params / f"{NAME}.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "outputs").mkdir()
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    assert config.params_folder() == params
    return tmp_path


def test_new_variant_is_in_every_table_and_figure(project, open_page):
    assert NAME in list_variants()
    check_experiment(load_experiment(NAME, dataset="digits"))
    listed = CliRunner().invoke(main, ["list"], catch_exceptions=False)
    assert NAME in listed.output and "50.00" in listed.output

    page = open_page(write_index())
    row = page.locator("#experiments tr", has_text=NAME)
    assert "50.00" in row.inner_text()
    assert "#" in row.locator(".dot").get_attribute("style")

    table = explore.published()
    assert NAME in table.index
    plots.sizes(table, budget=5_000_000)
    plots.draw(load_experiment(NAME).architecture)
    assert "brand" in " ".join(text.get_text() for text in plots.sizes(table, 5_000_000)[0].texts)


def test_new_variant_is_in_the_benchmarks(project):
    with benchmark("reproduce") as reproduce:
        planned = reproduce.plan("published")
        assert [run.experiment.seed for run in planned if run.variant == NAME] == [0]
        assert NAME in reproduce.status_table(planned)
    with benchmark("throughput") as throughput:
        assert NAME in throughput.comparable()


def test_new_variant_leaves_the_readme_unchanged(project):
    readme = (PROJECT / "README.md").read_text()
    assert with_table(readme, markdown_table(results_table(reference_runs()))) == readme

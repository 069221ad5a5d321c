"""The class: the variant files of student teams, their sizes, and where they are listed."""

import json

import jsonschema
import pytest
from click.testing import CliRunner
from conftest import size_by_torch

from resnetlib import explore, list_variants, load_experiment, train
from resnetlib.cli import main
from resnetlib.config import known_variants, list_class_variants
from resnetlib.errors import ConfigError
from resnetlib.experiment import CLAIM_KINDS
from resnetlib.paths import params_folder
from resnetlib.runs.find import find_run
from resnetlib.runs.verify import FAIL, overall, verify_runs
from resnetlib.size import check_size, measure_size
from resnetlib.yaml_core import read_yaml

pytestmark = pytest.mark.usefixtures("quick_figures")

TEAMS = list_class_variants()
SCHEMA = json.loads((params_folder() / "schema.json").read_text())


def test_class_is_apart_from_the_variants():
    assert len(TEAMS) >= 30
    assert not [name for name in list_variants() if name.startswith("class")]
    assert known_variants() == list_variants() + TEAMS


@pytest.mark.slow
def test_every_team_has_a_source_a_header_and_a_trial(capsys):
    for name in TEAMS:
        text = (params_folder() / f"{name}.yaml").read_text(encoding="utf-8")
        content = read_yaml(text)
        jsonschema.validate(content, SCHEMA)
        first, second, *_ = text.splitlines()
        assert first == "# yaml-language-server: $schema=../schema.json", name
        assert second.startswith(("# Spring 202", "# Fall 202")), name
        assert content["source"].startswith("github.com/"), name
        assert "@" not in text, name
        trial = load_experiment(name, dataset="digits", epochs=2)
        assert trial.architecture == load_experiment(name).architecture


@pytest.mark.slow
@pytest.mark.parametrize("name", TEAMS)
def test_class_networks_have_their_published_count(name):
    experiment = load_experiment(name)
    assert measure_size(experiment.architecture) == size_by_torch(experiment.architecture)
    assert check_size(experiment) <= 5_000_000  # refuses another count than the published one


def test_list_class_has_every_team_and_list_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr("resnetlib.cli.output_folder", lambda: tmp_path)
    listed = CliRunner().invoke(main, ["list", "--class"])
    assert listed.exit_code == 0
    heads, first, *others = listed.stdout.partition("\n\n")[0].splitlines()
    assert heads.split()[-4:] == ["claimed", "reproduced", "runs", "of"]
    assert " ".join(first.split()) == "class/yifei 4,768,522 798.8 M 750 97.80 – – best on test"
    assert sorted(line.split()[0] for line in (first, *others)) == TEAMS
    claims = [line.split()[5] for line in (first, *others)]
    known = [float(claim) for claim in claims if claim != "–"]
    assert known == sorted(known, reverse=True)
    assert claims == [*map("{:.2f}".format, known), *["–"] * (len(TEAMS) - len(known))]
    assert "class/" not in CliRunner().invoke(main, ["list"]).stdout


def test_unknown_variant_names_the_nearest_team():
    for wanted in ("yifei", "class/yifie"):
        with pytest.raises(ConfigError, match=r"did you mean 'class/yifei'\?.*list --class"):
            load_experiment(wanted)


def test_file_of_the_class_is_named_with_its_folder(tmp_path, monkeypatch):
    (tmp_path / "class").mkdir()
    text = (params_folder() / "class" / "yifei.yaml").read_text(encoding="utf-8")
    path = tmp_path / "class" / "yifei.yaml"
    path.write_text(text.replace("variant: class/yifei", "variant: yifei"))
    monkeypatch.setattr("resnetlib.config.params_folder", lambda: tmp_path)
    with pytest.raises(ConfigError, match="variant is 'yifei'; it must be 'class/yifei'"):
        load_experiment("class/yifei")


def test_claims_are_labelled_by_kind():
    claims = explore.claims()
    assert set(claims["kind"]) <= set(CLAIM_KINDS)
    assert list(claims.loc["class/yifei", ["claimed", "kind", "group"]]) == [
        0.978,
        "best on test",
        "class",
    ]
    assert list(claims.loc["class/shreya", ["claimed", "kind"]]) == [0.9354, "test"]
    assert list(claims.loc["class/gokulnpc", ["claimed", "kind"]]) == [0.9368, "validation"]
    assert list(claims.loc["lite", ["claimed", "kind", "group"]]) == [0.7987, "test", "variants"]
    assert claims["parameters"].is_monotonic_increasing
    assert "class/matzefit" not in claims.index  # states no accuracy


@pytest.mark.slow
@pytest.mark.usefixtures("leaderboard_without_figures")
def test_run_of_a_team_is_found_verified_and_listed(tmp_path):
    experiment = load_experiment(
        "class/kawarjeet", dataset="digits", epochs=1, widths=[4, 4, 4], output_root=tmp_path
    )
    run = train(experiment)
    assert run.path.parent == tmp_path / "class" / "kawarjeet"
    assert find_run("class/kawarjeet", tmp_path).path == run.path
    assert find_run(f"class/kawarjeet/{run.path.name}", tmp_path).path == run.path
    with pytest.raises(ConfigError, match="no finished run of 'class/yifei'"):
        find_run("class/yifei", tmp_path)
    ((_, results),) = verify_runs([run.path])
    assert overall(results) != FAIL
    page = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert page.exit_code == 0, page.output
    assert "class/kawarjeet</code>" in (tmp_path / "index.html").read_text(encoding="utf-8")

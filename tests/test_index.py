"""The page of all runs and the results table of the README: what a reader finds there."""

import json
import re
import shutil
import statistics
from urllib.parse import unquote

import pytest
from conftest import PROJECT, TINY, recorded_lite

from resnetlib import files, list_variants, load_experiment, train
from resnetlib.errors import RunError
from resnetlib.progress import duration
from resnetlib.reports.leaderboard import (
    BEGIN,
    END,
    best_for_size,
    experiments,
    headline,
    markdown_table,
    results_table,
    significantly_best,
    text_table,
    with_table,
)
from resnetlib.reports.page import write_index
from resnetlib.runs.find import find_runs, reference_runs, split_unreadable
from resnetlib.runs.run import load_run

LITE = PROJECT / "outputs" / "reference" / "lite"
LITE_METRICS = [json.loads(path.read_text()) for path in LITE.glob("*/metrics.json")]
LITE_ACCURACIES = [100 * metrics["test_accuracy"] for metrics in LITE_METRICS]
LITE_MEAN = statistics.mean(LITE_ACCURACIES)
LITE_TOLD = f"{LITE_MEAN:.2f} ± {statistics.stdev(LITE_ACCURACIES):.2f}"


def copied(run, folder, variant=None, *, accuracy=None, record=None, **overrides):
    """A copy of a run folder that says another variant, seed, recipe, accuracy or record."""
    shutil.copytree(
        run.path,
        folder,
        ignore=shutil.ignore_patterns("figures", "*.npz", "*.safetensors", "*.ipynb"),
    )
    changed = {"seed": run.experiment.seed, "dataset": run.experiment.dataset} | overrides
    experiment = load_experiment(variant or run.experiment.variant, **changed)
    files.write_text(folder / "experiment.yaml", experiment.to_yaml())
    if accuracy is not None:
        files.write_json(folder / "metrics.json", run.metrics | {"test_accuracy": accuracy})
    content = run.record | {
        "variant": experiment.variant,
        "dataset": experiment.dataset,
        "seed": experiment.seed,
        "experiment": experiment.digest,
    }
    content["artifacts"] = {
        name: files.sha256(folder / name)
        for name in content["artifacts"]
        if (folder / name).is_file()
    }
    files.write_json(folder / "run.json", content | (record or {}))
    return load_run(folder)


@pytest.fixture
def lite():
    return recorded_lite()


@pytest.fixture
def runs_of(lite, tmp_path):
    """Makes runs of a variant with these accuracies, seeds 0, 1, …"""

    def make(variant, *accuracies, **overrides):
        number = len(list(tmp_path.iterdir()))
        return [
            copied(
                lite,
                tmp_path / f"{number}-{variant}-{seed}",
                variant,
                accuracy=accuracy,
                **{"seed": seed} | overrides,
            )
            for seed, accuracy in enumerate(accuracies)
        ]

    return make


# The README -------------------------------------------------------------------------------------


def test_the_readme_holds_the_table_that_the_recorded_runs_make():
    readme = (PROJECT / "README.md").read_text()
    assert readme == with_table(readme, markdown_table(results_table(reference_runs())))
    assert all(f"| `{variant}` |" in readme for variant in list_variants())


def test_mean_and_spread_are_over_finished_seeds_of_the_variants_own_recipe(runs_of):
    runs = runs_of("lite", 0.79, 0.81)
    runs += runs_of("lite", 0.99, epochs=3)
    (unfinished,) = runs_of("lite", 0.1, seed=3)
    files.write_json(unfinished.path / "run.json", unfinished.record | {"status": "interrupted"})
    (damaged,) = runs_of("lite", 0.1, seed=4)
    (damaged.path / "metrics.json").write_text("{")
    table = results_table([*runs, load_run(unfinished.path), load_run(damaged.path)])
    row = table.set_index("variant").loc["lite"]
    assert row["runs"] == 2
    assert row["reproduced"] == pytest.approx(80)
    assert row["spread"] == pytest.approx(2**0.5)
    assert re.search(
        r"\| 79.87 \| 80.00 ± 1.41 \| 2 \| 9, 2 cores of .*, torch", markdown_table(table)
    )
    assert re.search(r"\nlite +78,042 +12.5 M +40 +79.87  80.00 ± 1.41 +2\n", text_table(table))


def test_one_run_has_no_spread_and_none_has_no_figure(runs_of):
    table = markdown_table(results_table(runs_of("lite", 0.8)))
    assert "| 79.87 | 80.00 | 1 |" in table
    assert "| `dropout` | 4,700,682 | 798.7 M | 100 | – | – | – | – |" in table


def test_a_text_without_the_markers_is_refused():
    with pytest.raises(ValueError, match="results"):
        with_table("no markers", "table")
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"


# Finding runs -----------------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_and_copies_of_one_counted_once(lite, tmp_path):
    first = copied(lite, tmp_path / "mine" / "lite" / "run")
    copy = tmp_path / "from" / "a" / "friend" / "run"
    shutil.copytree(first.path, copy)
    again = copied(lite, tmp_path / "hers" / "run", record={"started": "2027-01-01T00:00:00+00:00"})
    found = find_runs(tmp_path)
    assert [run.path for run in found] == [copy, again.path]
    (first.path / "report.html").write_text("the copy that has a report is the one to show")
    found = find_runs(tmp_path)
    assert {run.path for run in found} == {first.path, again.path}

    row = experiments(found).set_index("variant").loc["lite"]
    assert (row["seeds"], row["runs"]) == (1, 2)  # one seed run by two people
    assert find_runs(tmp_path / "nothing here") == []


def _no_json(folder):
    (folder / "run.json").write_text("{")


def _no_mapping(folder):
    (folder / "run.json").write_text("[]")


def _no_status(folder):
    content = json.loads((folder / "run.json").read_text())
    files.write_json(folder / "run.json", {k: v for k, v in content.items() if k != "status"})


def _changed_metrics(folder):
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text.replace("0.8", "0.9"))


def _no_history(folder):
    (folder / "history.csv").unlink()


def _unknown_key(folder):
    text = (folder / "experiment.yaml").read_text() + "colour: green\n"
    (folder / "experiment.yaml").write_text(text)
    content = json.loads((folder / "run.json").read_text())
    content["artifacts"]["experiment.yaml"] = files.sha256(folder / "experiment.yaml")
    files.write_json(folder / "run.json", content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_no_json, "not JSON"),
        (_no_mapping, "indices"),
        (_no_status, "status"),
        (_changed_metrics, "metrics.json is damaged"),
        (_no_history, "history.csv is missing"),
        (_unknown_key, "colour"),
    ],
)
def test_a_damaged_run_is_named_with_its_fault_and_hides_no_other(damage, told, lite, tmp_path):
    good, bad = copied(lite, tmp_path / "good"), copied(lite, tmp_path / "bad", seed=1)
    damage(bad.path)
    readable, damaged = split_unreadable(find_runs(tmp_path))
    assert [run.path for run in readable] == [good.path]
    assert list(damaged) == [bad.path]
    assert told in damaged[bad.path]
    assert "\n" not in damaged[bad.path]


# Tables and the answer --------------------------------------------------------------------------


def test_runs_that_differ_in_more_than_their_seed_stand_apart_and_say_in_what(runs_of):
    runs = runs_of("lite", 0.80, 0.82) + runs_of("lite", 0.85, 0.87, epochs=80, augment="crop,flip")
    table = experiments(runs)
    lite = table[table["variant"] == "lite"].set_index("changes")
    assert set(lite.index) == {"", "epochs = 80, augment = [crop, flip]"}
    assert lite["reproduced"].tolist() == pytest.approx([81, 86])
    assert lite["published"].notna().tolist() == [True, False]  # it is of the own recipe alone
    assert set(table["variant"]) == set(list_variants())


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"clip": "none"}, "clip = none"),
        ({"lookahead": "none"}, "lookahead = none"),
        ({"clip": {"by": "norm", "limit": 1}}, "clip.by = norm, clip.limit = 1.0"),
    ],
    ids=str,
)
def test_a_part_that_is_switched_off_is_a_change_of_the_recipe(runs_of, overrides, told):
    changed = runs_of("se", 0.9, **overrides)
    of_se = experiments(changed).set_index("variant").loc[["se"]]
    assert of_se.set_index("changes")["runs"].to_dict() == {"": 0, told: 1}
    assert results_table(changed).set_index("variant").loc["se", "runs"] == 0


def test_data_sets_are_never_mixed(runs_of):
    cifar10, digits = runs_of("lite", 0.80, 0.82), runs_of("lite", 0.98, 0.99, dataset="digits")
    table = experiments(cifar10 + digits)
    lite = table[table["variant"] == "lite"].set_index("dataset")
    assert lite["reproduced"].to_dict() == pytest.approx({"cifar10": 81, "digits": 98.5})
    assert lite["published"].notna().to_dict() == {"cifar10": True, "digits": False}
    assert results_table(cifar10 + digits).equals(results_table(cifar10))
    assert headline(table) == headline(experiments(cifar10))


def test_a_seed_that_was_run_twice_counts_as_one(runs_of):
    runs = runs_of("lite", 0.80, 0.82) + runs_of("lite", 0.82)
    row = experiments(runs).set_index("variant").loc["lite"]
    assert (row["seeds"], row["runs"]) == (2, 3)
    assert row["accuracies"] == pytest.approx((0.81, 0.82))


def test_a_single_seed_has_the_interval_over_the_test_images(lite):
    row = experiments([lite]).set_index("variant").loc["lite"]
    assert (row["low"], row["high"]) == pytest.approx(
        [100 * bound for bound in lite.metrics["test_accuracy_interval_95"]]
    )


def test_only_the_significantly_best_is_bold(runs_of):
    lite, se = runs_of("lite", 0.80, 0.81, 0.82), runs_of("se", 0.90, 0.91, 0.92)
    table = experiments(lite + se)
    assert table["variant"][significantly_best(table)].tolist() == ["se"]
    close = runs_of("wide66", 0.905, 0.915, 0.93)  # better than `se`, but within the spread
    assert not significantly_best(experiments(lite + se + close)).any()
    single = runs_of("adamw", 0.5)
    assert not significantly_best(experiments(lite + se + single)).any()
    assert not significantly_best(experiments(lite)).any()


def test_the_answer_names_the_best_and_says_whether_its_lead_is_real(runs_of):
    lite, se = runs_of("lite", 0.80, 0.81, 0.82), runs_of("se", 0.90, 0.91, 0.92)
    told = headline(experiments(lite + se))
    assert told.startswith("`se` is the most accurate of 2 networks measured within 5,000,000")
    assert "91.00 ± 1.00 % (n = 3), and its lead of 10.00 points over `lite` is real" in told
    assert told.endswith("for less size the best is `lite`.")

    close = runs_of("wide66", 0.905, 0.915, 0.93)
    told = headline(experiments(lite + se + close))
    assert "`wide66` is the most accurate of 3" in told
    assert "0.67 points over `se` may be chance" in told
    assert told.endswith("the best are `se` and `lite`.")

    single = runs_of("adamw", 0.95)
    assert "cannot be told from chance" in headline(experiments(se + single))
    over_budget = runs_of("resnet18", 0.99, 0.99)
    assert headline(experiments(se + lite)) == headline(experiments(se + lite + over_budget))


def test_each_network_on_the_front_is_held_against_the_next_best_up_to_the_next_size(runs_of):
    runs = runs_of("lite", 0.8, 0.8) + runs_of("se", 0.9, 0.91) + runs_of("dropout", 0.88, 0.89)
    front = best_for_size(experiments(runs + runs_of("wide66", 0.95, 0.96)))
    assert front["variant"].tolist() == ["lite", "se", "wide66"]
    assert front["rival"].tolist()[1:] == ["dropout", "se"]
    assert front["lead"].tolist()[1:] == pytest.approx([2, 5])
    assert front["lead"].isna().tolist()[0]


def test_with_little_measured_the_answer_says_so(lite):
    told = headline(experiments([lite]))
    assert told.startswith("Only `lite` has been measured so far, 81.95 % (n = 1) with 78,042")
    assert "+2.08 points against the published" in told
    assert "`wide66` (94.16 %) leads `adamw` by 0.24 points" in told
    assert headline(experiments([])).startswith("No network has been measured on CIFAR-10 yet;")


# The page ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Recorded runs of CIFAR-10, real ones of the digits, copies, an unfinished one, damage."""
    root = tmp_path_factory.mktemp("outputs")
    shutil.copytree(LITE, root / "reference" / "lite")
    for seed in (0, 1):
        train(load_experiment("lite", **TINY, epochs=1, seed=seed, output_root=root))
    lite = recorded_lite()
    stopped = {"status": "interrupted", "artifacts": {}}
    copied(lite, root / "stopped here" / "run", seed=9, record=stopped)
    shutil.copytree(LITE, root / "a friend's" / "lite")
    title = copied(lite, root / "titled", epochs=41)
    text = (title.path / "experiment.yaml").read_text()
    text = text.replace("Lite (small) ResNet", "<script>alert(1)</script>")
    files.write_text(title.path / "experiment.yaml", text)
    record = title.record | {"status": "failed", "artifacts": {}}
    files.write_json(title.path / "run.json", record)
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    (root / "begun").mkdir()
    (root / "begun" / "experiment.yaml").write_text("variant: lite")
    write_index(root)
    return root


@pytest.fixture
def page(root, open_page):
    return open_page(root / "index.html")


def column(page, number, only_visible=False):
    rows = "#experiments tbody tr" + (":visible" if only_visible else "")
    cells = page.locator(f"{rows} > :nth-child({number})")
    return [text.split("\n")[0].strip() for text in cells.all_inner_texts()]


def head(page, name):
    return page.locator("#experiments thead th", has_text=re.compile(rf"^\s*{name}"))


def sideways(page):
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def test_the_page_answers_first_and_then_shows_every_experiment(page, root):
    assert page.locator("p.answer").inner_text() == headline(experiments(find(root))).replace(
        "`", ""
    )
    names = page.locator("#experiments tbody th code").all_inner_texts()
    assert set(names) == set(list_variants())
    row = page.locator("#experiments tr", has_text=LITE_TOLD).inner_text()
    for told in (
        "78,042",
        "12.5",
        "79.87",
        f"{LITE_MEAN - 79.87:+.2f}",
        duration(statistics.mean(metrics["train_seconds"] for metrics in LITE_METRICS)),
        "2 cores of",
        "seed 9",
        "interrupted",
    ):
        assert told in row
    assert "epochs = 1" in page.locator("tr[data-dataset=digits]").inner_text()


def find(root):
    return split_unreadable(find_runs(root))[0]


def test_a_click_sorts_by_number_and_what_is_missing_stands_last(page):
    button = head(page, "parameters").get_by_role("button")
    button.click()
    ascending = [int(text.replace(",", "")) for text in column(page, 3)]
    assert ascending == sorted(ascending)
    assert ascending[-1] == 11_173_962  # as text it would come before 78,042
    assert head(page, "parameters").get_attribute("aria-sort") == "ascending"
    button.click()
    assert column(page, 3)[0] == "11,173,962"
    assert head(page, "parameters").get_attribute("aria-sort") == "descending"
    for _ in range(2):
        head(page, "published").get_by_role("button").click()
        assert column(page, 8)[-1] == "–"
    assert column(page, 8)[0] == "94.16"
    assert head(page, "parameters").get_attribute("aria-sort") is None


def test_the_keyboard_sorts_too(page):
    page.locator("#dataset").focus()
    for _ in range(3):  # the box that scrolls, then the first two heads
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert head(page, "data set").get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert column(page, 2)[0] == "digits"


def test_text_and_data_set_filter_the_rows(page):
    everything = len(column(page, 1))
    page.locator("#find").fill("WIDE66")
    assert column(page, 1, only_visible=True) == ["wide66"]
    assert page.locator("#count").inner_text() == f"1 of {everything} experiments"
    page.locator("#find").fill("")
    page.locator("#dataset").select_option("digits")
    assert column(page, 2, only_visible=True) == ["digits"]
    page.locator("#dataset").select_option("")
    assert len(column(page, 1, only_visible=True)) == everything


def test_without_javascript_everything_is_there_and_no_control_that_would_do_nothing(
    root, open_page
):
    page = open_page(root / "index.html", java_script_enabled=False)
    assert LITE_TOLD in page.locator("#experiments").inner_text()
    assert page.locator("#find").is_hidden()
    assert page.locator("button").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_telephone_the_table_scrolls_and_the_page_does_not(scheme, root, open_page):
    page = open_page(root / "index.html", width=390, height=844, color_scheme=scheme)
    assert sideways(page) <= 0
    box = page.get_by_role("region", name="All experiments")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")


def test_in_the_dark_figures_lie_on_white(root, open_page):
    page = open_page(root / "index.html", color_scheme="dark")
    color = "element => getComputedStyle(element).backgroundColor"
    assert page.locator("body").evaluate(color) == "rgb(18, 22, 28)"
    assert page.locator(".card").first.evaluate(color) == "rgb(255, 255, 255)"


def test_figures_are_seen_and_told_and_the_page_is_small(page, root):
    images = page.locator("img")
    assert images.count() == 4
    for image in images.all():
        assert image.evaluate("image => image.naturalWidth") > 300
        told = f"reproduced {LITE_TOLD} % (n = {len(LITE_ACCURACIES)})"
        assert told in image.get_attribute("alt")
    assert (root / "index.html").stat().st_size < 3_000_000


def test_links_are_relative_and_survive_a_move(root, tmp_path):
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    (moved / "reference/lite/cifar10-seed1-652727f4/report.html").write_text("report")
    html = (moved / "index.html").read_text()
    links = re.findall(r'href="([^"]+)"', html)
    assert len(links) >= 6
    assert all(link.startswith("./") for link in links)
    assert "./stopped%20here/run" in links
    assert str(PROJECT) not in html and str(root) not in html
    assert all((moved / unquote(link)).exists() for link in links)

    before = html
    html = write_index(moved).read_text()
    # The same page but for what a reader now opens; and no digit stands in a figure.
    assert "lite/cifar10-seed1-652727f4/report.html" in html
    assert "lite/cifar10-seed0-9fbf37a8/notebook.ipynb" in html
    shutil.rmtree(moved / "lite")
    without_digits = write_index(moved).read_text()
    figures = re.compile('img src="([^"]+)" alt="([^"]+)"')
    assert figures.findall(before) == figures.findall(html) == figures.findall(without_digits)
    assert "digits" not in without_digits


def test_what_could_not_be_read_is_listed_and_names_are_only_text(page, root):
    page.locator("summary").click()
    told = page.locator("details").inner_text()
    assert "2 folders could not be read" in told
    assert "broken:" in told and "not JSON" in told
    assert "begun: has no run.json" in told
    assert "<script>alert(1)</script>" in page.locator("#experiments").inner_text()
    assert page.locator("em.failed").inner_text() == "failed"


def test_a_folder_that_is_not_there_is_told_and_not_made(tmp_path):
    with pytest.raises(RunError, match="no folder"):
        write_index(tmp_path / "outptus")
    assert not list(tmp_path.iterdir())

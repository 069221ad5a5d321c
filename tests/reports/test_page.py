"""The page of all runs, in a browser."""

import os
import re
import shutil
import statistics
from urllib.parse import unquote

import pytest
from conftest import PROJECT, TINY, copy_recorded, recorded_lite
from reports.recorded import LITE, LITE_MEAN, LITE_RESULT, LITE_RUNS, copied

from resnetlib import files, list_variants, load_experiment, train
from resnetlib.analysis.significance import compare_recipes, compare_seeds
from resnetlib.errors import RunError
from resnetlib.evaluation import wilson_interval
from resnetlib.progress import duration
from resnetlib.reports.page import write_index
from resnetlib.runs.run import RECIPE_CAVEAT


@pytest.mark.usefixtures("leaderboard_without_figures")
def test_page_names_the_best_network_its_lead_and_p(runs_of, tmp_path, open_page):
    runs_of("lite", 0.80, 0.81, 0.82)
    runs_of("se", 0.90, 0.91, 0.92)
    runs_of("wide66", 0.905, 0.915, 0.93)
    page = open_page(write_index(tmp_path))
    assert (
        "wide66 is the most accurate of 3 networks measured on CIFAR-10 within 5,000,000 "
        "parameters: 91.67 ± 1.26 % (n = 3)." in page.locator("p.answer").inner_text()
    )
    front = [row.split("\t") for row in page.locator("table.front tbody tr").all_inner_texts()]
    assert front[0][0] == "lite" and front[0][4:] == ["–", "–", "–", "–"]
    assert front[1] == [
        *["se", "4,697,742", "91.00 ± 1.00", "3"],
        *["10.00", "lite", "< 0.001", "distinguishable"],
    ]
    assert front[2][4:6] == ["0.67", "se"]
    comparison = compare_seeds((0.905, 0.915, 0.93), (0.90, 0.91, 0.92), ("wide66", "se"))
    more = f"to settle it: {comparison.more_seeds} more"
    assert front[2][7].split("\n") == ["not distinguishable", more]


@pytest.mark.usefixtures("leaderboard_without_figures")
def test_page_marks_a_recipe_chosen_on_the_test_set(runs_of, tmp_path, open_page):
    runs_of("lite", 0.80, 0.81)
    runs_of("laptop94", 0.93, 0.94)
    runs_of("laptop94", 0.94, 0.95, lr=0.2)
    page = open_page(write_index(tmp_path))
    assert RECIPE_CAVEAT in page.locator("p.answer").inner_text()
    assert page.locator("table.front tbody th").first.inner_text() == "lite"
    assert "laptop94 †" in page.locator("table.front").inner_text()
    assert f"† {RECIPE_CAVEAT}" in page.locator("ul.notes").inner_text()
    changed = page.locator("#experiments tr", has_text="optimizer.lr = 0.2").inner_text()
    p_value = compare_recipes((0.93, 0.94), {"": (0.94, 0.95)}).loc["", "p"]
    assert f"+1.00\np = {p_value:.3f}, not distinguishable" in changed
    assert "laptop94 †" in changed


@pytest.mark.usefixtures("leaderboard_without_figures")
def test_page_without_measured_networks_says_so(runs_of, tmp_path, open_page):
    empty = open_page(write_index(tmp_path))
    assert "has been measured on CIFAR-10 yet" in empty.locator("p.answer").inner_text()
    runs_of("lite", 0.8)
    one = open_page(write_index(tmp_path))
    assert "Only lite has been measured" in one.locator("p.answer").inner_text()
    assert one.locator("table.front").count() == 0
    row = one.locator("#experiments tr", has_text="seed 0").inner_text()
    low, high = wilson_interval(0.8, 10_000)
    assert f"80.00\n95 %: {100 * low:.2f}–{100 * high:.2f}" in row


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Recorded runs of CIFAR-10, real ones of the digits, copies, an unfinished one, damage."""
    root = tmp_path_factory.mktemp("outputs")
    copy_recorded(LITE, root / "reference" / "lite")
    for seed in (0, 1):
        train(load_experiment("lite", **TINY, epochs=1, seed=seed, output_root=root))
    lite = recorded_lite()
    stopped = {"status": "interrupted", "artifacts": {}}
    copied(lite, root / "stopped here" / "run", seed=9, record=stopped)
    copy_recorded(LITE, root / "a friend's" / "lite")
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


def test_page_lists_every_experiment(page):
    names = page.locator("#experiments tbody th code").all_inner_texts()
    assert set(names) == set(list_variants())
    row = page.locator("#experiments tr", has_text=LITE_RESULT).inner_text()
    for text in (
        "78,042",
        "12.5",
        "79.87",
        f"{LITE_MEAN - 79.87:+.2f}",
        duration(statistics.mean(run.metrics["train_seconds"] for run in LITE_RUNS)),
        LITE_RUNS[0].machine.partition(",")[0],
        "seed 9",
        "interrupted",
    ):
        assert text in row
    assert "epochs = 1" in page.locator("tr[data-dataset=digits]").inner_text()


def test_click_sorts_by_number_and_missing_last(page):
    button = head(page, "parameters").get_by_role("button")
    button.click()
    ascending = [int(text.replace(",", "")) for text in column(page, 3)]
    assert ascending == sorted(ascending)
    assert head(page, "parameters").get_attribute("aria-sort") == "ascending"
    button.click()
    descending = [int(text.replace(",", "")) for text in column(page, 3)]
    assert descending == ascending[::-1]
    assert head(page, "parameters").get_attribute("aria-sort") == "descending"
    place = head(page, "published").evaluate("cell => cell.cellIndex + 1")
    for _ in range(2):
        head(page, "published").get_by_role("button").click()
        assert column(page, place)[-1] == "–"
    published = [float(text) for text in column(page, place) if text != "–"]
    assert published == sorted(published, reverse=True)
    assert head(page, "parameters").get_attribute("aria-sort") is None


def test_keyboard_sorts(page):
    page.locator("#dataset").focus()
    for _ in range(3):  # the box that scrolls, then the first two heads
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert head(page, "data set").get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert column(page, 2)[0] == "digits"


def test_text_and_data_set_filter_rows(page):
    everything = len(column(page, 1))
    page.locator("#find").fill("WIDE66")
    assert column(page, 1, only_visible=True) == ["wide66"]
    assert page.locator("#count").inner_text() == f"1 of {everything} experiments"
    page.locator("#find").fill("")
    page.locator("#dataset").select_option("digits")
    assert column(page, 2, only_visible=True) == ["digits"]
    page.locator("#dataset").select_option("")
    assert len(column(page, 1, only_visible=True)) == everything


def test_page_without_javascript_has_no_dead_controls(root, open_page):
    page = open_page(root / "index.html", java_script_enabled=False)
    assert LITE_RESULT in page.locator("#experiments").inner_text()
    assert page.locator("#find").is_hidden()
    assert page.locator("button").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(scheme, root, open_page):
    page = open_page(root / "index.html", width=390, height=844, color_scheme=scheme)
    assert sideways(page) <= 0
    box = page.get_by_role("region", name="All experiments")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")


def test_figures_are_on_white_in_dark_mode(root, open_page):
    page = open_page(root / "index.html", color_scheme="dark")
    color = "element => getComputedStyle(element).backgroundColor"
    assert page.locator("body").evaluate(color) == "rgb(18, 22, 28)"
    assert page.locator(".card").first.evaluate(color) == "rgb(255, 255, 255)"


def test_figures_are_drawn_and_described(page, root):
    images = page.locator("img")
    assert images.count() == 5
    for image in images.all():
        assert image.evaluate("image => image.naturalWidth") > 300
    alts = [image.get_attribute("alt") for image in images.all()]
    assert len(set(alts)) == 5
    assert all("“All experiments”" in alt for alt in alts)
    assert "“Table of the teams”" in alts[-1]
    assert all(len(alt) > 100 for alt in alts)
    assert (root / "index.html").stat().st_size < 3_000_000


@pytest.mark.slow
def test_links_survive_a_move(root, tmp_path):
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    (moved / "reference/lite/cifar10-seed1-652727f4/report.html").write_text("report")
    html = (moved / "index.html").read_text()
    links = re.findall(r'href="(?!https://github.com/)([^"]+)"', html)
    assert len(links) >= 6
    assert all(link.startswith("./") for link in links)
    assert "./stopped%20here/run" in links
    assert str(PROJECT) not in html and str(root) not in html
    assert all((moved / unquote(link)).exists() for link in links)

    before = html
    html = write_index(moved).read_text()
    # Only the link changes, and runs on the digits are in no figure.
    assert "lite/cifar10-seed1-652727f4/report.html" in html
    assert "lite/cifar10-seed0-9fbf37a8/notebook.ipynb" in html
    shutil.rmtree(moved / "lite")
    without_digits = write_index(moved).read_text()
    figures = re.compile('img src="([^"]+)" alt="([^"]+)"')
    assert figures.findall(before) == figures.findall(html) == figures.findall(without_digits)
    assert "digits" not in without_digits


def test_unreadable_folders_are_listed_as_text(page, root):
    folders = page.locator("details", has_text="could not be read")
    folders.locator("summary").click()
    text = folders.inner_text()
    assert "2 folders could not be read" in text
    assert "broken:" in text and "not JSON" in text
    assert "begun: has no run.json" in text
    assert "<script>alert(1)</script>" in page.locator("#experiments").inner_text()
    assert page.locator("em.failed").inner_text() == "failed"


@pytest.mark.browser
def test_teams_are_listed_by_claim_with_their_source(page):
    teams = page.locator("details", has_text="Table of the teams")
    teams.locator("summary").click()
    first = teams.locator("tbody tr").first
    assert first.inner_text().split()[:2] == ["class/yifei", "SE-ResNet"]
    assert "97.80" in first.inner_text() and "best on test" in first.inner_text()
    address = first.locator("a").get_attribute("href")
    assert address == "https://github.com/yifeihsu/DL25_Course_Project"


@pytest.mark.parametrize("kind", ["page", "folder", "named pipe"])
def test_index_of_the_user_is_not_replaced(tmp_path, kind):
    path = tmp_path / "index.html"
    if kind == "page":
        path.write_text("<html><title>My home page</title></html>")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(RunError, match=r"index\.html is not a leaderboard page; rename it"):
        write_index(tmp_path)
    assert (path.lstat().st_mode, path.lstat().st_size) == (before.st_mode, before.st_size)


def test_missing_folder_is_refused_and_not_created(tmp_path):
    with pytest.raises(RunError, match="is not a folder"):
        write_index(tmp_path / "outptus")
    assert not list(tmp_path.iterdir())

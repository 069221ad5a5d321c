"""Kaggle submissions: safe reading, predictions equal to the run's own, a checked CSV."""

import contextlib
import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from conftest import PROJECT, TINY, recorded_lite

from resnetlib import kaggle, load_experiment, train
from resnetlib.cli import main
from resnetlib.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("quick_figures")

IDS = ("7", "3", "5")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Five epochs on the digits: well above chance."""
    settings = TINY | {"epochs": 5, "widths": [8], "batch_size": 64}
    root = tmp_path_factory.mktemp("outputs")
    return train(load_experiment("lite", output_root=root, **settings))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def write(tmp_path):
    """Pickles a content to a file; its path."""

    def write(content, protocol=4):
        path = tmp_path / "test.pkl"
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        return path

    return write


# Reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("keys", [(b"data", b"ids"), ("data", "ids")])
def test_read_competition_accepts_every_protocol(write, pixels, protocol, keys):
    data, ids = keys
    read = kaggle.read_competition(write({data: pixels, ids: [7, 3, 5]}, protocol))
    assert read.images.dtype == torch.uint8
    assert read.images.shape == (3, 3, 32, 32)
    for channel in range(3):
        assert (read.images[:, channel].numpy() == pixels[..., channel]).all()
    assert read.ids == IDS


def test_read_competition_accepts_python_2_files(tmp_path, pixels):
    """Its strings are bytes, and numpy's modules have their old names."""
    content = pickle.dumps({b"data": pixels, b"ids": [b"7", b"3", b"5"]}, protocol=2)
    old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != content or np.lib.NumpyVersion(np.__version__) < "2.0.0"
    (tmp_path / "old.pkl").write_bytes(old)
    read = kaggle.read_competition(tmp_path / "old.pkl")
    assert (read.images.permute(0, 2, 3, 1).numpy() == pixels).all()
    assert read.ids == IDS


@pytest.mark.parametrize(
    "ids",
    [
        [7, 3, 5],
        (7, 3, 5),
        ["7", "3", "5"],
        [b"7", b"3", b"5"],
        list(np.array([7, 3, 5])),
        list(np.array(["7", "3", "5"])),
        np.array([7, 3, 5]),
        np.array([7, 3, 5], dtype=np.uint16),
        np.array(["7", "3", "5"]),
        np.array([b"7", b"3", b"5"]),
        np.array(["7", "3", "5"], dtype=object),
    ],
)
def test_read_competition_accepts_ids_of_every_kind(write, pixels, ids):
    assert kaggle.read_competition(write({b"data": pixels, b"ids": ids})).ids == IDS


class Exploit:
    def __reduce__(self):
        return os.system, ("echo exploited > exploited",)


@pytest.mark.parametrize("place", ["whole", "data", "ids", "extra"])
def test_read_competition_refuses_code_without_running_it(
    write, pixels, tmp_path, monkeypatch, place
):
    monkeypatch.chdir(tmp_path)
    content = {b"data": pixels, b"ids": [7, 3, 5]}
    content = Exploit() if place == "whole" else content | {place.encode(): Exploit()}
    with pytest.raises(DataError, match=r"test.pkl: refused \w+.system: only arrays"):
        kaggle.read_competition(write(content))
    assert [path.name for path in tmp_path.iterdir()] == ["test.pkl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "data is of type NoneType; expected a pickle of {'data': uint8"),
        ({"data": [[0]]}, "data is of type list"),
        ({"data": "channels first"}, r"shape \(3, 3, 32, 32\), .*: height, width, channels"),
        ({"data": "rows"}, r"shape \(3, 3072\), expected"),
        ({"data": "grey"}, r"shape \(3, 32, 32\), expected \(N, 32, 32, 3\)"),
        ({"data": "large"}, r"shape \(3, 64, 64, 3\), expected"),
        ({"data": "no images"}, r"shape \(0, 32, 32, 3\), expected"),
        ({"data": "float"}, "data is float64, expected uint8 from 0 to 255"),
        ({"ids": [7, 3]}, "has 3 images and 2 ids"),
        ({"ids": [7, 3, 7]}, "the id '7' appears twice, at 0 and 2"),
        ({"ids": [7, 3, "3"]}, "the id '3' appears twice, at 1 and 2"),
        ({"ids": [7, 3.5, 5]}, r"ids\[1\] is 3.5, expected an integer or a string"),
        ({"ids": [7, 3, True]}, r"ids\[2\] is True"),
        ({"ids": [7, 3, None]}, r"ids\[2\] is None"),
        ({"ids": ["", "3", "5"]}, r"ids\[0\] is ''"),
        ({"ids": [7, b"\xff", 5]}, r"ids\[1\] is b'\\xff'"),
        ({"ids": [7, b"a\xff", 5]}, r"ids\[1\] is b'a\\xff'"),
        ({"ids": np.zeros((3, 1))}, r"ids has shape \(3, 1\), expected \(N,\)"),
        ({"ids": np.empty((10**9, 0))}, r"ids has shape \(1000000000, 0\), expected \(N,\)"),
        ({"ids": 7}, "ids is of type int"),
        ({"ids": [np.zeros((100, 100), "u1"), 1, 2]}, r"ids\[0\] is "),
        ({"ids": np.frombuffer(b"\xff" * 12, "<U1")}, "ids has text that is not Unicode"),
    ],
)
def test_read_competition_names_wrong_content_in_one_line(write, pixels, change, message):
    wrong = {
        "channels first": pixels.transpose(0, 3, 1, 2),
        "rows": pixels.reshape(3, -1),
        "grey": pixels[..., 0],
        "large": pixels.repeat(2, axis=1).repeat(2, axis=2),
        "no images": pixels[:0],
        "float": pixels / 255,
    }
    content = {"data": pixels, "ids": [7, 3, 5]} | change
    if isinstance(content["data"], str):
        content["data"] = wrong[content["data"]]
    with pytest.raises(DataError, match=message) as caught:
        kaggle.read_competition(write(content))
    assert "\n" not in str(caught.value)
    assert "test.pkl" in str(caught.value)


def test_read_competition_names_an_unusable_file(write, pixels, tmp_path):
    def message(path):
        with pytest.raises(DataError) as caught:
            kaggle.read_competition(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "cannot be read: No such file" in message(tmp_path / "absent.pkl")
    assert "cannot be read: Is a directory" in message(tmp_path)
    assert "has no key 'ids'; its keys: 'data', 'labels'" in message(
        write({b"data": pixels, b"labels": [1]})
    )
    assert "its content is of type list" in message(write([1, 2]))
    whole = pickle.dumps({b"data": pixels, b"ids": [7, 3, 5]})
    path = tmp_path / "damaged.pkl"
    for content in (b"", b"ID,Labels\n0,1\n", whole[:-50], bytes(100), b"<!DOCTYPE html>"):
        path.write_bytes(content)
        assert "damaged.pkl" in message(path) and "expected a pickle of" in message(path)
    assert "it is not a pickle, or is damaged" in message(path)
    for archive in (b"PK\x03\x04", b"\x1f\x8b\x08"):
        path.write_bytes(archive + whole)
        assert "unpack an archive first" in message(path)


def test_describe_gives_number_ids_and_means(write, pixels, digits):
    read = kaggle.read_competition(write({b"data": pixels, b"ids": [7, 3, 5]}))
    facts = read.describe(digits)
    assert facts["images"] == "3"
    assert facts["ids"].startswith("7, 3, 5")
    assert facts["mean of these images (R, G, B)"].startswith(f"{pixels[..., 0].mean() / 255:.3f}")


# Predicting --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dry_run_gives_the_logits_of_the_run(run, digits):
    test_set = kaggle.dry_run(digits)
    assert torch.equal(test_set.images, digits.test[0])
    logits = kaggle.predict(run, test_set.images, digits)
    assert torch.equal(logits, run.evaluation.logits)
    assert len(run.evaluation.predictions.unique()) > 1  # else any images would give the same
    facts = kaggle.describe_prediction(run, test_set, logits, "none")
    assert facts["accuracy of this dry run"] == f"{run.metrics['test_accuracy']:.2%}"
    assert facts["largest difference from the run's own logits"] == "0e+00"


@pytest.mark.slow
@pytest.mark.parametrize("normalize", ["none", "per_image_std"])
def test_predict_uses_the_normalization_of_the_recipe(tiny, digits, normalize):
    run = train(tiny(normalize=normalize))
    logits = kaggle.predict(run, digits.test[0], digits)
    assert torch.equal(logits, run.evaluation.logits)


@pytest.mark.slow
def test_predict_reproduces_the_recorded_lite(cifar10):
    run = recorded_lite()
    test_set = kaggle.dry_run(cifar10)
    logits = kaggle.predict(run, test_set.images, cifar10)
    assert torch.allclose(logits, run.evaluation.logits, rtol=0, atol=1e-3)
    margins = run.evaluation.logits.topk(2).values.diff().abs()[:, 0]
    same = logits.argmax(1) == run.evaluation.predictions
    assert same[margins > 2e-3].all()  # closer ones may differ on another processor


def test_views_are_those_of_airbench():
    """Half the weight on the images in place, the rest on translations by a pixel, reflected."""
    images = torch.randint(256, (4, 3, 32, 32)).byte()
    padded = F.pad(images.double(), (1,) * 4, mode="reflect")
    corners = {"none": padded[:, :, 1:33, 1:33], "up": padded[:, :, 2:, 2:]}
    corners["down"] = padded[:, :, :32, :32]
    expected = {}
    for name, weight in (("none", 0.25), ("up", 0.125), ("down", 0.125)):
        expected[name], expected[f"{name} mirrored"] = (
            (weight, corners[name]),
            (weight, corners[name].flip(-1)),
        )
    views = list(kaggle._views(images, "flip_and_shift"))
    assert len(views) == 6
    for (weight, view), (wanted, image) in zip(views, expected.values(), strict=True):
        assert weight == wanted
        assert torch.equal(view.double(), image)


def test_predict_averages_logits_over_the_views(run, digits):
    images = digits.test[0][:40]
    one, mirrored = (kaggle.predict(run, x, digits) for x in (images, images.flip(-1)))
    both = kaggle.predict(run, images, digits, tta="flip")
    assert torch.allclose(both, (one + mirrored) / 2, atol=1e-5)
    assert not torch.allclose(both, one, atol=1e-2)
    shifted = kaggle.predict(run, images, digits, tta="flip_and_shift")
    assert not torch.allclose(shifted, both, atol=1e-2)


def test_describe_prediction_gives_the_number_of_views(run, digits):
    test_set = kaggle.dry_run(digits)
    logits = kaggle.predict(run, test_set.images, digits, tta="flip")
    facts = kaggle.describe_prediction(run, test_set, logits, "flip")
    assert facts["views of each image"] == "2"
    accuracy = (logits.argmax(1) == digits.test[1]).double().mean()
    assert facts["accuracy of this dry run"] == f"{accuracy:.2%}"


def test_least_certain_sorts_by_margin():
    shares = torch.tensor([[0.42, 0.29, 0.29], [0.45, 0.10, 0.45], [0.50, 0.40, 0.10]])
    table = kaggle.least_certain(shares.log(), ["a", "b", "c"], count=2)
    assert table.index.tolist() == [1, 2]  # the first has the lowest confidence
    assert set(table.iloc[0][["first", "second"]]) == {"a", "c"}
    assert table.iloc[1][["first", "second"]].tolist() == ["a", "b"]
    assert table.iloc[1]["first_probability"] == pytest.approx(0.5)
    assert table.iloc[1]["second_probability"] == pytest.approx(0.4)


def test_submit_takes_a_cifar10_run_and_the_named_views(run, digits, write, tmp_path, monkeypatch):
    seen, predict = [], kaggle.predict
    monkeypatch.setattr(kaggle, "find_run", lambda *_, **named: seen.append(named) or run)
    monkeypatch.setattr(
        kaggle, "predict", lambda *given, **named: seen.append(named) or predict(*given, **named)
    )
    pixels = digits.test[0][:9].permute(0, 2, 3, 1).numpy()
    file = write({b"data": pixels, b"ids": list(range(9))})
    kaggle.submit("lite", file, output_root=tmp_path, tta="flip")
    assert seen == [{"dataset": "cifar10"}, {"tta": "flip"}]


# Writing -----------------------------------------------------------------------------------------


def test_write_submission_keeps_the_order_of_the_file(tmp_path):
    path = tmp_path / "new" / "submission.csv"
    kaggle.write_submission(path, IDS, torch.tensor([9, 0, 4]))
    assert path.read_text() == "ID,Labels\n7,9\n3,0\n5,4\n"
    written = kaggle.check_submission(path, IDS)
    assert written["ID"].tolist() == list(IDS)
    assert written["Labels"].tolist() == [9, 0, 4]


def test_write_submission_needs_a_prediction(tmp_path):
    with pytest.raises(ConfigError, match="nothing is predicted yet"):
        kaggle.write_submission(tmp_path / "s.csv", IDS, None)
    assert not list(tmp_path.iterdir())


def test_write_submission_quotes_ids(tmp_path):
    ids = ("a,b", 'say "c"', "d\ne", "NA", " 007")
    kaggle.write_submission(tmp_path / "s.csv", ids, torch.tensor([1, 2, 3, 4, 5]))
    assert kaggle.check_submission(tmp_path / "s.csv", ids)["ID"].tolist() == list(ids)


def test_check_submission_accepts_windows_line_ends(tmp_path):
    (tmp_path / "s.csv").write_bytes(b"ID,Labels\r\n7,9\r\n3,0\r\n5,4\r\n")
    assert len(kaggle.check_submission(tmp_path / "s.csv", IDS)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a CSV file"),
        ("id,label\n7,9\n3,0\n5,4\n", "the header is 'id,label', expected 'ID,Labels'"),
        ("7,9\n3,0\n5,4\n", "the header is '7,9'"),
        ("ID,Labels\n7,9\n3,0\n", "has 2 rows, expected 3"),
        ("ID,Labels\n7,9\n3,0\n5,4\n6,1\n", "has 4 rows, expected 3"),
        ("ID,Labels\n7,9\n5,4\n3,0\n", "row 2: the id is '5', expected '3'"),
        ("ID,Labels\n7,9\n7,9\n5,4\n", "row 2: the id is '7', expected '3'"),
        ("ID,Labels\n7,9\n\n3,0\n5,4\n", "row 2: the id is '', expected '3'"),
        ("ID,Labels\n7,9\n3,0,1\n5,4\n", "is not a CSV file: .*line 3, saw 3"),
        ("ID,Labels\n7,9\n3,0\n5,10\n", "row 3: the label is '10', expected 0 to 9"),
        ("ID,Labels\n7,9\n3,-1\n5,4\n", "row 2: the label is '-1'"),
        ("ID,Labels\n7,9.0\n3,0\n5,4\n", "row 1: the label is '9.0'"),
        ("ID,Labels\n7,9\n3,cat\n5,4\n", "row 2: the label is 'cat'"),
        ("ID,Labels\n7,9\n3,\n5,4\n", "row 2: the label is ''"),
        ("ID,Labels\n7,9\n3\n5,4\n", "row 2: the label is"),
    ],
)
def test_check_submission_names_the_first_mistake(tmp_path, content, message):
    path = tmp_path / "s.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        kaggle.check_submission(path, IDS)
    assert "\n" not in str(caught.value)


def test_check_submission_refuses_an_unusable_file(tmp_path):
    (tmp_path / "s.csv").write_bytes(b"ID,Labels\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="is not a CSV file"):
        kaggle.check_submission(tmp_path / "s.csv", IDS)
    with pytest.raises(DataError, match="cannot be read"):
        kaggle.check_submission(tmp_path / "absent.csv", IDS)


def test_submit_replaces_only_a_submission(run, digits, write, tmp_path):
    data = digits.test[0][:50].permute(0, 2, 3, 1).numpy()
    file = write({b"data": data, b"ids": list(range(100, 150))})
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    path = kaggle.submit(run, file, output_root=tmp_path)
    name = f"test-lite-{run.path.name}"
    assert path == tmp_path / "submissions" / f"{name}.csv"
    assert before == {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    written = kaggle.check_submission(path, [str(n) for n in range(100, 150)])
    assert written["Labels"].tolist() == run.evaluation.predictions[:50].tolist()

    path.write_text("ID,Labels\nearlier,3\n")
    assert kaggle.submit(run, file, output_root=tmp_path) == path
    assert len(path.read_text().splitlines()) == 51
    mirrored = kaggle.submit(run, file, output_root=tmp_path, tta="flip")
    assert mirrored.name == f"{name}-flip.csv"


@pytest.mark.parametrize("command", ["submit", "predict"])
def test_command_refuses_a_network_of_other_images(run, write, pixels, command):
    file = write({b"data": pixels, b"ids": [7, 3, 5]})
    done = CliRunner().invoke(main, [command, str(run.path), str(file)])
    assert done.exit_code == 2
    assert "was trained on digits, not on cifar10" in done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": "notes.txt"}, "notes.txt exists and is not a submission; name another file"),
        ({"output": "."}, "is a folder; name a file in it"),
        ({"output": "notes.txt/s.csv"}, "cannot be written"),
        ({"tta": "flop"}, "unknown tta 'flop'; did you mean 'flip'"),
        ({"tta": None}, "unknown tta None"),
    ],
)
def test_submit_refuses_to_replace_files_and_unknown_tta(
    run, write, pixels, tmp_path, settings, message, monkeypatch
):
    monkeypatch.setattr(kaggle, "predict", pytest.fail)  # before any work
    notes = tmp_path / "notes.txt"
    notes.write_text("to keep")
    if "output" in settings:
        settings = {"output": tmp_path / settings["output"]}
    with pytest.raises(ConfigError, match=message):
        kaggle.submit(run, write({b"data": pixels, b"ids": [7, 3, 5]}), **settings)
    assert notes.read_text() == "to keep"


def test_submission_path_refuses_a_folder_that_cannot_be_written(run, tmp_path, monkeypatch):
    # As root, who runs the tests of some machines, everything can be written.
    monkeypatch.setattr("resnetlib.files.is_read_only", lambda folder: folder == tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        kaggle.submission_path(run, "test.pkl", output=tmp_path / "new" / "s.csv")


@pytest.mark.parametrize("kind", ["named pipe", "device", "large file"])
def test_submission_path_reads_no_more_than_a_header(run, tmp_path, kind):
    path = tmp_path / "submission.csv"
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**40)
    with pytest.raises(ConfigError, match="exists and is not a submission"):
        kaggle.submission_path(run, "test.pkl", output=path)


def test_upload_command_names_file_run_and_views(run):
    assert kaggle.upload_command(PROJECT / "s.csv", run, "flip") == (
        'kaggle competitions submit -c COMPETITION -f "s.csv" -m "lite, seed 0, tta flip"'
    )


@pytest.fixture
def file(write, cifar10):
    """A competition's file with 20 images of CIFAR-10."""
    data = cifar10.test[0][:20].permute(0, 2, 3, 1).numpy()
    return write({b"data": data, b"ids": list(range(20))})


@pytest.mark.slow
def test_submit_accepts_a_variant(file):
    path = kaggle.submit("lite", file, output_root=file.parent)
    assert path.name == f"test-lite-{recorded_lite().path.name}.csv"


@pytest.mark.slow
def test_submit_command_passes_its_options(file, cifar10_folder, tmp_path):
    options = ["-o", "mirrored.csv", "--tta", "flip", "--data-root", cifar10_folder]
    words = [str(word) for word in ("submit", recorded_lite().path, file, *options)]
    with contextlib.chdir(tmp_path):
        done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].endswith("mirrored.csv")
    expected = kaggle.submit("lite", file, output_root=tmp_path / "other", tta="flip")
    assert (tmp_path / "mirrored.csv").read_bytes() == expected.read_bytes()


def _nested_tuples(depth):
    return b"\x80\x02}(K\x01" + b"\x85" * depth + b"K\x01u."


def _shared(levels, *, container):
    """A container that holds the last one ten times, and so on."""
    content = container([0])
    for _ in range(levels):
        content = container([content] * 10)
    return content


def _shared_tuples(levels, noted):
    """A key of tuples, each of which holds the last one twice, with these operations to note it."""
    ops = b"".join(b"h%ch%c\x86" % (n, n) + noted(n + 1) + b"0" for n in range(levels))
    return b"\x80\x04}K\x01\x85" + noted(0) + ops + b"h%cK\x01s." % levels


def _shared_arrays(levels):
    """An array of objects that holds the last one twice, and so on."""
    content = np.array([1], dtype=object)
    for _ in range(levels):
        inner, content = content, np.empty(2, dtype=object)
        content[:] = [inner, inner]
    return content


BOMBS = {
    "persistent id": b"\x80\x04\x8c\x01aQ.",
    "a key of nested tuples": _nested_tuples(1_000_000),
    "a key of shared tuples": pickle.dumps(({_shared(3, container=tuple): 1}, 0)),
    "shared tuples noted twice": _shared_tuples(60, lambda n: b"q%cq%c" % (n, n)),
    "shared tuples noted after a frame": _shared_tuples(
        60, lambda n: b"\x95" + bytes(8) + b"q%c" % n
    ),
    "shared arrays": _shared_arrays(40),
    "shared lists": pickle.dumps({"data": 1, "ids": [_shared(30, container=list)]}),
    "nested lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a number of 5,000 digits as key": pickle.dumps({10**5000: 1}),
    "a number of 5,000 digits as id": 10**5000,
    "a long id": "x" * 10_000_000,
    "half a surrogate pair": "a\ud800",
    "many keys": pickle.dumps(dict.fromkeys(range(10_000))),
    "twice": b"\x80\x02]q\x002.",
    "a frozen set": pickle.dumps(frozenset([1])),
    "promised bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00.",
    "a memo of gigabytes": b"\x80\x02]r\xff\xff\xff\xff.",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_read_competition_refuses_bombs_in_one_line(write, pixels, tmp_path, name):
    path = tmp_path / "bomb.pkl"
    if isinstance(BOMBS[name], bytes):
        path.write_bytes(BOMBS[name])
    else:
        path = write({b"data": pixels, b"ids": [BOMBS[name], 1, 2]})
    with pytest.raises(DataError) as caught:
        kaggle.read_competition(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    assert len(message) < 400 + len(str(path))


@pytest.mark.parametrize("formula", ["=1+1", "+1", "@SUM(A1)", "-A1", "=cmd|' /C calc'!A0"])
def test_read_competition_refuses_formulas(write, pixels, formula):
    with pytest.raises(DataError, match=r"ids\[1\] is .* a spreadsheet takes for a formula"):
        kaggle.read_competition(write({b"data": pixels, b"ids": ["-7", formula, "5"]}))


def test_read_competition_refuses_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    for name, message in {"pipe": "regular", "zero": "regular", "sparse": "larger"}.items():
        with pytest.raises(DataError, match=f"{name} cannot be read: it is .*{message}"):
            kaggle.read_competition(tmp_path / name)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="loop cannot be read: Too many levels of symbolic links"):
        kaggle.read_competition(tmp_path / "loop")
    with pytest.raises(DataError, match="null"):
        kaggle.read_competition("a\0b")
    with pytest.raises(ConfigError, match="no such user"):
        kaggle.read_competition("~nosuchuser/test.pkl")

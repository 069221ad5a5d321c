"""Data sets: content, search order, caching, download and its failures."""

import http.server
import os
import re
import shutil
import tarfile
import threading
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.datasets import load_digits

from resnetlib import data, download, files, load_dataset, load_experiment
from resnetlib.cli import main
from resnetlib.data import split_holdout
from resnetlib.download import check_cifar10
from resnetlib.errors import ConfigError, DataError


def test_digits_equal_scikit_learn_upscaled(digits):
    images = torch.cat([digits.train[0], digits.test[0]])
    assert images.shape == (1797, 3, 32, 32)
    assert images.dtype == torch.uint8
    original = load_digits().images
    small = images[:, 0, ::4, ::4].numpy()
    assert sorted(map(bytes, small)) == sorted(
        map(bytes, np.round(original / 16 * 255).astype(np.uint8))
    )
    assert torch.equal(images[:, 0], images[:, 2])


def test_digits_split_is_stratified_and_fixed(digits):
    again = data.DATASETS["digits"](None)  # read again, not the kept one
    assert torch.equal(digits.test[0], again.test[0])
    shares = torch.bincount(digits.test[1]) / 450 - torch.bincount(digits.train[1]) / 1347
    assert shares.abs().max() < 0.002


@pytest.mark.slow
def test_cifar10_equals_torchvision(cifar10, cifar10_folder):
    from torchvision.datasets import CIFAR10

    for train, (images, labels) in ((True, cifar10.train), (False, cifar10.test)):
        theirs = CIFAR10(cifar10_folder.parent, train=train, download=False)
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), theirs.data)
        assert labels.tolist() == theirs.targets
        assert list(cifar10.classes) == theirs.classes


@pytest.mark.slow
def test_cifar10_statistics(cifar10):
    assert cifar10.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=5e-5)
    assert cifar10.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=5e-5)
    assert cifar10.per_image_std == pytest.approx((0.2023, 0.1994, 0.2010), abs=5e-5)
    pixels = cifar10.train[0].double() / 255
    assert cifar10.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


@pytest.mark.parametrize(
    ("normalize", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ({"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        ("none", (0, 0, 0), (1, 1, 1)),
    ],
    ids=str,
)
def test_normalization_of_a_recipe(digits, normalize, mean, std):
    recipe = load_experiment("lite", normalize=normalize).recipe
    assert data.normalization(recipe, digits) == (mean, std)


def test_load_dataset_unknown_names_nearest():
    with pytest.raises(ConfigError, match=r"'cifar'; did you mean 'cifar10'"):
        load_dataset("cifar")
    with pytest.raises(ConfigError, match=r"unknown dataset \['cifar10'\]; did you mean 'cifar10'"):
        load_dataset(["cifar10"])


def test_load_dataset_reads_once(monkeypatch):
    first = load_dataset("digits")
    monkeypatch.setitem(data.DATASETS, "digits", lambda folder: pytest.fail("read again"))
    assert load_dataset("digits") is first


def test_load_dataset_rereads_after_a_change_in_place(monkeypatch):
    monkeypatch.setattr(data, "_last_dataset", {})  # not the object that other tests share
    first = load_dataset("digits")
    original = first.train[0].clone()
    first.train[0][:5].zero_()  # by a view
    again = load_dataset("digits")
    assert again is not first
    assert torch.equal(again.train[0], original)


def test_load_dataset_rereads_after_a_change_through_numpy(monkeypatch):
    """Which torch does not count."""
    monkeypatch.setattr(data, "_last_dataset", {})
    first = load_dataset("digits")
    original = first.test[0].clone()
    first.test[0][0].numpy()[:, 3:5] = 255
    assert torch.equal(load_dataset("digits").test[0], original)


def test_load_dataset_keeps_one_set(monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setitem(data.DATASETS, name, data.DATASETS["digits"])
    first = weakref.ref(load_dataset("one"))
    load_dataset("two")
    assert first() is None


def test_load_dataset_rereads_changed_files(small, monkeypatch):
    """Also where the new content has the same size."""
    monkeypatch.setattr(data, "CIFAR10_MD5", download.CIFAR10_MD5)
    monkeypatch.setitem(data.DATASETS, "cifar10", lambda folder: data.DATASETS["digits"](None))
    folder = small.parent / download.CIFAR10_FOLDER
    first = load_dataset("cifar10", folder)
    assert load_dataset("cifar10", folder.parent) is first
    os.utime(folder / "test_batch", ns=(1, 1))
    assert load_dataset("cifar10", folder) is not first


def test_examples_are_of_the_first_classes(digits):
    images, names = digits.examples(4)
    assert names == ["0", "1", "2", "3"]
    for label, image in enumerate(images):
        place = next(i for i, other in enumerate(digits.train[0]) if torch.equal(other, image))
        assert digits.train[1][place] == label


def test_split_holdout_is_stratified_by_seed(digits):
    labels = digits.train[1]
    kept, held_out = split_holdout(labels, 300, seed=1)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(len(labels)))
    assert len(held_out) == 300
    assert (torch.bincount(labels[held_out]) - 30).abs().max() <= 1
    assert torch.equal(split_holdout(labels, 300, seed=1)[1], held_out)
    assert not torch.equal(split_holdout(labels, 300, seed=2)[1], held_out)


def test_split_holdout_too_large_is_refused(digits):
    with pytest.raises(ConfigError, match=r"holdout = 5000 of 1347"):
        split_holdout(digits.train[1], 5000, seed=0)


# A small stand-in: seven files with their own MD5, so that every path is tested quickly.


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder of seven small files and its archive, known by their own MD5; no other root."""
    source = tmp_path / "source" / download.CIFAR10_FOLDER
    source.mkdir(parents=True)
    sums = {}
    for name in download.CIFAR10_MD5:
        (source / name).write_bytes(np.random.default_rng(0).bytes(50_000))
        sums[name] = files.md5(source / name)
    archive = tmp_path / "source" / download.CIFAR10_ARCHIVE
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, download.CIFAR10_FOLDER)
    monkeypatch.setattr(download, "CIFAR10_MD5", sums)
    monkeypatch.setattr(download, "CIFAR10_ARCHIVE_MD5", files.md5(archive))
    monkeypatch.setattr(download, "PROJECT", tmp_path / "project")
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", (2, 0.5))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # where a proxy is set, it is for other servers
    monkeypatch.setattr(download.platformdirs, "user_cache_dir", lambda *a, **k: tmp_path / "cache")
    monkeypatch.delenv("RESNETLIB_DATA", raising=False)
    return archive


@contextmanager
def served(content, *, cut_after=None, stall=False, status=None):
    """An HTTP server on this machine that gives `content`, with ranges; `requests` it has seen."""
    release = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("Range"))
            start = int(re.findall(r"\d+", self.headers.get("Range") or "0")[0])
            if status or start >= len(content):
                self.send_error(status or 416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:cut_after])
            if stall:
                release.wait(5)

        def log_message(self, *words):
            pass

    seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{download.CIFAR10_ARCHIVE}", seen
    finally:
        release.set()
        server.shutdown()
        server.server_close()


def test_data_roots_order(small, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNETLIB_DATA", str(tmp_path / "variable"))
    places = [tmp_path / "named", tmp_path / "variable", tmp_path / "project" / "data"]
    places.append(tmp_path / "cache")
    assert download.data_roots(tmp_path / "named") == places
    for place in reversed(places):
        shutil.copytree(small.parent / download.CIFAR10_FOLDER, place / download.CIFAR10_FOLDER)
        assert download.find_cifar10(tmp_path / "named") == place / download.CIFAR10_FOLDER


def test_find_cifar10_by_folder_or_archive(small, tmp_path):
    folder = small.parent / download.CIFAR10_FOLDER
    assert download.find_cifar10(folder) == folder
    place = tmp_path / "archive"
    (place / download.CIFAR10_FOLDER).mkdir(parents=True)  # and a part of what it holds
    (place / download.CIFAR10_FOLDER / "data_batch_1").write_bytes(b"old")
    shutil.copy(small, place)
    assert download.obtain_cifar10(place) == place / download.CIFAR10_FOLDER
    assert (
        files.md5(place / download.CIFAR10_FOLDER / "data_batch_1") in download.CIFAR10_MD5.values()
    )


@pytest.mark.parametrize("place", ["a-data-set", "datasets/someone/a-data-set"])
def test_cifar10_is_found_under_kaggle_input(small, tmp_path, monkeypatch, place):
    """As the unpacked folder or as the archive, which is unpacked elsewhere: it is read-only."""
    monkeypatch.setattr(download, "KAGGLE_INPUT", tmp_path / "input")
    unpacked = tmp_path / "input" / place / download.CIFAR10_FOLDER
    shutil.copytree(small.parent / download.CIFAR10_FOLDER, unpacked)
    assert download.obtain_cifar10(None, addresses=[]) == unpacked
    shutil.rmtree(unpacked)
    shutil.copy(small, unpacked.parent)
    cache = tmp_path / "cache" / download.CIFAR10_FOLDER
    assert download.obtain_cifar10(None, addresses=[]) == cache
    assert sorted(path.name for path in cache.iterdir()) == sorted(download.CIFAR10_MD5)


def test_archive_in_a_folder_that_cannot_be_written_is_unpacked_elsewhere(
    small, tmp_path, monkeypatch
):
    place = tmp_path / "shared"
    place.mkdir()
    shutil.copy(small, place)
    # As root, who runs the tests of some machines, everything can be written.
    monkeypatch.setattr(files, "is_read_only", lambda folder: folder == place)
    cache = tmp_path / "cache" / download.CIFAR10_FOLDER
    assert download.obtain_cifar10(place, addresses=[]) == cache
    assert [path.name for path in place.iterdir()] == [small.name]
    assert download.find_cifar10(place) == cache


def test_data_command_fetches_and_checks(small, tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    shutil.copy(small, place)
    monkeypatch.setattr(download, "_download_cifar10", lambda *_: pytest.fail("not needed"))
    done = CliRunner().invoke(main, ["data", "--data-root", str(place)])
    assert done.exit_code == 0, done.output
    assert f"CIFAR-10 is complete in {place / download.CIFAR10_FOLDER}" in done.output
    (place / download.CIFAR10_FOLDER / "test_batch").write_bytes(b"x")
    done = CliRunner().invoke(main, ["data", "--data-root", str(place)])
    assert done.exit_code == 1
    assert "test_batch is damaged" in done.output


def test_load_dataset_names_damaged_file(small, tmp_path):
    folder = small.parent / download.CIFAR10_FOLDER
    (folder / "data_batch_1").write_bytes(b"x")
    with pytest.raises(DataError, match=r"data_batch_1 is damaged"):
        load_dataset("cifar10", folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_load_dataset_names_damaged_genuine_file(cifar10, tmp_path, name):
    for path in download.find_cifar10().iterdir():
        (tmp_path / path.name).symlink_to(path)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} is damaged: its MD5 is \w{{32}} instead of"):
        load_dataset("cifar10", tmp_path)


def test_download_is_checked_and_unpacked(small, tmp_path):
    with served(small.read_bytes()) as (address, _):
        folder = download.obtain_cifar10(tmp_path / "wanted", [address])
    assert folder == tmp_path / "wanted" / download.CIFAR10_FOLDER
    assert {path.name for path in folder.iterdir()} == set(download.CIFAR10_MD5)
    left = [path.name for path in folder.parent.iterdir() if path.suffix != ".lock"]
    assert left == [download.CIFAR10_FOLDER]


@pytest.mark.parametrize("stall", [False, True])
def test_download_resumes_from_the_next_address(small, tmp_path, stall):
    content = small.read_bytes()
    with (
        served(content, cut_after=200_000, stall=stall) as (broken, _),
        served(content) as (good, seen),
    ):
        download.obtain_cifar10(tmp_path / "wanted", [broken, good])
    (range_header,) = seen
    start = int(re.fullmatch(r"bytes=(\d+)-", range_header)[1])
    assert 200_000 - download.PIECE <= start <= 200_000


def test_download_discards_wrong_bytes(small, tmp_path):
    with served(b"<html>login" * 100) as (wrong, _), served(small.read_bytes()) as (good, seen):
        download.obtain_cifar10(tmp_path / "wanted", [wrong, good])
    assert seen == [None]


def test_download_failure_names_every_attempt(small, tmp_path):
    with served(b"", status=503) as (down, _):
        nobody = "http://127.0.0.1:9/" + download.CIFAR10_ARCHIVE
        with pytest.raises(DataError) as caught:
            download.obtain_cifar10(tmp_path / "wanted", [down, nobody])
    message = str(caught.value)
    for part in (down, "HTTP 503", nobody, "no connection", "wanted", "-p dataset digits"):
        assert part in message


def test_obtain_cifar10_needs_a_writable_folder(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written to .*file.*: Not a directory"):
        load_dataset("cifar10", tmp_path / "file" / "data")


def test_addresses_include_the_authors():
    hosts = [address.split("/")[2] for address in download.CIFAR10_ADDRESSES]
    assert "www.cs.toronto.edu" in hosts
    assert len(set(hosts)) >= 2


def test_download_stops_at_the_published_size(small, tmp_path, monkeypatch):
    """A server that sends more than the file has is cut off, and the next address is tried."""
    content = small.read_bytes()
    monkeypatch.setattr(download, "CIFAR10_ARCHIVE_BYTES", len(content))
    with served(content * 3) as (endless, _), served(content) as (good, _):
        folder = download.obtain_cifar10(tmp_path / "wanted", [endless, good])
    assert (folder / "batches.meta").is_file()
    with served(content * 3) as (endless, _), pytest.raises(DataError, match="content is wrong"):
        download.obtain_cifar10(tmp_path / "other", [endless])
    assert not list((tmp_path / "other").glob("*.part"))


def test_missing_file_of_the_data_set_is_named(small, tmp_path):
    small.unlink()
    (small.parent / download.CIFAR10_FOLDER / "batches.meta").unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-py lacks batches\.meta\."):
        download.obtain_cifar10(small.parent, [])


def test_data_that_is_too_large_is_not_read(small):
    folder = small.parent / download.CIFAR10_FOLDER
    with (folder / "test_batch").open("wb") as file:
        file.truncate(2**33)
    for read in (lambda: data._read_checked(folder, "test_batch"), lambda: check_cifar10(folder)):
        with pytest.raises(DataError, match=r"test_batch cannot be read: it is larger than"):
            read()


def test_archive_that_is_too_large_is_not_read(small, tmp_path):
    with small.open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(DataError, match="it has 8,589,934,592 bytes instead of 170,498,071"):
        download._unpack(small, tmp_path)

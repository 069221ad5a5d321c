"""CIFAR-10: where it is looked for, its download, and what can fail."""

import http.server
import re
import shutil
import threading
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from resnetlib import download, files, load_dataset
from resnetlib.cli import main
from resnetlib.download import check_cifar10
from resnetlib.errors import DataError


@contextmanager
def served(content, *, cut_after=None, stall=False, status=None, length=True):
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
            if length:
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


def test_data_roots_order(small_archive, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNETLIB_DATA", str(tmp_path / "variable"))
    places = [tmp_path / "named", tmp_path / "variable", tmp_path / "project" / "data"]
    places.append(tmp_path / "cache")
    assert download.data_roots(tmp_path / "named") == places
    for place in reversed(places):
        shutil.copytree(
            small_archive.parent / download.CIFAR10_FOLDER, place / download.CIFAR10_FOLDER
        )
        assert download.find_cifar10(tmp_path / "named") == place / download.CIFAR10_FOLDER


def test_find_cifar10_by_folder_or_archive(small_archive, tmp_path):
    folder = small_archive.parent / download.CIFAR10_FOLDER
    assert download.find_cifar10(folder) == folder
    place = tmp_path / "archive"
    (place / download.CIFAR10_FOLDER).mkdir(parents=True)  # and a part of what it holds
    (place / download.CIFAR10_FOLDER / "data_batch_1").write_bytes(b"old")
    shutil.copy(small_archive, place)
    assert download.obtain_cifar10(place) == place / download.CIFAR10_FOLDER
    assert (
        files.md5(place / download.CIFAR10_FOLDER / "data_batch_1") in download.CIFAR10_MD5.values()
    )


@pytest.mark.parametrize("place", ["a-data-set", "datasets/someone/a-data-set"])
def test_cifar10_is_found_under_kaggle_input(small_archive, tmp_path, monkeypatch, place):
    """As the unpacked folder or as the archive, which is unpacked elsewhere: it is read-only."""
    monkeypatch.setattr(download, "KAGGLE_INPUT", tmp_path / "input")
    unpacked = tmp_path / "input" / place / download.CIFAR10_FOLDER
    shutil.copytree(small_archive.parent / download.CIFAR10_FOLDER, unpacked)
    assert download.obtain_cifar10(None, addresses=[]) == unpacked
    shutil.rmtree(unpacked)
    shutil.copy(small_archive, unpacked.parent)
    cache = tmp_path / "cache" / download.CIFAR10_FOLDER
    assert download.obtain_cifar10(None, addresses=[]) == cache
    assert sorted(path.name for path in cache.iterdir()) == sorted(download.CIFAR10_MD5)


def test_archive_in_a_folder_that_cannot_be_written_is_unpacked_elsewhere(
    small_archive, tmp_path, monkeypatch
):
    place = tmp_path / "shared"
    place.mkdir()
    shutil.copy(small_archive, place)
    # As root, who runs the tests of some machines, everything can be written.
    monkeypatch.setattr(files, "is_read_only", lambda folder: folder == place)
    cache = tmp_path / "cache" / download.CIFAR10_FOLDER
    assert download.obtain_cifar10(place, addresses=[]) == cache
    assert [path.name for path in place.iterdir()] == [small_archive.name]
    assert download.find_cifar10(place) == cache


def test_data_command_fetches_and_checks(small_archive, tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    shutil.copy(small_archive, place)
    monkeypatch.setattr(download, "_download_cifar10", lambda *_: pytest.fail("not needed"))
    done = CliRunner().invoke(main, ["data", "--data-root", str(place)])
    assert done.exit_code == 0, done.output
    assert f"CIFAR-10 is complete in {place / download.CIFAR10_FOLDER}" in done.output
    (place / download.CIFAR10_FOLDER / "test_batch").write_bytes(b"x")
    done = CliRunner().invoke(main, ["data", "--data-root", str(place)])
    assert done.exit_code == 1
    assert "test_batch is damaged" in done.output


def test_load_dataset_names_damaged_file(small_archive, tmp_path):
    folder = small_archive.parent / download.CIFAR10_FOLDER
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


def test_download_is_checked_and_unpacked(small_archive, tmp_path):
    (tmp_path / "wanted" / ".unpacking-killed").mkdir(parents=True)
    with served(small_archive.read_bytes()) as (address, _):
        folder = download.obtain_cifar10(tmp_path / "wanted", [address])
    assert folder == tmp_path / "wanted" / download.CIFAR10_FOLDER
    assert {path.name for path in folder.iterdir()} == set(download.CIFAR10_MD5)
    left = [path.name for path in folder.parent.iterdir() if path.suffix != ".lock"]
    assert left == [download.CIFAR10_FOLDER]


@pytest.mark.parametrize("stall", [False, True])
def test_download_resumes_from_the_next_address(small_archive, tmp_path, stall):
    content = small_archive.read_bytes()
    with (
        served(content, cut_after=200_000, stall=stall) as (broken, _),
        served(content) as (good, seen),
    ):
        download.obtain_cifar10(tmp_path / "wanted", [broken, good])
    (range_header,) = seen
    start = int(re.fullmatch(r"bytes=(\d+)-", range_header)[1])
    assert 200_000 - download.PIECE <= start <= 200_000


def test_download_discards_wrong_bytes(small_archive, tmp_path):
    with (
        served(b"<html>login" * 100, length=False) as (wrong, _),
        served(small_archive.read_bytes()) as (good, seen),
    ):
        download.obtain_cifar10(tmp_path / "wanted", [wrong, good])
    assert seen == [None]


def test_another_page_costs_nothing_of_what_is_there(small_archive, tmp_path):
    """Such as that of a network which asks for a password, sent as if it were the file."""
    content = small_archive.read_bytes()
    part = tmp_path / "wanted" / f"{download.CIFAR10_ARCHIVE}.part"
    part.parent.mkdir()
    part.write_bytes(content[:150_000])

    class Page(http.server.BaseHTTPRequestHandler):  # which knows of no ranges
        def do_GET(self):
            page = b"<html>log in</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{download.CIFAR10_ARCHIVE}"
        with pytest.raises(DataError, match=r"it has 19 bytes instead of"):
            download.obtain_cifar10(part.parent, [address])
        server.shutdown()
    assert part.read_bytes() == content[:150_000]
    with served(content) as (good, seen):
        download.obtain_cifar10(part.parent, [good])
    assert seen == ["bytes=150000-"]


def test_download_failure_names_every_attempt(small_archive, tmp_path):
    with served(b"", status=503) as (down, _):
        nobody = "http://127.0.0.1:9/" + download.CIFAR10_ARCHIVE
        with pytest.raises(DataError) as caught:
            download.obtain_cifar10(tmp_path / "wanted", [down, nobody])
    message = str(caught.value)
    for part in (down, "HTTP 503", nobody, "no connection", "wanted", "-p dataset digits"):
        assert part in message


def test_obtain_cifar10_needs_a_writable_folder(small_archive, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written to .*file.*: Not a directory"):
        load_dataset("cifar10", tmp_path / "file" / "data")


def test_addresses_include_the_authors():
    hosts = [address.split("/")[2] for address in download.CIFAR10_ADDRESSES]
    assert "www.cs.toronto.edu" in hosts
    assert len(set(hosts)) >= 2


def test_download_stops_at_the_published_size(small_archive, tmp_path):
    """A server that sends more than the file has is cut off, and the next address is tried."""
    content = small_archive.read_bytes()
    with served(content * 3, length=False) as (endless, _), served(content) as (good, _):
        folder = download.obtain_cifar10(tmp_path / "wanted", [endless, good])
    assert (folder / "batches.meta").is_file()
    wrong = pytest.raises(DataError, match="content is wrong")
    with served(content * 3, length=False) as (endless, _), wrong:
        download.obtain_cifar10(tmp_path / "other", [endless])
    assert not list((tmp_path / "other").glob("*.part"))


def test_missing_file_of_the_data_set_is_named(small_archive, tmp_path):
    small_archive.unlink()
    (small_archive.parent / download.CIFAR10_FOLDER / "batches.meta").unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-py lacks batches\.meta\."):
        download.obtain_cifar10(small_archive.parent, [])


def test_data_that_is_too_large_is_not_read(small_archive):
    folder = small_archive.parent / download.CIFAR10_FOLDER
    with (folder / "test_batch").open("wb") as file:
        file.truncate(2**33)
    for read in (
        lambda: download.read_checked(folder / "test_batch"),
        lambda: check_cifar10(folder),
    ):
        with pytest.raises(DataError, match=r"test_batch cannot be read: it is larger than"):
            read()


def test_archive_that_is_too_large_is_not_read(small_archive, tmp_path):
    with small_archive.open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(DataError, match="it has 8,589,934,592 bytes instead of "):
        download._unpack(small_archive, tmp_path)

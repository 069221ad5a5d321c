"""Atomic writes, bounded reads, checksums and locks."""

import errno
import json
import os
import stat
import subprocess
import sys
import tarfile
import threading
from types import SimpleNamespace
from unittest.mock import Mock

import filelock
import pytest

from resnetlib import files


def test_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    files.write_json(path, {"a": 1})

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=r"No space.*run\.json"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_write_works_where_folders_cannot_be_synchronized(tmp_path, monkeypatch):
    synchronize = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        synchronize(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    files.write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


def test_write_gives_the_usual_permissions(tmp_path):
    files.write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"}
    assert len(modes) == 1


def test_write_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "zero", "empty"])
def test_read_checksummed_finds_every_damage(tmp_path, damage):
    path = tmp_path / "checksummed"
    path.write_bytes(files.with_checksum(b"\n".join([b"content"] * 100)))
    assert files.read_checksummed(path) == b"\n".join([b"content"] * 100)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[300] ^= 1
    elif damage == "truncate":
        content = content[:-1]
    elif damage == "zero":
        content[200:264] = bytes(64)
    else:
        content = b""
    path.write_bytes(content)
    with pytest.raises(files.CorruptFile, match="checksummed"):
        files.read_checksummed(path)


def test_lock_file_that_cannot_be_opened_counts_as_held(tmp_path, monkeypatch):
    """Such as that of a colleague: a folder of runs can be listed all the same."""
    (tmp_path / ".lock").touch()
    monkeypatch.setattr(files, "_has_locks", Mock(side_effect=PermissionError))
    assert files.is_locked(tmp_path / ".lock")


def test_lock_is_refused_to_a_second_process(tmp_path):
    program = (
        "import sys, pathlib\nfrom resnetlib import files\n"
        "try:\n    with files.lock(pathlib.Path(sys.argv[1])): print('got it')\n"
        "except BlockingIOError as error: print(error)\n"
    )
    path = tmp_path / "run" / ".lock"

    def second():
        command = [sys.executable, "-c", program, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with files.lock(path):
        holder = f" ({os.getpid()})" if sys.platform == "linux" else ""
        assert second().endswith(f"is in use by another process{holder}")
        assert files.is_locked(path)
    assert not files.is_locked(path)
    assert second() == "got it"
    assert not files.is_locked(tmp_path / "missing")


@pytest.mark.parametrize("kind", ["named pipe", "folder", "link"])
def test_lock_refuses_what_is_not_a_file(tmp_path, kind):
    path, other = tmp_path / ".lock", tmp_path / "other"
    other.write_text("mine")
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(other)
    assert not files.is_locked(path)
    with pytest.raises(OSError, match="not a regular file"), files.lock(path):
        pass
    assert other.read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="Windows always has locks")
@pytest.mark.parametrize("error", ["ENOSYS", "EOPNOTSUPP", "ENOLCK"])
def test_lock_falls_back_where_there_are_none(tmp_path, error):
    """As on some network file systems; a process that was killed does not keep the lock."""
    program = (
        "import errno, fcntl, os, sys, pathlib\n"
        f"def flock(*_): raise OSError(errno.{error}, 'no locks')\n"
        "fcntl.flock = flock\n"
        "from resnetlib import files\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "with files.lock(path):\n"
        "    print(files.is_locked(path), flush=True)\n"
        "    try:\n"
        "        with files.lock(path): print('got it twice')\n"
        "    except files.RunLocked as refused: print(refused, flush=True)\n"
        "    if sys.argv[2:]: os.kill(os.getpid(), 9)\n"
        "print(files.is_locked(path))\n"
    )
    path = tmp_path / "run" / ".lock"

    def call(*words):
        command = [sys.executable, "-c", program, str(path), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    killed = call("killed")
    assert killed.returncode == -9 and (tmp_path / "run" / ".lock.held").exists()
    done = call()
    first, second, last = done.stdout.splitlines()
    assert (first, last) == ("True", "False")
    assert "in use by another process; remove" in second and ".lock.held" in second
    assert "this file system has no locks; .lock.held marks the folder as in use" in done.stderr
    assert not (tmp_path / "run" / ".lock.held").exists()


def test_read_checksummed_compares_with_the_recorded_checksum(tmp_path):
    path = tmp_path / "checksummed"
    path.write_bytes(files.with_checksum(b"content"))
    recorded = files.sha256(path)
    assert files.read_checksummed(path, recorded) == b"content"
    path.write_bytes(files.with_checksum(b"other content"))
    assert files.read_checksummed(path) == b"other content"
    with pytest.raises(files.CorruptFile):
        files.read_checksummed(path, recorded)


def test_temporaries_are_no_other_files(tmp_path):
    kept = [".lock", "run.json", ".run.json.mine", ".run.json.abcdefgh1", ".other.json.abcdefgh"]
    for name in [*kept, ".run.json.abcd_123"]:
        (tmp_path / name).touch()
    assert files.temporaries(tmp_path / "run.json") == [tmp_path / ".run.json.abcd_123"]


def test_lock_waits_for_who_only_looks(tmp_path):
    """`is_locked` holds the lock for a moment, in which a run may start."""
    looking = filelock.FileLock(tmp_path / ".lock", thread_local=False)
    looking.acquire()
    threading.Timer(files.LOCK_SECONDS / 10, looking.release).start()
    with files.lock(tmp_path / ".lock"):
        assert not looking.is_locked


@pytest.mark.parametrize("kind", ["pipe", "folder", "large"])
def test_read_bytes_refuses_what_may_not_end(tmp_path, kind):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"12345")
    with pytest.raises(OSError, match=rf"(regular file|larger than 4 bytes|directory).*{kind}"):
        files.read_bytes(path, 4)


def test_read_head_opens_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"abc")
    assert files.read_head(tmp_path / "file", 2) == b"ab"
    assert [files.read_head(tmp_path / name, 2) for name in ("pipe", "loop", ".", "no")] == [
        b""
    ] * 4


def test_read_json_refuses_deep_nesting(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        files.read_json(tmp_path / "deep.json")


def test_unpack_tar_works_without_filters(tmp_path, monkeypatch):
    """As in the Python of Debian 12."""
    monkeypatch.setattr(files, "tarfile", SimpleNamespace())
    extract = tarfile.TarFile.extractall
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda self, path: extract(self, path))
    (tmp_path / "a").write_text("text")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a", "a")
    with tarfile.open(tmp_path / "a.tar") as archive:
        files.unpack_tar(archive, tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "text"

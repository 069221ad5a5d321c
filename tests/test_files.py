"""Atomic writes, checksums, locks and unpickling without code."""

import io
import json
import os
import pickle
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
from unittest.mock import Mock

import filelock
import numpy as np
import pytest
import torch

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


def test_look_at_a_lock_does_not_refuse_it(tmp_path):
    """`is_locked` holds it for a moment, in which a run may start."""
    path = tmp_path / ".lock"
    looking = filelock.FileLock(path, thread_local=False)
    looking.acquire()
    threading.Timer(0.1, looking.release).start()
    with files.lock(path):
        pass


def call(module, name, *arguments):
    """Pickle operations that call a function."""
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


DTYPE = call("numpy", "dtype", text("f8"))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_unpickle_arrays_reads_plain_data(protocol):
    content = {b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"ids": [1, 2, 3]}
    read = files.unpickle_arrays(pickle.dumps(content, protocol=protocol))
    assert read[b"ids"] == [1, 2, 3]
    assert (read[b"data"] == content[b"data"]).all()


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("kind", ["u1", "<i8", ">i4", "f4", "b1", "S3", "<U3", ">U3", "O"])
def test_unpickle_arrays_reads_every_plain_kind(kind, protocol):
    array = np.array([[1, 0], [2, 3], [4, 5]]).astype(kind)
    for given in (array, array.T, array[1:]):
        read = files.unpickle_arrays(pickle.dumps(given, protocol=protocol))
        assert read.dtype.newbyteorder("=") == given.dtype.newbyteorder("=")
        assert (read.shape, read.tolist()) == (given.shape, given.tolist())


def array_pickle(kind, shape, content):
    """Pickle operations that build an array from its parts, unchecked."""
    empty = call("numpy.core.multiarray", "_reconstruct", b"cnumpy\nndarray\n", b")", text("b"))
    return b"\x80\x02" + empty + b"(K\x01" + shape + kind + b"\x89" + content + b"tb."


TYPE_OF_OBJECTS_WITHOUT_A_FLAG = (
    b"cnumpy\ndtype\n" + text("V8") + b"\x85R(K\x03" + text("|") + b"N" + text("x") + b"\x85}"
    + text("x") + b"cnumpy\ndtype\n" + text("O") + b"\x85RK\x00\x86sK\x08K\x01K\x00tb"
)  # fmt: skip
HOSTILE_ARRAYS = {
    "pointers": (TYPE_OF_OBJECTS_WITHOUT_A_FLAG, b"K\x01\x85", b"U\x08AAAAAAAA"),
    "objects beyond the list": (DTYPE.replace(b"f8", b"O8"), b"J\x00\x00\x10\x00\x85", b"]K\x01a"),
    "objects from bytes": (DTYPE.replace(b"f8", b"O8"), b"K\x01\x85", b"U\x08AAAAAAAA"),
    "fewer than no rows": (DTYPE, b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", b"U\x08AAAAAAAA"),
    "more than there are": (DTYPE, b"K\x02\x85", b"U\x08AAAAAAAA"),
}


@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
def test_unpickle_arrays_reads_no_other_memory(name):
    kind, shape, content = HOSTILE_ARRAYS[name]
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        files.unpickle_arrays(array_pickle(kind, shape, content))


def test_unpickle_leaves_numpy_as_it_is():
    swapped = DTYPE + b"(K\x03" + text(">") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    files.unpickle_arrays(b"\x80\x02" + swapped + b".")
    files.unpickle_tensors(archive(ops=swapped))
    assert np.dtype("f8").isnative


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


def test_unpickle_never_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        files.unpickle_arrays(pickle.dumps(Exploit()))
    buffer = io.BytesIO()
    torch.save(Exploit(), buffer)
    with pytest.raises(pickle.UnpicklingError):
        files.unpickle_tensors(buffer.getvalue())
    assert not list(tmp_path.iterdir())


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


def archive(*, ops=b"", compression=zipfile.ZIP_STORED):
    """What `torch.save` writes, with other content in its pickle."""
    saved, hostile = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(2)}, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(hostile, "w", compression) as target:
        for record in source.infolist():
            is_pickle = ops and record.filename.endswith(".pkl")
            content = b"\x80\x02" + ops + b"." if is_pickle else source.read(record)
            target.writestr(record.filename, content)
    return hostile.getvalue()


def whole(number):
    return b"\x8a\x06" + number.to_bytes(6, "little")


def hex_bomb(levels):
    """Each level doubles two bytes."""
    ops = call("_codecs", "encode", text("ab"), text("latin1"))
    for _ in range(levels):
        ops = call("_codecs", "encode", ops, text("hex"))
    return ops


SHARED = b")q\x00" + b"".join(b"h%ch%c\x86q%c0" % (n, n, n + 1) for n in range(100))
HOSTILE = {
    "bytearray of a terabyte": call("builtins", "bytearray", whole(10**12)),
    "tensor of a terabyte": call("torch", "Tensor", whole(10**12)),
    "encoded 40 times": hex_bomb(40),
    "scalar of 20 GB": call(
        "numpy.core.multiarray", "scalar", call("numpy", "dtype", text("V20000000000"))
    ),
    "key of shared tuples": b"}" + SHARED[:-1] + b"K\x01s",
    "tuples nested deeply": b"}" + b")" + b"\x85" * 200_000 + b"K\x01s",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_unpickle_tensors_refuses_what_exhausts(name):
    before = np.dtype("f8").str
    began = time.monotonic()
    with pytest.raises((pickle.UnpicklingError, MemoryError, RuntimeError)):
        files.unpickle_tensors(archive(ops=HOSTILE[name]))
    assert time.monotonic() - began < 30  # a second; without limits for ever
    assert np.dtype("f8").str == before


def test_unpickle_tensors_refuses_compression():
    with pytest.raises(pickle.UnpicklingError, match="compressed"):
        files.unpickle_tensors(archive(compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("is_archive", [True, False])
def test_unpickle_tensors_reads_scalars(is_archive):
    content = {"best": [np.float64(0.5), np.float32(2), np.int64(3), np.bool_(True)], "a": (1, 2)}
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=is_archive)
    read = files.unpickle_tensors(buffer.getvalue())
    assert read == {"best": [0.5, 2.0, 3, True], "a": (1, 2)}

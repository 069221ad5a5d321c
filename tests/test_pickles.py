"""Unpickling without running code, and without exhausting the machine."""

import io
import os
import pickle
import pickletools
import struct
import zipfile

import numpy as np
import pytest
import torch

from resnetlib import pickles


def call(module, name, *arguments):
    """Pickle operations that call a function."""
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


DTYPE = call("numpy", "dtype", text("f8"))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_unpickle_arrays_reads_plain_data(protocol):
    content = {b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"ids": [1, np.int64(2), 3]}
    read = pickles.unpickle_arrays(pickle.dumps(content, protocol=protocol))
    assert read[b"ids"] == [1, 2, 3]
    assert (read[b"data"] == content[b"data"]).all()


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("kind", ["u1", "<i8", ">i4", "f4", "b1", "S3", "<U3", ">U3", "O"])
def test_unpickle_arrays_reads_every_plain_kind(kind, protocol):
    array = np.array([[1, 0], [2, 3], [4, 5]]).astype(kind)
    cube = np.zeros((2, 3, 4)).astype(kind).transpose(0, 2, 1)  # protocol 5 names its axes
    for given in (array, array.T, array[1:], cube):
        read = pickles.unpickle_arrays(pickle.dumps(given, protocol=protocol))
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
        pickles.unpickle_arrays(array_pickle(kind, shape, content))


def test_unpickle_leaves_numpy_as_it_is():
    swapped = DTYPE + b"(K\x03" + text(">") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    pickles.unpickle_arrays(b"\x80\x02" + swapped + b".")
    pickles.unpickle_tensors(archive(ops=swapped))
    assert np.dtype("f8").isnative


@pytest.mark.parametrize("protocol", range(1, 6))
def test_check_pickle_accepts_many_numbers_of_numpy(protocol):
    content = {"ids": list(np.arange(3000)), "labels": np.array([None, "a"], dtype=object)}
    pickled = pickle.dumps(content, protocol=protocol)
    pickles.check_pickle(pickled)
    read = pickles.unpickle_arrays(pickled)
    assert read["ids"] == list(range(3000)) and read["labels"].tolist() == [None, "a"]


def test_check_pickle_refuses_a_long_memo():
    with pytest.raises(pickle.UnpicklingError, match="numbers more objects"):
        pickles.check_pickle(b"\x80\x02]r" + struct.pack("<I", 30_000_000) + b".")


@pytest.mark.parametrize("noted", [b"q\x00", b"q\x00q\x01q\x00", b"\x94", b"(K\x01eq\x00"])
@pytest.mark.parametrize("made", [b"]", b"(l", b"}]\x85"])
def test_check_pickle_refuses_shared_containers(made, noted):
    once = b"\x80\x04" + made + noted
    pickles.check_pickle(once + b"K\x01\x86.")
    with pytest.raises(pickle.UnpicklingError, match="twice"):
        pickles.check_pickle(once + b"h\x00\x86.")


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


def test_unpickle_never_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        pickles.unpickle_arrays(pickle.dumps(Exploit()))
    buffer = io.BytesIO()
    torch.save(Exploit(), buffer)
    with pytest.raises(pickle.UnpicklingError):
        pickles.unpickle_tensors(buffer.getvalue())
    assert not list(tmp_path.iterdir())


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
    # What a machine would grant; a terabyte, Linux refuses by itself.
    "bytearray of 3 GiB": call("builtins", "bytearray", whole(3 * 2**30)),
    "tensor of 4 GiB": call("torch", "Tensor", whole(2**30)),
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
    """Within a second; without limits it would not end."""
    before = np.dtype("f8").str
    with pytest.raises((pickle.UnpicklingError, MemoryError, RuntimeError)):
        pickles.unpickle_tensors(archive(ops=HOSTILE[name]))
    assert np.dtype("f8").str == before


@pytest.mark.parametrize("number", range(5))
def test_unpickle_tensors_checks_every_pickle_of_the_older_format(number):
    """Magic number, version, machine, content and keys; torch hashes the items of the last."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=False)
    places = [buffer.seek(0)]
    for _ in range(5):
        list(pickletools.genops(buffer))
        places.append(buffer.tell())
    shared = ()
    for _ in range(24):
        shared = (shared, shared)
    before, after = buffer.getvalue()[: places[number]], buffer.getvalue()[places[number + 1] :]
    with pytest.raises(pickle.UnpicklingError, match="too many objects"):
        pickles.unpickle_tensors(before + pickle.dumps([shared], protocol=2) + after)


def test_unpickle_tensors_refuses_compression():
    with pytest.raises(pickle.UnpicklingError, match="compressed"):
        pickles.unpickle_tensors(archive(compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("is_archive", [True, False])
def test_unpickle_tensors_reads_scalars(is_archive):
    content = {"best": [np.float64(0.5), np.float32(2), np.int64(3), np.bool_(True)], "a": (1, 2)}
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=is_archive)
    read = pickles.unpickle_tensors(buffer.getvalue())
    assert read == {"best": [0.5, 2.0, 3, True], "a": (1, 2)}

"""Read pickles, of data sets and of `torch.save`, without running code from them."""

import io
import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO


class _ArrayUnpickler(pickle.Unpickler):
    """Builds lists, dicts, strings, numbers, numpy scalars and arrays; refuses any other name."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _array_names()[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            message = f"refused {module}.{name}: only arrays are read here"
            raise pickle.UnpicklingError(message) from None


@cache
def _array_names() -> dict[tuple[str, str], Any]:
    """What stands for the names in the pickle of an array or of a number of numpy."""
    import numpy as np  # only data sets need it

    class Array(np.ndarray):
        def __setstate__(self, state: tuple) -> None:
            version, shape, kind, order, content = state
            count = len(content) if isinstance(content, list) else None  # numpy does not compare
            if min(shape, default=0) < 0 or (kind.name[0] == "O" and count != math.prod(shape)):
                raise pickle.UnpicklingError("an array has another size than its content")
            if count and not all(
                isinstance(part, int | float | str | bytes | None) for part in content
            ):
                raise pickle.UnpicklingError("an array holds more than numbers and strings")
            super().__setstate__((version, shape, kind.dtype, order, content))

    def from_buffer(
        content: bytes, kind: _ArrayType, shape: tuple, order: str, axes: tuple | None = None
    ) -> np.ndarray:
        array = np.frombuffer(content, kind.dtype)
        if axes is None:
            return array.reshape(shape, order=order)
        return array.reshape(shape).transpose(axes)  # numpy 2.4, of a transposed array

    return {
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): _ArrayType,
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: Array(0),
        ("numpy.core.multiarray", "scalar"): _read_scalar,
        ("numpy.core.numeric", "_frombuffer"): from_buffer,  # protocol 5
        ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes in protocol 2
    }


class _ArrayType:
    """Stands for `numpy.dtype`, whose state in a hostile file makes numpy read any memory."""

    KINDS = re.compile("[biuf][1248]|[SU][0-9]{1,4}|O8?")

    def __init__(self, name: str | bytes, *_: Any):
        self.name = name.decode("latin1") if isinstance(name, bytes) else name
        if not self.KINDS.fullmatch(self.name):
            raise pickle.UnpicklingError(f"refused numbers of type {self.name[:20]!r}")
        self.order = "|"

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        self.order = order.decode("latin1") if isinstance(order, bytes) else order

    @property
    def dtype(self) -> Any:
        import numpy as np

        return np.dtype(self.name).newbyteorder(self.order)


def _read_scalar(kind: _ArrayType, content: bytes) -> Any:
    import numpy as np

    return np.frombuffer(content, kind.dtype)[0].item()


def unpickle_arrays(content: bytes) -> Any:
    """Unpickle plain data and numpy arrays without ever running code from the file."""
    return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


_TEXT = "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8"
_BYTES = "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
_NUMBERS = "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT NONE NEWTRUE NEWFALSE"
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_OBJECTS = "GLOBAL STACK_GLOBAL REDUCE"  # names, and what is made of them: types, arrays, bytes
_SHAREABLE = {*f"{_TEXT} {_BYTES} {_NUMBERS} {_OBJECTS}".split()}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_CONTAINERS = "EMPTY_TUPLE EMPTY_LIST LIST EMPTY_DICT DICT"
_OTHER = "PROTO FRAME STOP MARK APPEND APPENDS SETITEM SETITEMS BUILD"
_ALLOWED = {*f"{_CONTAINERS} {_OTHER}".split()} | _SHAREABLE | _TUPLES | _PUT | _GET
MAX_OPCODES = 3_000_000  # a second for a hundred thousand; an id takes one to three
MAX_TUPLES = 1000  # inside each other; Python crashes at some ten thousand


def check_pickle(content: bytes) -> None:
    """Refuse what a pickle of plain data and arrays does not need, before anything is built.

    No container may appear twice: with that a small file makes one that would take for ever to
    hash or to print. Raises `pickle.UnpicklingError`.
    """
    may_be_shared: dict[int, bool] = {}  # by number in the memo
    tuples = 0
    maker = ""  # of the topmost object
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        tuples += name in _TUPLES
        tuples -= name == "REDUCE" and maker in _TUPLES  # arguments, as of a number of numpy
        if name not in _ALLOWED or count > MAX_OPCODES or tuples > MAX_TUPLES:
            raise pickle.UnpicklingError("it holds more than plain data and arrays")
        if name in _PUT:
            number = len(may_be_shared) if name == "MEMOIZE" else int(argument)
            if number > MAX_OPCODES:  # the memo is as long as its largest number
                raise pickle.UnpicklingError("it numbers more objects than it has")
            may_be_shared[number] = maker in _SHAREABLE
        elif name in _GET and not may_be_shared.get(int(argument), True):
            raise pickle.UnpicklingError("it holds a list, mapping or tuple twice")
        elif name != "FRAME":
            maker = name


def pickle_arrays(content: Any) -> bytes:
    """What `unpickle_arrays` reads."""
    return pickle.dumps(content)


MAX_EXPANDED = 10_000_000  # objects, each counted wherever it appears
MAX_DEPTH = 1000  # objects inside each other


def _check_expansion(pickled: BinaryIO) -> None:
    """Refuse a pickle that would take for ever to hash, or that is nested too deeply.

    A small file may hold a tuple of tuples that are shared, with 10^30 objects in all.
    """
    stack: list[tuple[int, int] | None] = []  # objects in each object, and depth; None for a mark
    memo = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        name, taken = opcode.name, list(opcode.stack_before)
        if name in _PUT:
            memo[len(memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif name in _GET:
            stack.append(memo[int(argument)])
        elif name == "MARK":
            stack.append(None)
        else:
            parts = []
            if pickletools.markobject in taken:
                while (part := stack.pop()) is not None:
                    parts.append(part)
                taken = taken[: taken.index(pickletools.markobject)]
            parts += [stack.pop() for _ in taken]
            objects = 1 + sum(count for count, _ in parts)
            depth = 1 + max((depth for _, depth in parts), default=0)
            depth -= name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")
            if objects > MAX_EXPANDED or depth > MAX_DEPTH:
                raise pickle.UnpicklingError("it holds too many objects inside each other")
            stack += [(objects, depth)] * len(opcode.stack_after)


def _check_archive(content: bytes) -> None:
    """Check each pickle in what `torch.save` wrote, in its present format or the one before."""
    file = io.BytesIO(content)
    if not content.startswith(b"PK"):
        for _ in range(5):  # magic number, version, machine, content, keys; then tensors
            _check_expansion(file)
        return
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError("it is compressed")
            if record.filename.endswith(".pkl"):
                _check_expansion(io.BytesIO(archive.read(record)))


@contextmanager
def bounded_memory(file_size: int) -> Iterator[None]:
    """Where reading a file of so many bytes may take 1 GiB and three times its size, on Linux.

    It holds for the whole process: not for several threads at once, of which one would restore the
    bound of another.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = int(statm.read_text().split()[0]) * resource.getpagesize() + 2**30 + 3 * file_size
    bound = min([bound, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def unpickle_tensors(content: bytes) -> Any:
    """Read what `torch.save` wrote: tensors on the CPU and plain data; never runs code.

    Scalars of numpy and `argparse.Namespace`, which scripts save beside weights, are plain data.
    A file that would take for ever, or memory out of proportion to its size, is refused.
    """
    import argparse

    import torch  # slow to import

    _check_archive(content)
    names = [(_read_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    known = [argparse.Namespace, (_ArrayType, "numpy.dtype"), *names]
    with (
        warnings.catch_warnings(action="ignore"),  # on formats that torch then refuses
        torch.serialization.safe_globals(known),
        bounded_memory(len(content)),
    ):
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")

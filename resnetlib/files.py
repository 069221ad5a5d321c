"""Atomic writes, bounded reads, checksums, locks, and pickles that run no code."""

import errno
import hashlib
import io
import json
import math
import os
import pickle
import pickletools
import re
import stat
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from .errors import UserError, print_line


class RunLocked(UserError, BlockingIOError):
    """Another process works on the run."""


class CorruptFile(RuntimeError):
    """The content of a file does not match its checksum."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary file beside it, fsync, rename, fsync folder.

    An `OSError` names the file, whichever call it came from.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp gives 0600; a run is to be shared
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def temporaries(path: Path) -> list[Path]:
    """The temporary files that killed calls of `write_bytes(path)` left.

    The name of the path may be a pattern, such as `epoch-*.pt`.
    """
    return list(path.parent.glob(f".{path.name}.{'[a-z0-9_]' * 8}"))  # as `tempfile` names them


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """JSON with finite numbers only; a NaN raises `ValueError`."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


LARGEST_JSON = 2**20  # bytes; a record has some thousands


def read_json(path: Path) -> Any:
    """The content of a JSON file of bounded size and depth. Raises `OSError` or `ValueError`."""
    try:
        return json.loads(read_bytes(path, LARGEST_JSON))
    except RecursionError:
        raise ValueError("nested too deeply") from None


LARGEST_FILE = 2**30  # bytes; of what this package writes, weights come nearest


def read_bytes(path: Path, largest: int = LARGEST_FILE) -> bytes:
    """The content of a regular file of at most this many bytes; an `OSError` says which it is not.

    A pipe or a device, which may never end, is not even opened.
    """
    info = path.stat()
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if info.st_size > largest:
        raise OSError(errno.EFBIG, f"it is larger than {largest:,} bytes", str(path))
    with path.open("rb") as file:
        return file.read(largest)


def read_head(path: Path, size: int) -> bytes:
    """The first bytes of a regular file; of anything else, which is not opened, none."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(size)


def sha256(path: Path) -> str:
    return _hexdigest(path, "sha256")


def md5(path: Path) -> str:
    """MD5, since that is what the data set's authors publish; integrity, not security."""
    return _hexdigest(path, "md5")


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _hexdigest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def with_checksum(content: bytes) -> bytes:
    """The content behind a line that holds its SHA-256, which `read_checksummed` checks."""
    return sha256_of(content).encode() + b"\n" + content


LARGEST_CHECKPOINT = 2**32  # bytes


def read_checksummed(path: Path, expected: str | None = None) -> bytes:
    """The content of a file that `with_checksum` made.

    Raises `CorruptFile` if a single bit changed, or if the SHA-256 of the whole file is not the
    expected one, or if the path is not a regular file.
    """
    try:
        whole = read_bytes(path, LARGEST_CHECKPOINT)
    except OSError as error:
        raise CorruptFile(f"{path}: {error.strerror}") from None
    checksum, _, content = whole.partition(b"\n")
    if sha256_of(content).encode() != checksum or expected not in (None, sha256_of(whole)):
        raise CorruptFile(f"{path} is damaged: its content does not match its checksum")
    return content


LOCK_SECONDS = 0.5  # `is_locked` of another process holds a lock for a moment
# What a file system without locks answers: some of NFS and Lustre.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file; while another process does, wait, or raise `RunLocked`.

    Where the file system has no locks, a file that exists while the lock is held stands for one,
    and a line on stderr says so. A killed process leaves that file, which is then ignored on the
    same machine and must be removed on another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    held = _new_lock(path, timeout=-1 if wait else LOCK_SECONDS)
    is_file = isinstance(held, filelock.SoftFileLock)
    if is_file:
        print_line(
            f"{path.parent}: this file system has no locks; {Path(held.lock_file).name} marks the "
            "folder as in use",
            to_stderr=True,
        )
    try:
        held.acquire(poll_interval=0.05)
    except filelock.Timeout:
        hint = f"; remove {held.lock_file} if that process no longer exists" if is_file else ""
        raise RunLocked(
            f"{path.parent} is in use by another process{_holder(path)}{hint}"
        ) from None
    try:
        yield
    finally:
        held.release()


def _holder(path: Path) -> str:
    """The number of the process that holds a lock, as ` (1234)`, where Linux lists it."""
    with suppress(OSError, IndexError):
        inode = path.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            _, kind, _, _, process, place, *_ = line.split()
            if kind == "FLOCK" and place.endswith(f":{inode}"):
                return f" ({process})"
    return ""


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file; also true where that cannot be determined."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        probe = _new_lock(path, timeout=0)
        probe.acquire()
    except (filelock.Timeout, OSError):
        return True
    probe.release()
    return False


def is_read_only(folder: Path) -> bool:
    """Whether the folder or its lock file exists and cannot be written, as a colleague's."""
    places = (folder, folder / ".lock")
    return not all(os.access(place, os.W_OK) for place in places if place.exists())


def _new_lock(path: Path, timeout: float) -> filelock.BaseFileLock:
    if _has_locks(path):
        return filelock.FileLock(path, timeout)
    return filelock.SoftFileLock(path.with_name(f"{path.name}.held"), timeout)


def _has_locks(path: Path) -> bool:
    """Whether the file system has locks; creates the file."""
    if os.name == "nt":
        return True
    import fcntl

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in NO_LOCKS
    return True


class _ArrayUnpickler(pickle.Unpickler):
    """Builds lists, dicts, strings, numbers and numpy arrays; refuses any other name."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _array_names()[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            message = f"refused {module}.{name}: only arrays are read here"
            raise pickle.UnpicklingError(message) from None


@cache
def _array_names() -> dict[tuple[str, str], Any]:
    """What stands for the names in the pickle of an array."""
    import numpy as np  # only data sets need it

    class Array(np.ndarray):
        def __setstate__(self, state: tuple) -> None:
            version, shape, kind, order, content = state
            count = len(content) if isinstance(content, list) else None  # numpy does not compare
            if min(shape, default=0) < 0 or (kind.name[0] == "O" and count != math.prod(shape)):
                raise pickle.UnpicklingError("an array has another size than its content")
            super().__setstate__((version, shape, kind.dtype, order, content))

    def from_buffer(content: bytes, kind: _ArrayType, shape: tuple, order: str) -> np.ndarray:
        return np.frombuffer(content, kind.dtype).reshape(shape, order=order)

    return {
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): _ArrayType,
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: Array(0),
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


def unpickle_arrays(content: bytes) -> Any:
    """Unpickle plain data and numpy arrays without ever running code from the file."""
    return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


_TEXT = "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8"
_BYTES = "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
_NUMBERS = "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT NONE NEWTRUE NEWFALSE"
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_CONTAINERS = _TUPLES | {"EMPTY_LIST", "LIST", "EMPTY_DICT", "DICT"}
_MEMO = "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
_OTHER = "PROTO FRAME STOP MARK EMPTY_TUPLE APPEND APPENDS SETITEM SETITEMS"
_OBJECTS = "GLOBAL STACK_GLOBAL REDUCE BUILD"
_ALLOWED = _CONTAINERS.union(
    *(names.split() for names in (_TEXT, _BYTES, _NUMBERS, _MEMO, _OTHER, _OBJECTS))
)
MAX_OPCODES = 3_000_000  # a second for a hundred thousand; an id takes one to three
MAX_TUPLES = 1000  # inside each other; Python crashes at some ten thousand


def check_pickle(content: bytes) -> None:
    """Refuse what a pickle of plain data and arrays does not need, before anything is built.

    No container may appear twice: with that a small file makes one that would take for ever to
    hash or to print. Raises `pickle.UnpicklingError`.
    """
    containers: set[int] = set()  # their numbers in the memo
    memoized = tuples = 0
    before = ""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        tuples += name in _TUPLES
        if name not in _ALLOWED or count > MAX_OPCODES or tuples > MAX_TUPLES:
            raise pickle.UnpicklingError("it holds more than plain data and arrays")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = memoized if name == "MEMOIZE" else int(argument)
            (containers.add if before in _CONTAINERS else containers.discard)(number)
            memoized += 1
        elif name in ("GET", "BINGET", "LONG_BINGET") and int(argument) in containers:
            raise pickle.UnpicklingError("it holds a list, mapping or tuple twice")
        before = name


def check_unpacked_size(content: bytes, largest: int) -> None:
    """Refuse a zip file, such as .npz, that holds more bytes than these. Raises `ValueError`."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(part.file_size for part in archive.infolist()) > largest:
            raise ValueError("it is too large when uncompressed")


def pickle_arrays(content: Any) -> bytes:
    """What `unpickle_arrays` reads."""
    return pickle.dumps(content)


def _read_scalar(kind: _ArrayType, content: bytes) -> Any:
    import numpy as np

    return np.frombuffer(content, kind.dtype)[0].item()


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
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
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
        for _ in range(4):  # magic number, version, machine, content; then tensors
            _check_expansion(file)
        return
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError("it is compressed")
            if record.filename.endswith(".pkl"):
                _check_expansion(io.BytesIO(archive.read(record)))


@contextmanager
def _bounded_memory(allowance: int) -> Iterator[None]:
    """Where allocating more bytes than these raises an error; only Linux has such a bound."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = int(statm.read_text().split()[0]) * resource.getpagesize() + allowance
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
        _bounded_memory(2**30 + 3 * len(content)),
    ):
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")

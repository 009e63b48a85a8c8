"""Writing files so that a failure or an interruption leaves nothing half-written, and the cache folder."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sparrow.kernels.errors import SparrowError


def cache_dir() -> Path:
    """Folder for what can be made again: ``$SPARROW_CACHE``, else ``sparrow`` in the user's cache folder."""
    if chosen := os.environ.get("SPARROW_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparrow"


def make_folder(path: Path) -> None:
    """Make a folder and its parents, those that are missing.

    Raises:
        SparrowError: It cannot be made.
    """
    with _explain_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; rename it to ``path`` if the block succeeds, remove it otherwise.

    Raises:
        SparrowError: The folder does not exist or cannot be written, or the disk is full.
    """
    with _explain_write_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """Give a new folder beside ``path`` to fill; put it in the place of ``path`` if the block succeeds.

    Of several processes that do so at the same time, the last decides what is there, whole.

    Args:
        path: Folder to make. Its parents are created.
        may_replace: Asked before an existing, non-empty folder is replaced.

    Raises:
        SparrowError: Something else is in the way, the place cannot be written, or the disk is full.
    """
    with _explain_write_errors(path):
        if _is_in_the_way(path, may_replace):
            raise SparrowError(
                f"{path} exists and Sparrow did not make it",
                expected="a new or empty folder, or an earlier result to replace",
                next_step="choose another output folder, or remove this one",
            )
        with _folder_beside(path) as temporary:
            yield temporary
            _take_place(temporary, path)


@contextmanager
def cached_folder(path: Path) -> Iterator[Path]:
    """Give a new folder beside ``path`` to fill; rename it to ``path`` if the block succeeds and nothing is there.

    For what is the same whoever makes it: where several processes do so at the same time, the first folder stays, since
    another process may use its files already.

    Args:
        path: Folder to make. Its parents are created.

    Raises:
        SparrowError: The place cannot be written, or the disk is full.
    """
    with _explain_write_errors(path), _folder_beside(path) as temporary:
        yield temporary
        try:
            temporary.replace(path)
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise


# What rename says of a folder with files at the target.
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)


def _is_in_the_way(path: Path, may_replace: Callable[[Path], bool]) -> bool:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        return not is_folder or (any(path.iterdir()) and not may_replace(path))
    except (FileNotFoundError, NotADirectoryError):
        return False  # nothing is there, or another process has just moved it away


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, path: Path) -> None:
    """Rename a folder to ``path``, whatever folder is there and whatever folder comes in between."""
    while True:
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
        try:
            with suppress(FileNotFoundError):
                path.replace(old)
            try:
                temporary.replace(path)
                return
            except OSError as error:
                if error.errno not in _OCCUPIED:
                    if any(old.iterdir()):
                        old.replace(path)
                    raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _explain_write_errors(path: Path) -> Iterator[None]:
    causes = {
        errno.ENOSPC: ("the disk is full", "free some space"),
        errno.EDQUOT: ("the disk quota is used up", "free some space"),
        errno.EFBIG: ("a file would be larger than is allowed", "raise the limit: ulimit -f unlimited"),
        errno.EROFS: ("the file system is read-only", "choose another output"),
        errno.EACCES: ("permission denied", "choose another output, or change the folder's permissions"),
        errno.EPERM: ("permission denied", "choose another output, or change the folder's permissions"),
        errno.ENOENT: ("the folder does not exist", f"mkdir -p '{path.parent}'"),
        errno.ENOTDIR: ("a part of the path is no folder", "choose another output"),
        errno.EEXIST: ("there is a file of this name", "choose another output"),
    }
    try:
        yield
    except OSError as error:
        unknown = (error.strerror or str(error), "choose another output")
        cause, next_step = causes.get(error.errno or 0, unknown)
        if path.is_relative_to(cache_dir()) and "space" not in next_step:
            next_step = "choose a cache folder that can be written: export SPARROW_CACHE=FOLDER"
        raise SparrowError(
            f"cannot write {path}: {cause}", expected="a folder with write access", next_step=next_step
        ) from error

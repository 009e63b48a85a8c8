"""Where the files of a data set are: given, remembered, downloaded, in a folder or in an archive."""

import hashlib
import json
import logging
import tarfile
import urllib.request
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from lzma import LZMAError
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_file, cache_dir

log = logging.getLogger(__name__)

# What the readers of tar, gzip and xz streams raise for bytes that are not what they should be.
CORRUPT_ERRORS = (tarfile.TarError, EOFError, LZMAError, zlib.error, OSError)


@dataclass(frozen=True)
class Download:
    """A public file.

    Attributes:
        url: Where its publisher offers it.
        md5: Checksum that its publisher states, hexadecimal.
    """

    url: str
    md5: str

    @property
    def file_name(self) -> str:
        """Last part of the URL."""
        return self.url.rsplit("/", 1)[-1]


def _locations_file() -> Path:
    return cache_dir() / "data-locations.json"


def _locations() -> dict[str, str]:
    try:
        found = json.loads(_locations_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remembered(name: str) -> Path | None:
    """The place from which a data set last loaded, if it is still there."""
    place = _locations().get(name)
    return Path(place) if isinstance(place, str) and Path(place).exists() else None


def remember(name: str, location: Path) -> None:
    """Keep the place of a data set for later commands; a cache that cannot be written is no error."""
    places = _locations()
    if places.get(name) == str(location.resolve()):
        return
    try:
        _locations_file().parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(_locations_file()) as temporary:
            text = json.dumps(places | {name: str(location.resolve())}, indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")
    except (OSError, SparrowError) as error:
        log.warning("the place of %s is not remembered: %s", name, error)


def download(name: str, downloads: Sequence[Download]) -> Path:
    """Fetch the files of a data set that are not in the cache folder yet, and check them.

    Args:
        name: Name of the data set.
        downloads: Its files; none if it is not public.

    Returns:
        The folder that holds them.

    Raises:
        SparrowError: There is nothing to download, no connection, or a file has another checksum.
    """
    if not downloads:
        raise SparrowError(
            f"no place is known for the data set {name!r}",
            expected="a folder with its images",
            next_step="give it with --data-dir",
        )
    folder = cache_dir() / "downloads" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SparrowError(
            f"cannot make the folder {folder}: {error.strerror}",
            expected="a cache folder with write access",
            next_step="set SPARROW_CACHE to another folder, or give the data with --data-dir",
        ) from error
    manual_step = (
        f"get {' and '.join(file.url for file in downloads)} on another machine, "
        f"put the files as they are into one folder, and give it with --data-dir"
    )
    for file in downloads:
        target = folder / file.file_name
        if target.exists():  # its checksum was right, or it would not have been renamed
            continue
        digest = hashlib.md5(usedforsecurity=False)
        with atomic_file(target) as temporary, temporary.open("wb") as output:
            for chunk in _stream(file, manual_step):
                digest.update(chunk)
                output.write(chunk)
            if digest.hexdigest() != file.md5:
                raise SparrowError(
                    f"{file.url} has the MD5 checksum {digest.hexdigest()}",
                    expected=file.md5,
                    next_step=f"try again; if it stays so, {manual_step}",
                )
    return folder


def _stream(file: Download, manual_step: str) -> Iterator[bytes]:
    console = Console(stderr=True)
    console.print(f"downloading {file.url}", soft_wrap=True, highlight=False)
    try:
        with (
            urllib.request.urlopen(file.url, timeout=30) as response,
            Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
        ):
            task = progress.add_task(file.file_name, total=int(response.headers["Content-Length"] or 0) or None)
            while chunk := response.read(1 << 20):
                progress.advance(task, len(chunk))
                yield chunk
    except (OSError, HTTPException) as error:
        raise SparrowError(
            f"cannot download {file.url}: {error}", expected="a connection to the internet", next_step=manual_step
        ) from error


def find_folder(location: Path, inner: str, wanted: Collection[str]) -> Path | None:
    """The folder that holds any wanted file: ``location`` itself, or its sub-folder ``inner``."""
    for folder in (location, location / inner):
        if any((folder / name).is_file() for name in wanted):
            return folder
    return None


def read_archive(archive: Path, wanted: Collection[str], largest: int) -> dict[str, bytes]:
    """Read some files of a tar archive into memory; nothing is unpacked to disk.

    Args:
        archive: A ``.tar``, ``.tar.gz`` or ``.tar.xz`` file.
        wanted: Names of the files, without folders.
        largest: Bytes above which a file cannot be the right one and is refused.

    Returns:
        The contents of those that were found.

    Raises:
        SparrowError: The archive is damaged, is none, or holds a file that is too large.
    """
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r|*") as stream:
            for member in stream:
                name = Path(member.name).name
                if name not in wanted or not member.isfile():
                    continue
                if member.size > largest:
                    raise SparrowError(
                        f"{name} in {archive} has {member.size:,} bytes",
                        expected=f"at most {largest:,}",
                        next_step="get the archive again",
                    )
                extracted = stream.extractfile(member)
                contents[name] = extracted.read() if extracted else b""
                if len(contents[name]) != member.size:
                    raise EOFError(f"{name} ends early")
    except CORRUPT_ERRORS as error:
        raise SparrowError(
            f"{archive} cannot be read: {error}",
            expected="a complete .tar, .tar.gz or .tar.xz archive",
            next_step="get the archive again",
        ) from error
    return contents

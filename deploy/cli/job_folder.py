"""Folders of long jobs: what a job was asked for is kept beside its results, and no other job goes on there."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_file
from sparrow.quantize.recipe_file import changed_keys


@dataclass(frozen=True)
class JobFiles:
    """Where a job keeps what every job makes."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The quantized, fine-tuned network."""
        return self.folder / "quantized.pt"

    @property
    def onnx(self) -> Path:
        """The network for the compiler."""
        return self.folder / "quantized.onnx"

    @property
    def bundle(self) -> Path:
        """The bundle."""
        return self.folder / "bundle"

    @property
    def verification(self) -> Path:
        """The bundle's outputs beside ONNX Runtime's."""
        return self.folder / "verification.json"


def open_job(record: Path, document: dict[str, Any], made: Iterable[Path], *, restart: bool) -> None:
    """Make the folder of a job, or see that what is in it is of the same job.

    Args:
        record: File in this folder that keeps what the job was asked for.
        document: What it is asked for now, as plain values; paths by their ``fingerprint``.
        made: Everything else that the job may have left there.
        restart: Whether that is thrown away.

    Raises:
        SparrowError: The folder holds results of another job; the message says what differs.
    """
    made = list(made)
    if restart:
        for path in (*made, record):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SparrowError(f"cannot make the folder {record.parent}: {error.strerror}",
                           next_step="choose another -o") from error  # fmt: skip
    if record.exists():
        earlier = yaml.safe_load(record.read_text(encoding="utf-8"))
        if changed := changed_keys(earlier if isinstance(earlier, dict) else {}, document):
            raise SparrowError(f"{record.parent} holds results of another job; {'; '.join(changed)}",
                               expected="what they were made with",
                               next_step="choose another -o, or add --restart to throw them away")  # fmt: skip
        return
    if in_the_way := [path.name for path in made if path.exists()]:
        raise SparrowError(f"{record.parent} has {in_the_way[0]} and no {record.name}", expected="a new folder",
                           next_step="choose another -o, or add --restart to replace it")  # fmt: skip
    with atomic_file(record) as temporary:
        temporary.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def fingerprint(checkpoint: Path | None) -> str | None:
    """Name a checkpoint by its content, so that it may be moved and may not be changed.

    Raises:
        SparrowError: It cannot be read.
    """
    if checkpoint is None:
        return None
    try:
        return f"{checkpoint.name} (SHA-256 {sha256(checkpoint.read_bytes()).hexdigest()[:16]})"
    except OSError as error:
        raise SparrowError(f"cannot read {checkpoint}: {error.strerror}", expected="a trained checkpoint",
                           next_step="check the path") from error  # fmt: skip

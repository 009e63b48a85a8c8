"""The bundle: what a network becomes, and how it is checked when it is read again.

    <name>.h        C interface, self-contained
    lib<name>.a     static library for every C library (glibc, musl, bionic)
    lib<name>.so    shared library for glibc 2.17 or newer
    sparrow_run     static executable for every arm64 Linux or Android kernel
    model.onnx      the network it was compiled from, the reference for verification
    manifest.json   schema, hashes, inputs, outputs, the kernel of each layer and why
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparrow.kernels.errors import SparrowError

MANIFEST = "manifest.json"
RUNNER = "sparrow_run"
MODEL = "model.onnx"
SCHEMA = "sparrow-bundle"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were found to be what its manifest says.

    Attributes:
        path: Its folder.
        manifest: The content of ``manifest.json``.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def runner(self) -> Path:
        """The static executable."""
        return self.path / RUNNER

    @property
    def model(self) -> Path:
        """The ONNX network that it was compiled from."""
        return self.path / MODEL


def is_bundle(path: Path) -> bool:
    """Tell whether a folder holds something that Sparrow wrote as a bundle."""
    try:
        return bool(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["schema"] == SCHEMA)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_bundle(path: Path) -> Bundle:
    """Open a bundle and check every file's hash.

    Args:
        path: Bundle folder.

    Raises:
        SparrowError: It is no bundle, is of another schema version, or a file is missing or was changed.
    """
    again = "compile it again with: sparrow compile model.onnx --target TARGET -o FOLDER"
    if not (path / MANIFEST).is_file():
        raise SparrowError(
            f"{path} holds no {MANIFEST}", expected="a bundle folder written by sparrow compile", next_step=again
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        schema, version, files = manifest["schema"], manifest["schema_version"], dict(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise SparrowError(f"{path / MANIFEST} is damaged: {error!r}", next_step=again) from error
    if (schema, version) != (SCHEMA, SCHEMA_VERSION):
        raise SparrowError(
            f"{path} is {schema} version {version}", expected=f"{SCHEMA} version {SCHEMA_VERSION}", next_step=again
        )
    for name, expected in files.items():
        file = path / Path(name).name
        if not file.is_file():
            raise SparrowError(f"{file} is missing", expected="every file of the manifest", next_step=again)
        found = file_sha256(file)
        if found != expected["sha256"]:
            raise SparrowError(
                f"{file} was changed: SHA-256 {found}", expected=f"SHA-256 {expected['sha256']}", next_step=again
            )
    return Bundle(path, manifest)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write ``manifest.json`` for the files in a folder, their hashes and sizes included."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in sorted(folder.iterdir())
    }
    manifest = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **content, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

"""The bundle: what a network becomes, and how it is checked when it is read again.

    <name>.h        C interface, self-contained
    lib<name>.a     static library for every C library (glibc, musl, bionic)
    lib<name>.so    shared library for glibc 2.17 or newer; for Android's C library where an NDK linked it
    sparrow_run     static executable for every arm64 Linux or Android kernel
    model.onnx      the network it was compiled from, the reference for verification
    manifest.json   schema, hashes, inputs, outputs, the kernel of each layer and why
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparrow.kernels.errors import SparrowError

MANIFEST = "manifest.json"
RUNNER = "sparrow_run"
MODEL = "model.onnx"
SCHEMA = "sparrow-bundle"
SCHEMA_VERSION = 1

# What readers of a manifest rely on: a list stands for any number of such entries, a dict for at least its keys.
_TENSOR = {"name": str, "dtype": str, "shape": [int]}
_FORM = {
    "name": str,
    "target": str,
    "inputs": [_TENSOR],
    "outputs": [_TENSOR],
    "metadata": {},
    "weights_bytes": int,
    "arena_bytes": int,
    "layers": [{
        "name": str, "input_shape": [int], "output_shape": [int], "weight_format": str, "distinct_values": int,
        "zero_share": float, "parameters": int, "packed_bytes": int, "multiply_accumulates": int, "activations": str,
        "output": str, "kernel": str, "reason": str,
    }],
    "steps": [str],
    "files": {RUNNER: {"bytes": int, "sha256": str}},
}  # fmt: skip


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
        schema, version = manifest["schema"], manifest["schema_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SparrowError(f"{path / MANIFEST} is damaged: {error!r}", next_step=again) from error
    if (schema, version) != (SCHEMA, SCHEMA_VERSION):
        raise SparrowError(
            f"{path} is {schema} version {version}", expected=f"{SCHEMA} version {SCHEMA_VERSION}", next_step=again
        )
    if misfit := _misfit(manifest, _FORM, "manifest"):
        raise SparrowError(f"{path / MANIFEST} is damaged: {misfit}", next_step=again)
    if not all(isinstance(value, str) for value in manifest["metadata"].values()):
        raise SparrowError(f"{path / MANIFEST} is damaged: its metadata are no texts", next_step=again)
    # It becomes a part of paths, on devices too.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", manifest["name"]):
        raise SparrowError(f"{path / MANIFEST} names the network {manifest['name'][:100]!r}",
                           expected="a C identifier", next_step=again)  # fmt: skip
    for name, expected in manifest["files"].items():
        file = path / name
        if Path(name).name != name or not isinstance(expected, dict):
            raise SparrowError(f"{path / MANIFEST} lists the file {name[:100]!r}",
                               expected="files beside it, with their hashes", next_step=again)  # fmt: skip
        if not file.is_file():
            raise SparrowError(f"{file} is missing", expected="every file of the manifest", next_step=again)
        found = file_sha256(file)
        if found != expected.get("sha256"):
            raise SparrowError(
                f"{file} was changed: SHA-256 {found}", expected=f"SHA-256 {expected.get('sha256')}", next_step=again
            )
    return Bundle(path, manifest)


def _misfit(value: Any, form: Any, place: str) -> str | None:
    """Say where a JSON value is not of a form, the first such place; None if it is."""
    if isinstance(form, type):
        kinds = (int, float) if form is float else form
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        return None if fits else f"{place} is {type(value).__name__}, not {form.__name__}"
    if not isinstance(value, type(form)):
        return f"{place} is {type(value).__name__}, not {type(form).__name__}"
    if isinstance(form, list):
        entries = [(entry, form[0], f"{place}[{index}]") for index, entry in enumerate(value)]
    else:
        if missing := form.keys() - value.keys():
            return f"{place} lacks {', '.join(sorted(missing))}"
        entries = [(value[key], part, f"{place}.{key}") for key, part in form.items()]
    return next(filter(None, (_misfit(*entry) for entry in entries)), None)


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

"""A thousand changed manifests: a bundle opens and can be described and counted on, or is refused with a message."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from sparrow.deploy.bundle import MANIFEST, RUNNER, load_bundle, write_manifest
from sparrow.deploy.inspection import inspect_bundle, print_inspection
from sparrow.kernels.errors import SparrowError

VALUES: tuple[Any, ...] = (None, True, 0, -1, 1 << 70, 1e400, "", "../../etc/passwd", "a b\n", "[/x]", [], [[]], {},
                           {"a": []})  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / RUNNER).write_bytes(b"\x7fELF")
    tensor = {"name": "x", "dtype": "float32", "shape": [1, 4]}
    layer = {"name": "conv", "input_shape": [1, 4, 8, 8], "output_shape": [1, 8, 8, 8], "window": [3, 3],
             "stride": [1, 1], "groups": 1, "weight_format": "cb4t", "distinct_values": 16, "zero_share": 0.5,
             "parameters": 288, "packed_bytes": 512, "multiply_accumulates": 18432, "activations": "int8",
             "output": "int8", "residual": False, "kernel": "spw_conv", "reason": "why not"}  # fmt: skip
    write_manifest(folder, {"name": "net", "target": "cortex-a76", "inputs": [tensor], "outputs": [tensor],
                            "metadata": {}, "weights_bytes": 512, "arena_bytes": 64, "layers": [layer],
                            "steps": ["conv"]})  # fmt: skip
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def changed(document: Any, source: random.Random) -> str:
    """The text of a document with a value replaced, removed or renamed, or with bytes changed."""
    document = copy.deepcopy(document)
    *path, last = source.choice(places(document)[1:])
    owner = document
    for key in path:
        owner = owner[key]
    kind = source.randrange(4)
    if kind < 2:
        owner[last] = source.choice(VALUES)
    elif kind == 2:
        del owner[last]
    text = json.dumps(document)
    if kind == 3:
        at = source.randrange(len(text))
        text = text[:at] + source.choice(["", "{", "\0", "\ud800", "9" * 5000, "[" * 100000]) + text[at + 1 :]
    return text


def test_changed_manifests_are_bundles_or_refused(bundle: Path) -> None:
    source, document, opened = random.Random(1), json.loads((bundle / MANIFEST).read_text()), 0
    assert load_bundle(bundle).manifest == document
    for _ in range(1000):
        text = changed(document, source)
        (bundle / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            manifest = load_bundle(bundle).manifest
            print_inspection(inspect_bundle(bundle))
        except SparrowError as error:
            assert error.got, text
        else:
            opened += 1
            assert "/" not in manifest["name"]
    assert 100 < opened < 900


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", ".", "a b", "é"])
def test_a_name_that_would_lead_elsewhere_is_refused(bundle: Path, name: str) -> None:
    document = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**document, "name": name}))
    with pytest.raises(SparrowError, match="names the network"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b"])
def test_files_outside_the_folder_are_refused(bundle: Path, name: str) -> None:
    document = json.loads((bundle / MANIFEST).read_text())
    document["files"][name] = document["files"][RUNNER]
    (bundle / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(SparrowError, match="lists the file"):
        load_bundle(bundle)

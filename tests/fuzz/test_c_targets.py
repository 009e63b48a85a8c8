"""The parsers in C on changed inputs: a thousand each, of one seed, under AddressSanitizer and UBSan."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from . import make_corpus
from .targets import build

COPIES = 1000
# Target -> seeds that run to the end, at least: where all are refused, the first check alone would be tested.
ACCEPTED = {"fuzz_program": 20, "fuzz_runner": 2}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc for this machine")
    return build(tmp_path_factory.mktemp("fuzz"), compiler)


@pytest.mark.parametrize("target", ACCEPTED)
def test_changed_inputs_do_no_harm(target: str, programs: dict[str, Path], tmp_path: Path) -> None:
    make_corpus.main(tmp_path)
    seeds = sorted((tmp_path / target).iterdir())
    untouched, changed = (
        subprocess.run([programs[target], str(copies), "1", *seeds], capture_output=True, errors="replace", timeout=600,
                       cwd=tmp_path, check=False)
        for copies in (0, COPIES)
    )  # fmt: skip
    assert changed.returncode == 0, changed.stderr[-4000:]
    *_, accepted = re.findall(r"(\d+) inputs, (\d+) accepted", untouched.stdout)[-1]
    assert int(accepted) >= ACCEPTED[target]
    inputs, accepted = re.findall(r"(\d+) inputs, (\d+) accepted", changed.stdout)[-1]
    assert int(inputs) == len(seeds) + COPIES
    assert ACCEPTED[target] < int(accepted) < int(inputs)

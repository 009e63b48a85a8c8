"""A thousand changed ONNX files: each is a network or is refused with a message, nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("fuzz_onnx.py")
COUNT = 1000


def test_changed_files_are_networks_or_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(WORKER), "1", "0", str(COUNT), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    if result.returncode:
        pytest.fail(f"the process ended with {result.returncode} at {lines[-1:]}\n{result.stderr[-3000:]}")
    became = {number: what for number, *what in lines if what}
    assert sorted(became) == list(range(COUNT))
    faults = {number: what for number, what in became.items() if what[0] not in ("network", "refused")}
    assert not faults, json.dumps(faults, indent=1)[:4000]
    # Changes that are all refused by the checker would test nothing but the checker.
    assert sum(what[0] == "network" for what in became.values()) > COUNT / 20

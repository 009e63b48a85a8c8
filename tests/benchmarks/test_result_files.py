"""Results come back from their JSON as they were, and anything else is refused with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from sparrow.benchmarks.predict.predict import Prediction, load_core
from sparrow.benchmarks.result_files import (
    RESULTS,
    BenchResult,
    Environment,
    MemoryResult,
    OperatorResult,
    ProgramResult,
    ThreadsResult,
    VerifyResult,
    read_environment,
    read_result,
    write_result,
)
from sparrow.benchmarks.runners.qemu import Cache
from sparrow.kernels.errors import SparrowError

ENVIRONMENT = Environment("1.0", "abc", "7.2", "cortex-a53", "cortex-a53")
OPERATORS = (
    OperatorResult("conv", "conv_dotprod", 2.5, (1.5, 1.0), MemoryResult(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),
    OperatorResult("mean", "", 1.0, (1.0,)),
)
THREADS = ThreadsResult(2, 3, 4.5, 4, 5, (2.5, 2.0), OPERATORS, MemoryResult(1.0, 2.0, 3.0, 4.0), 4096)
BENCH = BenchResult(
    "net", 1, (THREADS,), {"a": 1}, 2, 3, ENVIRONMENT,
    (Prediction(load_core("cortex-a53"), 1.0, 2.0, 3.0, 4.0, 5.0, 0.99),), (Cache(4096, 4, 64), Cache(8192, 4, 64)),
)  # fmt: skip
VERIFICATION = VerifyResult("net", 1, 1.0, 1.0, 0.0, 0.0, 0.0, None, 0.5, True, "bound", True, ENVIRONMENT)
PROGRAM = ProgramResult("prog", (3, 1), (2,), ENVIRONMENT)


@pytest.mark.parametrize("result", [BENCH, VERIFICATION, PROGRAM], ids=lambda result: result.schema)
def test_result_comes_back_from_its_document(result: Any, tmp_path: Path) -> None:
    write_result(result, tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == result


def test_every_schema_names_a_class_that_says_so() -> None:
    import importlib

    for schema, path in RESULTS.items():
        module, _, name = path.partition(":")
        fields = getattr(importlib.import_module(module), name).__dataclass_fields__
        assert fields["schema"].default == schema and fields["schema_version"].default >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "sparrow-benchmrk"}, "has the schema 'sparrow-benchmrk'"),
        ({"schema": None}, "has the schema 'None'"),
        ({"schema": ["sparrow-benchmark"]}, "has the schema"),
        ({"schema_version": 1}, "has version 1 of sparrow-benchmark"),
        ({"inferences": 7}, "is not a whole sparrow-benchmark"),
        ({"bundle": None, "environment": {}}, "is not a whole sparrow-benchmark"),
    ],
)
def test_other_documents_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(BENCH, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SparrowError, match=message):
        read_result(path)


@pytest.mark.parametrize("content", ["", "[]", "{", "3", "\x00", '{"schema": "sparrow-benchmark"}'])
def test_rubbish_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(SparrowError):
        read_result(tmp_path / "result.json")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SparrowError, match="cannot be read"):
        read_result(tmp_path / "none.json")


def test_environment_without_an_emulator_names_none() -> None:
    environment = read_environment()
    assert (
        environment.sparrow_version and (environment.qemu_version, environment.cpu, environment.cpu_model) == ("",) * 3
    )

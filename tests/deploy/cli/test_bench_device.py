"""What ``sparrow bench`` makes of devices: all are tried, one that fails spoils nothing, and INVALID is not success."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sparrow.benchmarks import measure
from sparrow.benchmarks.measure import Measurement, Milliseconds, StepMilliseconds
from sparrow.benchmarks.result_files import Environment, VerifyResult, read_result
from sparrow.benchmarks.runners import adb
from sparrow.benchmarks.runners.device import DeviceCore, DeviceDescription, Readings
from sparrow.deploy.cli.bench import command
from sparrow.kernels.errors import SparrowError


def describe(name: str) -> DeviceDescription:
    fields: dict[str, Any] = {field: "" for field in DeviceDescription.__dataclass_fields__}
    fields |= {"name": name, "model": "Pretend 5", "cores": (DeviceCore(4, "0xd0b", 2_400_000, 1024),), "features": ()}
    return DeviceDescription(**fields)


ENVIRONMENT = Environment("1", "2", "", "", "")
OUTPUTS = VerifyResult("net", 1, 1.0, 1.0, 0.0, 0.0, 0.0, None, None, True, "bound", True, ENVIRONMENT)
READINGS = Readings(**{name: {} if name == "celsius" else () for name in Readings.__dataclass_fields__})
VALID = Measurement(
    "net", describe("one"), 1, "big", (4,), 5, 0.0, Milliseconds(20, 1.0, 2.0, 1.5, 3.0, 4.0, 0.1),
    (StepMilliseconds("conv", 0.9, 0.8),), READINGS, READINGS, OUTPUTS, (), ENVIRONMENT,
)  # fmt: skip
NOISY = replace(VALID, device=describe("two"), invalid=("too noisy",))
GONE = SparrowError("device three went away")


class PretendDevice:
    """Remembers that it was cleaned up."""

    removed = 0

    def remove(self) -> None:
        PretendDevice.removed += 1


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    def invoke(
        found: list[Measurement | SparrowError], *arguments: str, **settings: Any
    ) -> tuple[Result, dict[str, Any]]:
        seen: dict[str, Any] = {}

        def fake(bundle: Path, devices: Any, **options: Any) -> tuple[Measurement | SparrowError, ...]:
            seen.update(options, devices=devices)
            return tuple(found)

        monkeypatch.setattr(measure, "measure_all", fake)
        monkeypatch.setattr(adb, "open_adb", lambda serial=None: PretendDevice())
        monkeypatch.setattr(adb, "open_all_adb", lambda: (PretendDevice(), PretendDevice()))
        return CliRunner().invoke(command, ["net", "--runner", "adb", *arguments], **settings), seen

    return invoke


def test_times_come_with_their_verdict(bench: Any) -> None:
    result, seen = bench([VALID], "--profile")
    assert result.exit_code == 0, result.output
    assert "one (Pretend 5), 1 thread on cores 4: VALID" in result.output
    assert (
        "p50 1.500 ms" in result.output and "20 runs, measured" in result.output and "0.900 ms  conv" in result.output
    )
    assert seen["profile"] and "repeat" not in seen and "warmup" not in seen


def test_runs_asked_for_are_passed_on(bench: Any) -> None:
    assert bench([VALID], "--repeat", "50", "--warmup", "2", "--affinity", "0,1")[1].items() >= {
        "repeat": 50, "warmup": 2, "affinity": "0,1"}.items()  # fmt: skip


def test_runs_that_the_project_file_asks_for_are_passed_on_too(bench: Any) -> None:
    _, seen = bench([VALID], "--warmup", "2", default_map={"repeat": 50, "warmup": 7})
    assert (seen["repeat"], seen["warmup"]) == (50, 2)


def test_invalid_measurement_is_printed_and_exits_with_3(bench: Any) -> None:
    result, _ = bench([NOISY])
    assert "INVALID: too noisy" in result.output
    assert isinstance(result.exception, SparrowError) and result.exception.exit_code == 3


def test_one_phone_that_fails_does_not_hide_the_others(bench: Any, tmp_path: Path) -> None:
    result, seen = bench([VALID, GONE], "--device", "all", "-o", str(tmp_path / "one.json"))
    assert len(seen["devices"]) == 2
    assert "p50 1.500 ms" in result.output and result.exception is GONE
    assert read_result(tmp_path / "one.json") == VALID


def test_several_measurements_go_to_a_folder_and_one_document(bench: Any, tmp_path: Path) -> None:
    result, _ = bench([VALID, VALID], "--json", "-o", str(tmp_path / "results"))
    assert [row["times"]["p50"] for row in json.loads(result.stdout)] == [1.5, 1.5]
    assert len(list((tmp_path / "results").iterdir())) == 2


def test_device_is_cleaned_up_only_when_asked(bench: Any) -> None:
    before = PretendDevice.removed
    bench([VALID])
    assert PretendDevice.removed == before
    bench([VALID], "--clean-up")
    assert PretendDevice.removed == before + 1

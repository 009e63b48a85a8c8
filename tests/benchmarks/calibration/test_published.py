"""Published measurements: what is read of a file, and what bad files get."""

import json
from pathlib import Path
from typing import Any

import pytest

from sparrow.benchmarks.calibration.published import BOARDS, read_published
from sparrow.benchmarks.predict.soc import soc_names
from sparrow.kernels.errors import SparrowError


def write(path: Path, devices: Any) -> Path:
    path.write_text(json.dumps({"source": "here", "devices": devices}), encoding="utf-8")
    return path


def setting(threads: int, powersave: int, **milliseconds: tuple[float, float]) -> dict[str, Any]:
    times = {name: {"min": least, "max": 2 * mean, "avg": mean} for name, (least, mean) in milliseconds.items()}
    return {"loop_count": 8, "num_threads": threads, "powersave": powersave, "gpu_device": -1, "ms": times}


def test_measurements_are_told_apart_by_board_cores_and_threads(tmp_path: Path) -> None:
    devices = {
        "Rockchip RK3399 (Cortex-A72 1.8GHz x 2 + Cortex-A53 1.5GHz x 4)": [
            setting(2, 2, alexnet=(40, 50)), setting(4, 1, alexnet=(70, 80))],
        "Raspberry Pi 4 Model B": [setting(1, 0, alexnet=(90, 91), vgg16=(900, 910))],
        "Some board of tomorrow": [setting(1, 0, alexnet=(1, 1))],
    }  # fmt: skip
    published = read_published(write(tmp_path / "published.json", devices))
    assert published.source == "here"
    assert published.unknown_devices == ("Some board of tomorrow",)
    assert [(one.soc, one.affinity, one.threads, one.network, one.core) for one in published.measurements] == [
        ("rk3399", "big", 2, "alexnet", "cortex-a72"), ("rk3399", "little", 4, "alexnet", "cortex-a53"),
        ("raspberry-pi-4", "all", 1, "alexnet", "cortex-a72"), ("raspberry-pi-4", "all", 1, "vgg16", "cortex-a72"),
    ]  # fmt: skip
    assert (published.measurements[0].milliseconds, published.measurements[0].fastest_milliseconds) == (50, 40)


def test_every_board_has_a_soc() -> None:
    assert set(BOARDS.values()) <= set(soc_names())


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ({"Raspberry Pi 4": [{"num_threads": 1}]}, "no published measurements"),
        ({"Raspberry Pi 4": [setting(1, 7, alexnet=(1, 1))]}, "no published measurements"),
        ({"Raspberry Pi 4": "fast"}, "no published measurements"),
        ([], "no published measurements"),
        ({}, "no board that is known"),
        ({"Some board of tomorrow": []}, "Some board of tomorrow"),
        ({"Raspberry Pi 4": [setting(1, 0, alexnet=(0, 1))]}, "took 0 ms"),
        ({"Raspberry Pi 4": [setting(1, 0, alexnet=(2, 1))]}, "2 ms at least and 1 ms on average"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, devices: Any, message: str) -> None:
    with pytest.raises(SparrowError, match=message):
        read_published(write(tmp_path / "published.json", devices))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SparrowError, match=r"nowhere.json: No such file"):
        read_published(tmp_path / "nowhere.json")

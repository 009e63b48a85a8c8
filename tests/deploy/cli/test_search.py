"""``sparrow search``: its arguments, and a search over costs that are given."""

import dataclasses
from pathlib import Path

import pytest
import torch
from click import BadParameter
from click.testing import CliRunner

from sparrow.benchmarks.searching import LayerCosts
from sparrow.deploy.cli import search_job
from sparrow.deploy.cli.search import _parse_budget, _parse_choices, command
from sparrow.deploy.cli.search_job import Budget, SearchFiles, SearchOptions, run_search
from sparrow.kernels.errors import SparrowError
from sparrow.models import build_model
from sparrow.quantize.data import load_data
from sparrow.quantize.search import Setting
from sparrow.quantize.search.settings import BITS

torch.set_num_threads(1)

SETTINGS = (Setting(8, 0.0), Setting(4, 0.0), Setting(2, 0.0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latency=8ms@kirin970", ("latency", 8.0, "kirin-970")),
        ("latency=0.5ms@snapdragon-888", ("latency", 0.5, "snapdragon-888")),
        ("bytes=100kB", ("bytes", 100_000.0, "")),
        ("bytes=2MiB", ("bytes", 2097152.0, "")),
        ("bytes=512", ("bytes", 512.0, "")),
    ],
)
def test_budgets(text, expected):
    assert _parse_budget(text) == expected


@pytest.mark.parametrize(
    "text", ["latency=8ms", "latency=8@kirin-970", "latency=0ms@kirin-970", "bytes=1kB@kirin-970", "bytes=1parsec",
             "energy=1J", "8ms", "latency=1.2.3ms@kirin-970"],
)  # fmt: skip
def test_budgets_that_say_nothing(text):
    with pytest.raises(BadParameter, match="expected latency=8ms@kirin-970 or bytes=100kB"):
        _parse_budget(text)


def test_unknown_soc():
    with pytest.raises(SparrowError, match="unknown SoC 'kirin-790'") as caught:
        _parse_budget("latency=8ms@kirin-790")
    assert "kirin-970" in caught.value.expected


@pytest.mark.parametrize("text", ["", "4,4", "5", "3", "four"])
def test_bits_that_are_none(text):
    with pytest.raises(BadParameter, match="different numbers of 8, 4, 2"):
        _parse_choices(text, "--bits", BITS)


@pytest.mark.parametrize("option", [["--teacher", "resnet20", "t.pt"], ["--learning-rate", "0.1"]])
def test_options_of_a_training_that_is_none(option):
    arguments = ["--model", "digits", "--checkpoint", "x.pt", "--data", "digits", "--budget", "bytes=12kB", "-o", "x"]
    result = CliRunner().invoke(command, [*arguments, "--epochs", "0", *option])
    assert result.exit_code == 2 and f"{option[0]} would be ignored" in result.output


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Arguments of a search on few images, with costs in place of compiled bundles, and what was asked of them."""
    data = load_data("digits")
    data = dataclasses.replace(data, train_images=data.train_images[:64], train_labels=data.train_labels[:64],
                               test_images=data.test_images[:40], test_labels=data.test_labels[:40])  # fmt: skip
    torch.manual_seed(0)
    torch.save({"state_dict": build_model("digits").state_dict()}, tmp_path / "float.pt")
    asked: list[Setting] = []

    def costs(files, candidate, names, setting, *_):
        asked.append(setting)
        times = {name: 0.1 * setting.bits for name in names} | {"conv1": 0.5, "linear": 0.25}
        return LayerCosts({name: 100 * setting.bits for name in times}, 10, times, 0.25)

    monkeypatch.setattr(search_job, "_costs", costs)
    monkeypatch.setattr(search_job, "_deploy", lambda *_: LayerCosts({"conv1": 900}, 100, {"conv1": 1.5}, 0.5))

    def search(budget: Budget, folder: str = "out", **options):
        return run_search("digits", tmp_path / "float.pt", data, budget,
                          SearchOptions(SETTINGS, images=32, trial_images=40, trial_points=3), None, tmp_path / folder,
                          **options)  # fmt: skip

    return search, asked, tmp_path


def test_the_chosen_point_keeps_the_budget_and_every_point_is_kept(job):
    search, asked, _ = job
    budget = Budget("latency=2ms@kirin-970", "latency", 2.0, "kirin-970")
    result = search(budget)
    # Three searched layers, 1 ms for the rest: 8 bits everywhere would take 3.4 ms.
    assert len(result.points) == 7 and result.points[0].milliseconds == pytest.approx(3.4)
    chosen = result.points[result.chosen]
    assert chosen.milliseconds <= 2.0 < result.points[result.chosen - 1].milliseconds
    assert chosen.top1 is not None and sum(point.top1 is not None for point in result.points) in (3, 4)
    assert set(chosen.layers) == {"conv2", "conv3", "conv4"}
    assert result.final_milliseconds == 2.0 and result.final_bytes == 1000 and result.fine_tuning_epochs == 0
    assert [point.weights_bytes for point in result.points] == sorted(
        (point.weights_bytes for point in result.points), reverse=True
    )
    calls = len(asked)
    assert search(budget) == result and len(asked) == calls  # read back, not searched again
    with pytest.raises(SparrowError, match=r"budget\.limit: 2\.0, now 1\.9"):
        search(dataclasses.replace(budget, limit=1.9))


def test_an_interrupted_search_goes_on(job, monkeypatch):
    search, _, folder = job
    budget = Budget("bytes=5kB", "bytes", 5000.0, "")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(search_job, "quantize_network", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        search(budget)
    kept = SearchFiles(folder / "out").sensitivity.stat().st_mtime_ns
    stages: list[str] = []
    result = search(budget, on_stage=stages.append)
    assert SearchFiles(folder / "out").sensitivity.stat().st_mtime_ns == kept
    assert not any(stage.startswith("sensitivity") for stage in stages)
    assert result.points[result.chosen].weights_bytes <= 5000


def test_a_budget_that_nothing_meets(job):
    with pytest.raises(SparrowError, match=r"the cheapest choice costs 1\.6") as caught:
        job[0](Budget("latency=1ms@kirin-970", "latency", 1.0, "kirin-970"))
    assert "1.6 ms" in caught.value.expected

"""Predictions meet the measurements of the same network, cores and number of threads, and no others."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sparrow.benchmarks.predict.soc import load_soc
from sparrow.benchmarks.reports.charts import HEIGHT
from sparrow.benchmarks.reports.comparison import Compared, compared_curves, comparison_section
from sparrow.benchmarks.reports.documents import Document
from sparrow.benchmarks.reports.latency import Curve, is_soc, latency_curves, latency_section

from . import samples


def predicted(path: str = "a/predicted.json", **changes: object) -> Curve:
    document = Document(Path(path), samples.prediction(**changes), "resnet-dense")  # type: ignore[arg-type]
    (curve,) = latency_curves([document])
    return curve


def measured(path: str = "a/measured.json", network: str = "resnet-dense") -> Curve:
    document = Document(Path(path), samples.benchmark(network), network)
    return Curve(document, "snapdragon-888", "big", False, {1: 7.0, 4: 2.0, 8: 1.5}, {})


def test_same_network_cores_and_threads_are_compared() -> None:
    times = predicted().milliseconds
    found = compared_curves([predicted(), measured()])
    assert [(one.threads, one.predicted, one.measured) for one in found] == [(1, times[1], 7.0), (4, times[4], 2.0)]
    assert found[0].error == pytest.approx(times[1] / 7 - 1)


@pytest.mark.parametrize("other", [{"network": "other"}, {"soc": "rk3588"}, {"affinity": "little"}])
def test_others_are_not_compared(other: dict[str, str]) -> None:
    assert compared_curves([predicted(**other), measured()]) == []


def test_networks_of_one_name_meet_in_their_folder() -> None:
    found = compared_curves([predicted("a/p.json"), predicted("b/p.json", scale=2), measured("b/m.json")])
    assert [one.predicted for one in found] == [predicted(scale=2).milliseconds[threads] for threads in (1, 4)]


def test_errors_are_counted_and_drawn() -> None:
    points = [
        Compared("a", "board", 1, 10.0, 10.0, "held out"),
        Compared("b", "board", 1, 11.9, 10.0, "held out"),
        Compared("c", "<board>", 1, 20.0, 10.0, "held out"),
        Compared("d", "board", 4, 0.0, 10.0, "held out"),
    ]
    page = comparison_section(points) or ""
    assert "2 of 3 within 20%." in page and "4 threads" not in page  # nothing takes no time
    assert "&lt;board&gt;" in page and "<board>" not in page
    assert '<td class="number">+19.0%</td>' in page and '<td class="number">+100.0%</td>' in page
    equal = re.search(r'<polyline points="0\.00,([\d.]+) 1000\.00,([\d.]+)" class="guide line">', page)
    assert equal is not None and (float(equal[1]), float(equal[2])) == (HEIGHT, 0)
    assert comparison_section([replace(points[0], measured=0.0)]) is None


def test_predicted_and_measured_share_a_chart_and_a_color() -> None:
    page = latency_section([predicted(), measured()]) or ""
    assert page.count("<figcaption>") == 1
    assert 'class="join series-0 predicted"' in page and 'class="join series-0"' in page
    assert "resnet-dense, big cores, measured" in page and "measured on the device" in page


@pytest.mark.parametrize(
    ("soc", "model", "chip"),
    [
        ("snapdragon-888", "Some Phone", "SM8350"),
        ("snapdragon-855", "Some Phone", "SM8150"),
        ("raspberry-pi-4", "Raspberry Pi 4 Model B Rev 1.4", "brcm,bcm2711"),
        ("raspberry-pi-3", "", "brcm,bcm2837"),
        ("kirin-970", "HUAWEI something", "kirin970"),
        ("rk3588", "Radxa ROCK 5B", "rockchip,rk3588"),
    ],
)
def test_devices_are_known_by_name_and_frequencies(soc: str, model: str, chip: str) -> None:
    device = samples.device(soc, model, chip)
    assert is_soc(device, load_soc(soc))
    assert not is_soc(replace(device, soc="other", model="other"), load_soc(soc))
    slower = tuple(replace(core, max_khz=round(0.95 * (core.max_khz or 0))) for core in device.cores)
    assert not is_soc(replace(device, cores=slower), load_soc(soc))
    assert is_soc(replace(device, cores=tuple(replace(core, max_khz=None) for core in device.cores)), load_soc(soc))


def test_chips_of_one_name_are_told_apart_by_their_frequency() -> None:
    plus = samples.device("snapdragon-855-plus", "Some Phone", "SM8150")
    assert is_soc(plus, load_soc("snapdragon-855-plus")) and not is_soc(plus, load_soc("snapdragon-855"))

"""Charts: marks where the data are, all of them inside, nothing lost."""

import re

import pytest

from sparrow.benchmarks.reports import charts
from sparrow.benchmarks.reports.charts import Axis, Guide, Point, Series, StackedBar


@pytest.mark.parametrize("values", [[5.6, 1.85], [0.003], [0.0], [1e6, 3.0], [9.999], [10.0], [1e-9, 2e-9]])
def test_axis_from_zero_holds_all_values(values: list[float]) -> None:
    axis = charts.linear_axis("ms", values)
    assert axis.low == 0 and axis.high >= max(values)
    assert 2 <= len(axis.ticks) <= 7
    assert len({text for _, text in axis.ticks}) == len(axis.ticks)
    assert axis.ticks[-1][0] == axis.high


@pytest.mark.parametrize("values", [[92.15, 91.78], [92.15], [100.0, 99.99], [100.0], [0.0], [0.1, 97.0]])
def test_axis_of_percentages_stays_within_its_limit(values: list[float]) -> None:
    axis = charts.linear_axis("top-1, %", values, from_zero=False, limit=100)
    assert axis.low <= min(values) and max(values) <= axis.high <= 100
    assert 2 <= len(axis.ticks) <= 7
    assert len({text for _, text in axis.ticks}) == len(axis.ticks)


@pytest.mark.parametrize("values", [[3.0], [1.0, 2.0], [0.4, 600.0], [1e-5, 1e7], [1.0, 1e12]])
def test_logarithmic_axis_holds_all_values_and_few_ticks(values: list[float]) -> None:
    axis = charts.log_axis("ms", values)
    assert axis.low < min(values) and max(values) < axis.high
    assert 1 <= len(axis.ticks) <= 6
    assert all(0 <= axis.share(tick) <= 1 for tick, _ in axis.ticks)


def test_equal_ratios_are_equal_distances_on_a_logarithmic_axis() -> None:
    axis = Axis("", 1, 1000, (), logarithmic=True)
    assert [axis.share(value) for value in (1, 10, 100, 1000)] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_marks_are_where_the_data_are() -> None:
    series = Series("net", (Point(0, 2.5, "a"), Point(5, 10, "b")), predicted=False, joined=True, look=0)
    chart = charts.xy_chart("title", Axis("x", 0, 10, ()), Axis("y", 0, 10, ()), [series])
    marks = re.findall(r'<svg x="([\d.]+)%" y="([\d.]+)" class="at">', chart)
    assert marks == [("0.00", f"{0.75 * charts.HEIGHT:.1f}"), ("50.00", "0.0")]
    assert f'points="0.00,{0.75 * charts.HEIGHT:.2f} 500.00,0.00"' in chart


def test_predicted_and_measured_differ_in_mark_and_line() -> None:
    points = (Point(0, 1, ""),)
    chart = charts.legend([Series("p", points, True, True, 0), Series("m", points, False, True, 0)])
    assert chart.count('class="join series-0 predicted"') == chart.count('class="join series-0"') == 1
    assert chart.count('class="mark series-0 predicted"') == chart.count('class="mark series-0"') == 1


def test_many_series_repeat_no_look() -> None:
    looks = [Series(str(number), (), False, False, number) for number in range(30)]
    entries = re.findall(r'd="([^"]+)" class="mark (series-\d)"', charts.legend(looks))
    assert len(set(entries)) == 30


def test_guides_are_drawn_and_named() -> None:
    guides = [Guide("band", ((0, 0), (1, 1), (1, 0)), "area"), Guide("limit", ((0, 1), (1, 1)), "dashes")]
    chart = charts.xy_chart("t", Axis("x", 0, 1, ()), Axis("y", 0, 1, ()), [], guides)
    assert '<polygon points="0.00,260.00 1000.00,0.00 1000.00,260.00" class="guide area">' in chart
    assert '<polyline points="0.00,0.00 1000.00,0.00" class="guide dashes">' in chart
    assert "band" in chart and "limit" in chart


def bars() -> list[StackedBar]:
    dense = tuple((f"conv{index}", float(index)) for index in range(1, 10))
    sparse = tuple((name, length / 3) for name, length in dense)
    return [StackedBar("dense", "45", dense), StackedBar("sparse", "15", sparse)]


def test_bars_of_one_chart_have_one_scale_and_one_color_a_part() -> None:
    chart = charts.stacked_bars("t", bars(), text="{:g}".format)
    parts = re.findall(r'x="([\d.]+)%" y="0" width="([\d.]+)%" height="20" class="part ([\w-]+)"><title>(\w+):', chart)
    dense, sparse = parts[:9], parts[9:]
    assert sum(float(width) for _, width, _, _ in dense) == pytest.approx(100, abs=0.01)
    assert sum(float(width) for _, width, _, _ in sparse) == pytest.approx(100 / 3, abs=0.01)
    assert [(kind, name) for _, _, kind, name in dense] == [(kind, name) for _, _, kind, name in sparse]
    # The longest six in the order of the program, the others grey.
    assert [kind for _, _, kind, _ in dense] == ["other"] * 3 + [f"series-{index}" for index in range(6)]
    assert "1 conv4" in chart and "6 conv9" in chart and "3 others" in chart


def test_parts_of_one_name_count_together() -> None:
    parts = (*((f"p{index}", 3.0) for index in range(6)), *(("copy", 1.0) for _ in range(4)))
    chart = charts.stacked_bars("t", [StackedBar("net", "", parts)], text=str)
    assert "6 copy" in chart and "1 other<" in chart

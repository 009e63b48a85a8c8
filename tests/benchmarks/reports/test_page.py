"""The page: markup and text are told apart, figures read well, colours can be told apart by everybody."""

import itertools
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from sparrow.benchmarks.reports import page
from sparrow.benchmarks.reports.charts import COLORS

HOSTILE = "<script>alert('x')</script>\"&"
SCHEMES = {"light": 0, "dark": 1}
# Linear RGB as people without one kind of cone see it: Machado, Oliveira and Fernandes, 2009, severity 1.
VISION = {
    "all cones": np.eye(3),
    "no long": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no medium": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no short": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def color(name: str, scheme: str) -> NDArray[np.float64]:
    """A colour of the style sheet, linear RGB."""
    found = re.findall(rf"--{name}: #([0-9a-f]{{6}})", page.STYLE.read_text())
    encoded = np.frombuffer(bytes.fromhex(found[SCHEMES[scheme]]), np.uint8) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def contrast(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Ratio of the Web Content Accessibility Guidelines."""
    low, high = sorted(float(one @ [0.2126, 0.7152, 0.0722]) for one in (first, second))
    return (high + 0.05) / (low + 0.05)


def oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
             [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    axes = [[0.2104542553, 0.793617785, -0.0040720468], [1.9779984951, -2.428592205, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.808675766]]  # fmt: skip
    return np.array(axes) @ np.cbrt(np.array(cones) @ np.clip(rgb, 0, 1))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_and_marks_stand_out(scheme: str) -> None:
    for ground in ("card", "page"):
        for text in ("text", "quiet", "good", "bad"):
            assert contrast(color(text, scheme), color(ground, scheme)) >= 4.5, (text, ground)
    for number in range(COLORS):
        assert contrast(color(f"series-{number}", scheme), color("card", scheme)) >= 3, number


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_colors_differ_for_everybody(scheme: str, vision: str) -> None:
    seen = [oklab(np.array(VISION[vision]) @ color(f"series-{number}", scheme)) for number in range(COLORS)]
    for first, second in itertools.combinations(range(COLORS), 2):
        assert np.linalg.norm(seen[first] - seen[second]) >= 0.12, (first, second)


def test_text_is_escaped_and_markup_is_not() -> None:
    inner = page.element("b", HOSTILE, title=HOSTILE)
    assert "<script" not in inner and 'title="&lt;' in inner
    assert page.element("p", inner, "a < b", class_="note") == f'<p class="note">{inner}a &lt; b</p>'
    assert "<script" not in page.page(HOSTILE, HOSTILE, HOSTILE)
    assert "<script" not in page.table((HOSTILE, HOSTILE), [(HOSTILE, HOSTILE)])
    assert "<script" not in page.section(HOSTILE, HOSTILE, HOSTILE)


def test_figures_of_a_table_are_aligned() -> None:
    table = page.table(("name", "a", "b"), [("x", "1", "2")])
    assert '<th>name</th><th class="number">a</th>' in table
    assert '<td>x</td><td class="number">1</td><td class="number">2</td>' in table


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.012345, "0.0123"), (1, "1.00"), (9.999, "10.00"), (99.96, "100.0"), (123.4, "123"), (98765, "98,800"),
     (-4.567, "-4.57"), (float("inf"), "inf"), (float("nan"), "nan")],
)  # fmt: skip
def test_figure_has_three_digits(value: float, text: str) -> None:
    assert page.figure(value) == text


def test_sizes_and_counts_have_units() -> None:
    assert [page.byte_size(size) for size in (999, 1500, 2_500_000)] == ["999 B", "1.5 kB", "2.50 MB"]
    assert [page.millions(count) for count in (1234, 1_250_000)] == ["1,234", "1.25 M"]

"""Charts as inline SVG.

Widths are shares of the place that a chart has and heights are pixels, so that the same picture fits a phone and a
desktop with text of one size. Lines are drawn in a layer that stretches; marks and text are placed by percentages and
keep their form. Colours are the classes ``series-0`` and so on of the style sheet; each goes with a form of mark or a
number, so that no chart depends on colour alone. What is predicted is hollow and dashed, what is measured is filled.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sparrow.benchmarks.reports.page import Html, element, join

COLORS = 6
# Around (0, 0): circle, square, triangle, diamond, triangle on its tip.
MARKS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
    "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "M0 -5.5L5.5 4.5H-5.5Z",
    "M0 -6L6 0L0 6L-6 0Z",
    "M0 5.5L5.5 -4.5H-5.5Z",
)
HEIGHT = 260
_STRETCHED = 1000  # width of the layer that stretches, in its own units
_MOST_TICKS = 6  # as many as fit a phone
# A segment of a bar is numbered where the number fits on a phone.
_NUMBERED_SHARE = 0.04


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        title: What it shows, with the unit.
        low: Value at its begin.
        high: Value at its end.
        ticks: Values and texts beside them.
        logarithmic: Equal distances are equal ratios.
    """

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where a value is: 0 at the begin, 1 at the end."""
        change: Callable[[float], float] = math.log if self.logarithmic else float
        return (change(value) - change(self.low)) / (change(self.high) - change(self.low))


def linear_axis(title: str, values: Sequence[float], *, from_zero: bool = True, limit: float = math.inf) -> Axis:
    """An axis between round numbers around all values, with some room where it does not begin at zero.

    Args:
        title: What it shows, with the unit.
        values: What has to be on it, at least one.
        from_zero: It begins at zero.
        limit: It does not go on above this, which no value exceeds.
    """
    room = 0.0 if from_zero else 0.2 * (max(values) - min(values)) or 0.02 * abs(max(values)) or 1.0
    low, high = 0.0 if from_zero else min(values) - room, min(max(values) + room, limit)
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span))
    step = next(part * power for part in (0.2, 0.5, 1, 2, 5) if span / (part * power) <= _MOST_TICKS - 1)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    ticks = [step * index for index in range(first, last + 1)]
    return Axis(title, ticks[0], ticks[-1], tuple((tick, f"{tick:,.{digits}f}") for tick in ticks))


def log_axis(title: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis between round numbers around values above zero, with some room on both sides."""
    first, last = math.floor(math.log10(min(values) / 1.1)), math.ceil(math.log10(max(values) * 1.1))
    round_numbers = [part * 10.0**power for power in range(first, last + 1) for part in (1, 2, 5)]
    low = max(number for number in round_numbers if number <= min(values) / 1.1)
    high = min(number for number in round_numbers if number >= max(values) * 1.1)
    ticks = [number for number in round_numbers if low <= number <= high]
    every = 1
    while len(ticks) > _MOST_TICKS:
        ticks = [10.0**power for power in range(first, last + 1, every) if low <= 10.0**power <= high]
        every += 1
    return Axis(title, low, high, tuple((tick, f"{tick:,.10g}") for tick in ticks), logarithmic=True)


def ordered_axis(title: str, values: Sequence[int]) -> Axis:
    """An axis for a few whole numbers at equal distances: the value at place 0 is the first of them."""
    return Axis(title, -0.4, len(values) - 0.6, tuple((float(place), str(value)) for place, value in enumerate(values)))


@dataclass(frozen=True)
class Point:
    """A point of a series.

    Attributes:
        x: Value on the axis across.
        y: Value on the axis up.
        text: What a pointer that rests on it shows.
    """

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: Its name in the legend.
        points: In the order in which a line joins them.
        predicted: They are predictions.
        joined: A line joins them.
        look: Number that decides colour and mark; the same for two series that belong together.
    """

    name: str
    points: tuple[Point, ...]
    predicted: bool
    joined: bool
    look: int


@dataclass(frozen=True)
class Guide:
    """A line to compare points with, or an area.

    Attributes:
        name: Its name in the legend.
        points: Its corners, x and y; two for a line.
        kind: ``line``, ``dashes``, ``dots`` or ``area``.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    kind: str


def xy_chart(title: str, x: Axis, y: Axis, series: Sequence[Series], guides: Sequence[Guide] = ()) -> Html:
    """A chart of points and lines, with its legend."""

    def stretched(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{_STRETCHED * x.share(a):.2f},{HEIGHT * (1 - y.share(b)):.2f}" for a, b in points)

    grid, across = [], []
    for value, text in y.ticks:
        top = HEIGHT * (1 - y.share(value))
        grid.append(element("line", class_="grid", x1="0", x2="100%", y1=f"{top:.1f}", y2=f"{top:.1f}"))
        across.append(element("text", text, class_="small end", x="-8", y=f"{top + 4:.1f}"))
    for value, text in x.ticks:
        left = f"{100 * x.share(value):.2f}%"
        grid.append(element("line", class_="grid", x1=left, x2=left, y1="0", y2=HEIGHT))
        across.append(element("text", text, class_="small middle", x=left, y=HEIGHT + 18))
    across.append(element("text", x.title, class_="small middle", x="50%", y=HEIGHT + 38))
    lines = [element("polygon" if guide.kind == "area" else "polyline", points=stretched(guide.points),
                     class_=f"guide {guide.kind}") for guide in guides]  # fmt: skip
    lines += [
        element("polyline", points=stretched([(point.x, point.y) for point in entry.points]),
                class_=f"join {_look(entry)}")
        for entry in series if entry.joined
    ]  # fmt: skip
    layer = element("svg", *lines, x="0", y="0", width="100%", height=HEIGHT, preserveAspectRatio="none",
                    viewBox=f"0 0 {_STRETCHED} {HEIGHT}", class_="clip")  # fmt: skip
    marks = [
        element("svg", _mark(entry, element("title", point.text)), x=f"{100 * x.share(point.x):.2f}%",
                y=f"{HEIGHT * (1 - y.share(point.y)):.1f}", class_="at")
        for entry in series for point in entry.points
    ]  # fmt: skip
    picture = element("svg", *grid, layer, *across, *marks, role="img", aria_label=title, width="100%",
                      height=HEIGHT + 44)  # fmt: skip
    return element("figure", element("figcaption", element("b", title)), legend(series, guides),
                   element("p", y.title, class_="axis-title"), element("div", picture, class_="plot"),
                   class_="chart")  # fmt: skip


def legend(series: Sequence[Series], guides: Sequence[Guide] = ()) -> Html:
    """What the marks and lines of a chart stand for."""

    def entry(name: str, *shapes: Html) -> Html:
        return element("li", element("svg", *shapes, width="30", height="14", viewBox="-15 -7 30 14"), name)

    across, area = "M-15 0H15", "M-15 -6H15V6H-15Z"
    entries = []
    for one in series:
        line = [element("path", d=across, class_=f"join {_look(one)}")] if one.joined else []
        entries.append(entry(one.name, *line, _mark(one)))
    for guide in guides:
        shape = area if guide.kind == "area" else across
        entries.append(entry(guide.name, element("path", d=shape, class_=f"guide {guide.kind}")))
    return element("ul", *entries, class_="legend")


def _mark(series: Series, *content: Html) -> Html:
    return element("path", *content, d=MARKS[series.look % len(MARKS)], class_=f"mark {_look(series)}")


def _look(series: Series) -> str:
    return f"series-{series.look % COLORS}" + (" predicted" if series.predicted else "")


@dataclass(frozen=True)
class StackedBar:
    """One bar and its parts.

    Attributes:
        name: Text above it.
        total: Its length in words.
        parts: Name and length of each part, in order.
    """

    name: str
    total: str
    parts: tuple[tuple[str, float], ...]


def stacked_bars(title: str, bars: Sequence[StackedBar], *, text: Callable[[float], str]) -> Html:
    """Horizontal bars of one scale, whose parts of the same name have the same colour in each.

    The longest parts are coloured and numbered, as many as there are colours; the others stay grey.

    Args:
        title: Title of the chart.
        bars: From above.
        text: Writes a length with its unit.
    """
    scale = max(sum(length for _, length in bar.parts) for bar in bars)
    largest: dict[str, float] = {}
    for bar in bars:
        for name, length in merged(bar.parts).items():
            largest[name] = max(largest.get(name, 0.0), length)
    longest = sorted(largest, key=largest.__getitem__, reverse=True)[:COLORS]
    # Numbered in the order of the program.
    looks = {name: number for number, name in enumerate(name for name in largest if name in longest)}
    rows = [_stacked_bar(bar, scale, looks, text) for bar in bars]
    entries = [_part_entry(f"series-{look}", f"{look + 1} {name}") for name, look in looks.items()]
    if rest := len(largest) - len(looks):
        entries.append(_part_entry("other", f"{rest} other{'s' if rest > 1 else ''}"))
    return element("figure", element("figcaption", element("b", title)), *rows,
                   element("ul", *entries, class_="legend"), class_="chart")  # fmt: skip


def merged(parts: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The parts of a bar by name; lengths of the same name are added up."""
    lengths: dict[str, float] = {}
    for name, length in parts:
        lengths[name] = lengths.get(name, 0.0) + length
    return lengths


def _stacked_bar(bar: StackedBar, scale: float, looks: Mapping[str, int], text: Callable[[float], str]) -> Html:
    begin, shapes = 0.0, []
    for name, length in bar.parts:
        share = length / scale
        number = looks.get(name)
        kind = "other" if number is None else f"series-{number}"
        shapes.append(element("rect", element("title", f"{name}: {text(length)}"), x=f"{100 * begin:.3f}%", y="0",
                              width=f"{100 * share:.3f}%", height="20", class_=f"part {kind}"))  # fmt: skip
        if number is not None and share >= _NUMBERED_SHARE:
            shapes.append(element("text", str(number + 1), class_="small middle", y="33",
                                  x=f"{100 * (begin + share / 2):.3f}%"))  # fmt: skip
        begin += share
    label = element("p", element("span", bar.name), element("span", bar.total), class_="bar-name")
    return join([label, element("svg", *shapes, role="img", aria_label=bar.name, width="100%", height="38")])


def _part_entry(kind: str, name: str) -> Html:
    swatch = element("path", d="M-7 -6H7V6H-7Z", class_=f"part {kind}")
    return element("li", element("svg", swatch, width="14", height="12", viewBox="-7 -6 14 12"), name)

"""Predictions against measurements of the same: how far to trust the others."""

from collections.abc import Sequence
from dataclasses import dataclass

from sparrow.benchmarks.calibrating import CalibrationResult
from sparrow.benchmarks.reports.charts import Guide, Point, Series, log_axis, xy_chart
from sparrow.benchmarks.reports.documents import Document, same_network, threads_text
from sparrow.benchmarks.reports.latency import Curve
from sparrow.benchmarks.reports.page import Html, element, figure, numbers, section

BAND = 0.2

NOTE = (f"Each mark is one network on one board. On the line they are equal; in the band the prediction is within "
        f"{BAND:.0%}; above the line it is too high.")  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """One latency, predicted and measured.

    Attributes:
        network: Name of the network.
        place: Board, phone or SoC, and its cores.
        threads: Number of threads.
        predicted: Milliseconds.
        measured: Milliseconds.
        how: What the prediction knew of the measurement, and where that is from, in words.
        excluded: Why it is not in the chart; empty for all others.
    """

    network: str
    place: str
    threads: int
    predicted: float
    measured: float
    how: str
    excluded: str = ""

    @property
    def error(self) -> float:
        """The prediction over the measurement, minus one."""
        return self.predicted / self.measured - 1


def compared_curves(curves: Sequence[Curve]) -> list[Compared]:
    """Predictions and measurements of the same network on the same cores."""
    found = []
    for measured in curves:
        if measured.predicted:
            continue
        there = [curve for curve in curves if curve.predicted
                 and (curve.place, curve.cores) == (measured.place, measured.cores)]  # fmt: skip
        partners = same_network(measured.document, [curve.document for curve in there])
        for predicted in there:
            if predicted.document not in partners:
                continue
            for threads in sorted(measured.milliseconds.keys() & predicted.milliseconds.keys()):
                found.append(
                    Compared(measured.document.network, f"{measured.place}, {measured.cores} cores", threads,
                             predicted.milliseconds[threads], measured.milliseconds[threads],
                             "predicted without it, measured on the device")
                )  # fmt: skip
    return found


def calibration_points(documents: Sequence[Document]) -> list[Compared]:
    """Published measurements, and predictions by figures that were fitted without their boards."""
    return [
        Compared(point.network, f"{point.soc}, {point.core}, {point.affinity} cores", point.threads,
                 point.predicted_milliseconds, point.measured_milliseconds, "board left out of the fit, published",
                 point.excluded)
        for document in documents if isinstance(document.result, CalibrationResult)
        for point in document.result.points
    ]  # fmt: skip


def comparison_section(compared: Sequence[Compared]) -> Html | None:
    """One chart for each number of threads."""
    compared = [one for one in compared if one.predicted > 0 and one.measured > 0]
    drawn = [one for one in compared if not one.excluded]
    if not drawn:
        return None
    looks = {place: look for look, place in enumerate(dict.fromkeys(one.place for one in drawn))}
    charts = []
    for threads in sorted({one.threads for one in drawn}):
        here = [one for one in drawn if one.threads == threads]
        values = [value for one in here for value in (one.predicted, one.measured)]
        x, y = log_axis("measured milliseconds", values), log_axis("predicted milliseconds", values)
        series = [
            Series(place, tuple(
                Point(one.measured, one.predicted, f"{one.network} on {place}: predicted {figure(one.predicted)} ms, "
                      f"measured {figure(one.measured)} ms, {one.error:+.0%}")
                for one in here if one.place == place
            ), False, False, look)
            for place, look in looks.items() if any(one.place == place for one in here)
        ]  # fmt: skip
        ends = (x.low, x.high)
        band = [(end, end * (1 + BAND)) for end in ends] + [(end, end * (1 - BAND)) for end in reversed(ends)]
        guides = [Guide(f"within {BAND:.0%}", tuple(band), "area"),
                  Guide("equal", tuple((end, end) for end in ends), "line")]  # fmt: skip
        within = sum(abs(one.error) <= BAND for one in here)
        chart = xy_chart(threads_text(threads), x, y, series, guides)
        charts.append(element("div", chart, element("p", f"{within} of {len(here)} within {BAND:.0%}.", class_="note")))
    left = len(compared) - len(drawn)
    note = NOTE + (f" In the table alone, with the reason: {left}." if left else "")
    rows = [(one.network, one.place, "; ".join(filter(None, (one.how, one.excluded))), str(one.threads),
             figure(one.predicted), figure(one.measured), f"{one.error:+.1%}") for one in compared]  # fmt: skip
    columns = ("Network", "On", "How", "Threads", "Predicted, ms", "Measured, ms", "Error")
    return section("Predictions against measurements", note, element("div", *charts, class_="charts"),
                   numbers(columns, rows, text_columns=3))  # fmt: skip

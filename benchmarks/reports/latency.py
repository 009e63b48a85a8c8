"""Latency by number of threads."""

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from sparrow.benchmarks.measure import Measurement
from sparrow.benchmarks.predict.soc import Soc
from sparrow.benchmarks.predicting import PredictionResult
from sparrow.benchmarks.reports.charts import Point, Series, linear_axis, ordered_axis, xy_chart
from sparrow.benchmarks.reports.documents import (
    PREDICTED,
    Document,
    device_name,
    error_notes,
    threads_text,
)
from sparrow.benchmarks.reports.page import Html, element, figure, numbers, section
from sparrow.benchmarks.runners.device import DeviceDescription

LATENCY = "milliseconds for one inference"
# Chips of one name, such as two steppings of one phone's, differ in frequency by more than this share.
_SAME_FREQUENCY = 0.02


@dataclass(frozen=True)
class Curve:
    """Latency of a network on some cores, by number of threads.

    Attributes:
        document: Where it is from; the first, where there are several.
        place: Name of the SoC or device.
        cores: Cores that its threads were placed on, as asked for.
        predicted: It is a prediction.
        milliseconds: By number of threads.
        errors: What is known of the error, in words, by number of threads.
    """

    document: Document
    place: str
    cores: str
    predicted: bool
    milliseconds: dict[int, float]
    errors: dict[int, str]

    @property
    def placed(self) -> str:
        """What runs where; a prediction and a measurement of the same look the same but for what tells them apart."""
        return f"{self.document.network}, {self.cores} cores"

    @property
    def how(self) -> str:
        """How its figures were got."""
        return "predicted" if self.predicted else "measured"


def latency_curves(documents: Sequence[Document]) -> list[Curve]:
    """What documents say of latency; measurements that are not valid are left out."""
    curves = []
    socs = {document.result.soc.name: document.result.soc for document in documents
            if isinstance(document.result, PredictionResult)}  # fmt: skip
    measured: dict[tuple[str, ...], Curve] = {}
    for document in documents:
        result = document.result
        if isinstance(result, PredictionResult) and result.predictions:
            times = {one.threads: one.milliseconds for one in result.predictions}
            errors = {one.threads: one.error for one in result.predictions}
            curves.append(Curve(document, result.soc.name, result.affinity, True, times, errors))
        elif isinstance(result, Measurement) and not result.invalid:
            known = [name for name, soc in socs.items() if is_soc(result.device, soc)]
            place = known[0] if len(known) == 1 else device_name(result.device)
            # There is one document for each number of threads.
            key = (document.network, result.device.name, place, result.affinity)
            curve = measured.setdefault(key, Curve(document, place, result.affinity, False, {}, {}))
            curve.milliseconds[result.threads] = result.times.p50
    return [*curves, *measured.values()]


def is_soc(device: DeviceDescription, soc: Soc) -> bool:
    """A device has a SoC: its names say so, and no core has another frequency than the SoC's."""
    names = {_letters(soc.name), *map(_letters, re.findall(r"[A-Z]+\d{4}", soc.description))}
    found = any(name in _letters(text) for name in names for text in (device.model, device.soc))
    speeds = {core.number: 1e6 * core.ghz for core in soc.cores}  # kHz
    return found and all(
        core.number in speeds and abs(core.max_khz / speeds[core.number] - 1) <= _SAME_FREQUENCY
        for core in device.cores
        if core.max_khz
    )


def _letters(text: str) -> str:
    """Only letters and digits, for comparing names."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def by_place(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """Curves by the name of their SoC or device."""
    found: dict[str, list[Curve]] = {}
    for curve in curves:
        found.setdefault(curve.place, []).append(curve)
    return found


def how_got(curves: Sequence[Curve]) -> str:
    """How the figures of some curves were got, and how to tell."""
    notes = []
    if any(curve.predicted for curve in curves):
        notes.append(f"Hollow marks, dashed lines: {PREDICTED[0].lower()}{PREDICTED[1:]}")
    if not all(curve.predicted for curve in curves):
        notes.append("Filled marks, solid lines: measured on the device, the median of the runs.")
    return " ".join(notes)


def with_errors(chart: Html, curves: Sequence[Curve]) -> Html:
    """A chart with what is known of its predictions' errors below it."""
    return element("div", chart, error_notes(text for curve in curves for text in curve.errors.values()))


def latency_section(curves: Sequence[Curve]) -> Html | None:
    """Latency by number of threads, one chart for each SoC or device."""
    if not curves:
        return None
    charts = []
    for place, here in by_place(curves).items():
        threads = sorted({number for curve in here for number in curve.milliseconds})
        look = looks(curve.placed for curve in here)
        series = []
        for curve in here:
            name = f"{curve.placed}, {curve.how}"
            points = tuple(
                Point(threads.index(number), ms, f"{name}, {threads_text(number)}: {figure(ms)} ms")
                for number, ms in sorted(curve.milliseconds.items())
            )
            series.append(Series(name, points, curve.predicted, True, look[curve.placed]))
        y = linear_axis(LATENCY, [point.y for one in series for point in one.points])
        charts.append(with_errors(xy_chart(place, ordered_axis("threads", threads), y, series), here))
    columns = ("Network", "On", "Cores", "How", "Threads", "ms")
    rows = [
        (curve.document.network, curve.place, curve.cores, curve.how, str(number), figure(ms))
        for curve in curves
        for number, ms in sorted(curve.milliseconds.items())
    ]
    return section("Latency by number of threads", how_got(curves), element("div", *charts, class_="charts"),
                   numbers(columns, rows, text_columns=4))  # fmt: skip


def looks(keys: Iterable[Hashable]) -> dict[Hashable, int]:
    """A number for each key, in the order of their first appearance."""
    return {key: number for number, key in enumerate(dict.fromkeys(keys))}

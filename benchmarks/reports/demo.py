"""The report of the demo: one self-contained HTML file, and a table for the terminal.

Its digits are PNG inside ``data:`` addresses.
"""

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from sparrow.benchmarks.reports.page import Html, byte_size, element, millions, page, percent, section
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_file

COUNT_NOTE = "Instructions retired for one inference, counted under QEMU. A count, not a latency."


@dataclass(frozen=True)
class Stage:
    """The network at one stage of the work.

    Attributes:
        name: Such as ``"DGMS, 4 bits"``.
        runs_in: What ran it, such as ``"ONNX Runtime"``.
        correct: Test images classified correctly.
        images: Test images classified.
        size_bytes: Bytes that it takes at this stage.
        size_of: What these bytes are, such as ``"ONNX file"``.
        sparsity: Share of the weights that are zero.
    """

    name: str
    runs_in: str
    correct: int
    images: int
    size_bytes: int
    size_of: str
    sparsity: float


@dataclass(frozen=True)
class Count:
    """Instructions of one inference.

    Attributes:
        network: Such as ``"float32"`` or ``"DGMS, 4 bits"``.
        cpu: CPU model.
        threads: Threads it ran on.
        instructions: Mean over the counted inferences, all threads together.
    """

    network: str
    cpu: str
    threads: int
    instructions: float


@dataclass(frozen=True)
class Layer:
    """One layer's weights before and after DGMS.

    Attributes:
        name: Name in the network.
        parameters: Number of weights.
        bits: Bits a weight is stored with.
        sparsity: Share of the weights that are zero after DGMS.
        edges: Borders of the histogram's bins, one more than ``counts``.
        counts: Float weights in each bin, before DGMS.
        initial_codebook: Values that DGMS started from; empty for a layer without a codebook.
        codebook: Values of the codebook after training; empty for a layer without a codebook.
        shares: Share of the weights that took each value, as long as ``codebook``.
    """

    name: str
    parameters: int
    bits: int
    sparsity: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    initial_codebook: tuple[float, ...]
    codebook: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Example:
    """A test image and what the compiled network took it for.

    Attributes:
        pixels: uint8 ``[height, width]``, 0 is black.
        label: True class.
        predicted: Class that the bundle gave.
    """

    pixels: NDArray[np.uint8]
    label: str
    predicted: str


@dataclass(frozen=True)
class DemoSummary:
    """All that the report shows.

    Attributes:
        title: Headline.
        subtitle: One sentence: which network, which data.
        stages: In the order of the work: the first is the float network, the last the compiled bundle.
        counts: Instructions, for each CPU model the float network first.
        layers: In the order of the network.
        examples: Some test images.
        classes: Names of the classes.
        confusion: Integers ``[true class, predicted class]`` of the compiled bundle over all test images.
        facts: Name and text of what it takes to repeat the run: versions, commit, seed, command.
    """

    title: str
    subtitle: str
    stages: tuple[Stage, ...]
    counts: tuple[Count, ...]
    layers: tuple[Layer, ...]
    examples: tuple[Example, ...]
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    facts: tuple[tuple[str, str], ...]


def write_report(summary: DemoSummary, path: Path) -> None:
    """Write the report as one HTML file.

    Args:
        summary: What to show.
        path: File to write; an earlier one is replaced when the new one is complete.

    Raises:
        SparrowError: The summary has no stages, or the file cannot be written.
    """
    content = render_report(summary)
    with atomic_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def render_report(summary: DemoSummary) -> str:
    """Make the report's HTML.

    Raises:
        SparrowError: The summary has no stages.
    """
    if not summary.stages:
        raise SparrowError("a report without a stage", expected="at least the float network and the bundle")
    sections = [_tiles(summary), _stage_table(summary.stages), _stage_bars(summary.stages)]
    if summary.counts:
        sections.append(_counts(summary.counts))
    if summary.layers:
        sections += [_layer_bars(summary.layers), _layer_histograms(summary.layers)]
    sections.append(element("div", _examples(summary.examples), _confusion(summary), class_="pair"))
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in summary.facts)
    footer = f"<footer><h2>How to repeat this</h2><dl>{facts}</dl></footer>"
    return page(summary.title, summary.subtitle, *sections, Html(footer))


def print_table(summary: DemoSummary, console: Console | None = None) -> None:
    """Print the stages and the counts to the terminal.

    Args:
        summary: What to show.
        console: Where to print; by default stdout.
    """
    console = console or Console()
    console.print(escape_markup(f"{summary.title}\n{summary.subtitle}"))
    stages = Table()
    stages.add_column("network")
    stages.add_column("runs in")
    for name in ("accuracy", "wrong", "zeros", "size"):
        stages.add_column(name, justify="right", no_wrap=True)
    stages.add_column("of what")
    for stage in summary.stages:
        stages.add_row(
            escape_markup(stage.name), escape_markup(stage.runs_in), percent(stage.correct / stage.images),
            str(stage.images - stage.correct), percent(stage.sparsity, 1), byte_size(stage.size_bytes),
            escape_markup(stage.size_of),
        )  # fmt: skip
    console.print(stages)
    if not summary.counts:
        return
    console.print(COUNT_NOTE)
    counts = Table()
    counts.add_column("CPU model")
    counts.add_column("network")
    counts.add_column("threads", justify="right")
    counts.add_column("million instructions", justify="right")
    for count in summary.counts:
        counts.add_row(
            escape_markup(count.cpu),
            escape_markup(count.network),
            str(count.threads),
            f"{count.instructions / 1e6:,.3f}",
        )
    console.print(counts)


def grayscale_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a grayscale image, uint8 ``[height, width]``, as PNG (ISO/IEC 15948: 8 bits, no filter)."""
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels, dtype=np.uint8))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _tiles(summary: DemoSummary) -> Html:
    first, last = summary.stages[0], summary.stages[-1]
    change = 100 * (last.correct / last.images - first.correct / first.images)
    tiles = [
        (percent(last.correct / last.images), f"accuracy on ARM, {change:+.2f} points against float"),
        (f"{first.size_bytes / last.size_bytes:.1f}× smaller",
         f"{byte_size(last.size_bytes)} instead of {byte_size(first.size_bytes)}"),
        (percent(last.sparsity, 1), "of the weights are zero"),
    ]  # fmt: skip
    if summary.counts:
        after = summary.counts[-1]
        before = next(c for c in summary.counts if (c.cpu, c.threads) == (after.cpu, after.threads))
        tiles.append((millions(after.instructions),
                      f"instructions on {after.cpu} ({before.network}: {millions(before.instructions)})"))  # fmt: skip
    cells = "".join(f'<div class="tile"><b>{escape(big)}</b><span>{escape(text)}</span></div>' for big, text in tiles)
    return Html(f'<div class="tiles">{cells}</div>')


def _stage_table(stages: Sequence[Stage]) -> Html:
    rows = "".join(
        f"<tr><td>{escape(stage.name)}<small>{escape(stage.runs_in)}</small></td>"
        f'<td class="number">{percent(stage.correct / stage.images)}'
        f"<small>{stage.images - stage.correct} of {stage.images:,} wrong</small></td>"
        f'<td class="number">{byte_size(stage.size_bytes)}<small>{escape(stage.size_of)}</small></td>'
        f'<td class="number">{percent(stage.sparsity, 1)}</td></tr>'
        for stage in stages
    )
    return section(
        "From float to the compiled bundle",
        "Each row is the same network, one step further. Every row is measured on all test images.",
        Html(
            '<div class="wide"><table><tr><th>Network</th><th class="number">Accuracy</th><th class="number">Size</th>'
            f'<th class="number">Zeros</th></tr>{rows}</table></div>'
        ),
    )


def _stage_bars(stages: Sequence[Stage]) -> Html:
    largest = max(stage.size_bytes for stage in stages)
    last = len(stages) - 1
    accuracy = [
        (f"{stage.name} · {stage.runs_in}", stage.correct / stage.images, percent(stage.correct / stage.images),
         "after" if index == last else "before")
        for index, stage in enumerate(stages)
    ]  # fmt: skip
    size = [
        (f"{stage.name} · {stage.size_of}", stage.size_bytes / largest, byte_size(stage.size_bytes),
         "after" if index == last else "before")
        for index, stage in enumerate(stages)
    ]  # fmt: skip
    return element(
        "div",
        section("Accuracy", "Share of the test images classified correctly; bars start at zero.", _bars(accuracy)),
        section("Bytes", "What the network takes at each stage.", _bars(size)),
        class_="pair",
    )


def _counts(counts: Sequence[Count]) -> Html:
    largest = max(count.instructions for count in counts)
    first = counts[0].network
    bars = [
        (f"{count.cpu} · {count.network}" + (f" · {count.threads} threads" if count.threads > 1 else ""),
         count.instructions / largest, millions(count.instructions), "before" if count.network == first else "after")
        for count in counts
    ]  # fmt: skip
    return section("Instructions for one inference", COUNT_NOTE + " Shorter is better.", _bars(bars))


def _layer_bars(layers: Sequence[Layer]) -> Html:
    bars = [
        (f"{layer.name} · {layer.parameters:,} weights · {layer.bits} bits", layer.sparsity,
         percent(layer.sparsity, 1), "zero")
        for layer in layers
    ]  # fmt: skip
    return section(
        "Bits and zeros by layer",
        "The bar is the share of a layer's weights that DGMS set to zero. The first and the last layer keep 8 bits "
        "unless the recipe says otherwise.",
        _bars(bars),
    )


def _bars(rows: Sequence[tuple[str, float, str, str]]) -> Html:
    """Horizontal bars: (label, share of the full width, figure, class). Widths are percentages: they fit any screen."""
    pitch = 44
    shapes = []
    for index, (label, share, figure, kind) in enumerate(rows):
        top = index * pitch
        shapes.append(
            f'<text x="0" y="{top + 13}">{escape(label)}</text>'
            f'<rect class="track" x="0" y="{top + 19}" width="78%" height="10" rx="5"/>'
            f'<rect class="{kind}" x="0" y="{top + 19}" width="{78 * share:.3f}%" height="10" rx="5"/>'
            f'<text class="end" x="100%" y="{top + 29}">{escape(figure)}</text>'
        )
    return Html(f'<svg role="img" width="100%" height="{pitch * len(rows)}">{"".join(shapes)}</svg>')


def _layer_histograms(layers: Sequence[Layer]) -> Html:
    key = (
        '<p class="key"><span style="--swatch: var(--before)">float weights</span>'
        '<span class="dashed">codebook that DGMS started from</span>'
        '<span style="--swatch: var(--after)">codebook after training</span>'
        '<span style="--swatch: var(--zero)">its zero</span></p>'
    )
    figures = "".join(
        f"<figure><b>{escape(layer.name)}</b><figcaption>{layer.parameters:,} weights, {layer.bits} bits, "
        f"{percent(layer.sparsity, 1)} zero</figcaption>{_histogram(layer)}</figure>"
        for layer in layers
    )
    return section(
        "Weights before and after",
        "Above the line: how the float weights were distributed. Below it: the values that are left, each as long as "
        "the share of the weights that took it.",
        Html(f'{key}<div class="layers">{figures}</div>'),
    )


def _histogram(layer: Layer) -> str:
    width, middle, pad = 300.0, 84.0, 8.0
    height = middle + (88.0 if layer.codebook else 20.0)
    values = (*layer.edges, *layer.codebook, *layer.initial_codebook)
    low, high = min(values), max(values)
    scale = (width - 2 * pad) / ((high - low) or 1.0)

    def x(value: float) -> float:
        return pad + (value - low) * scale

    shapes = []
    for left, right, count in zip(layer.edges, layer.edges[1:], layer.counts, strict=False):
        tall = (middle - 6) * count / max(1, *layer.counts)
        shapes.append(f'<rect class="before" x="{x(left):.2f}" y="{middle - tall:.2f}" '
                      f'width="{max(x(right) - x(left) - 0.6, 0.6):.2f}" height="{tall:.2f}"/>')  # fmt: skip
    shapes += [
        f'<line class="start" x1="{x(value):.2f}" y1="4" x2="{x(value):.2f}" y2="{middle}"/>'
        for value in layer.initial_codebook
    ]
    largest = max(layer.shares, default=1.0) or 1.0
    for value, share in zip(layer.codebook, layer.shares, strict=True):
        tall = max((height - middle - 24) * share / largest, 1.5)
        kind = "zero" if value == 0 else "after"
        shapes.append(f'<rect class="{kind}" x="{x(value) - 2:.2f}" y="{middle}" width="4" height="{tall:.2f}" rx="1">'
                      f"<title>{value:.4g}: {percent(share, 1)} of the weights</title></rect>")  # fmt: skip
    ends = (
        f'<text class="small" x="{pad}" y="{height - 4}">{low:.2g}</text>'
        f'<text class="small end" x="{width - pad}" y="{height - 4}">{high:.2g}</text>'
    )
    if low < 0 < high and min(x(0) - pad, width - pad - x(0)) > 45:
        ends += f'<text class="small middle" x="{x(0):.2f}" y="{height - 4}">0</text>'
    axis = f'<line class="axis" x1="0" y1="{middle}" x2="{width}" y2="{middle}"/>'
    return f'<svg role="img" viewBox="0 0 {width:g} {height:g}" width="100%">{"".join(shapes)}{axis}{ends}</svg>'


def _examples(examples: Sequence[Example]) -> Html:
    figures = []
    for example in examples:
        wrong = example.label != example.predicted
        address = base64.b64encode(grayscale_png(example.pixels)).decode()
        label, predicted = escape(example.label), escape(example.predicted)
        text = f"{predicted}, not {label}" if wrong else predicted
        figures.append(f'<figure{" class=wrong" if wrong else ""}><img alt="a {label}" '
                       f'src="data:image/png;base64,{address}">{text}</figure>')  # fmt: skip
    note = "What the compiled bundle answered under QEMU. Red: wrong, with the true label."
    return section("Some test images", note, Html(f'<div class="digits">{"".join(figures)}</div>'))


def _confusion(summary: DemoSummary) -> Html:
    names = [escape(name) for name in summary.classes]
    # Each row is one class, so the shade is the share of that class, whatever its number of images.
    totals = np.maximum(summary.confusion.sum(axis=1), 1)
    rows = []
    for true, name in enumerate(names):
        cells = []
        for predicted in range(len(names)):
            count = int(summary.confusion[true, predicted])
            if count and true == predicted:
                shade = f"rgba(var(--heat), {0.5 * count / totals[true]:.2f})"
                cells.append(f'<td style="background: {shade}">{count}</td>')
            else:
                cells.append(f'<td class="miss">{count}</td>' if count else "<td></td>")
        rows.append(f"<tr><th>{name}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    wrong = int(summary.confusion.sum() - np.trace(summary.confusion))
    return section(
        "Where it is wrong",
        f"{wrong} of {int(summary.confusion.sum()):,} images. Rows are true classes, columns what the bundle answered.",
        Html(f'<div class="wide"><table class="confusion"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'),
    )

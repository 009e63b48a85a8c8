"""The report of any mix of result documents: one self-contained HTML file.

Each chart is made from the documents that hold its data, and is left out where none does.
"""

from collections.abc import Sequence
from pathlib import Path

from sparrow.benchmarks.reports.accuracy import accuracy_section, size_section
from sparrow.benchmarks.reports.comparison import calibration_points, compared_curves, comparison_section
from sparrow.benchmarks.reports.documents import PREDICTED, Document, facts, read_documents, subject, tools
from sparrow.benchmarks.reports.latency import latency_curves, latency_section
from sparrow.benchmarks.reports.layers import counted_instructions, layers_section, measured_times, predicted_times
from sparrow.benchmarks.reports.page import Html, element, join, millions, milliseconds, page, section, table
from sparrow.benchmarks.reports.roofline import roofline_section
from sparrow.benchmarks.reports.runtimes import runtimes_section
from sparrow.benchmarks.reports.search import search_section
from sparrow.kernels.files import atomic_file

TIMED = "Measured on the device in a run of its own, since reading the clock at each layer slows it a little."
COUNTED = "Instructions retired in one inference, counted under QEMU on the fewest threads. A count, not a latency."


def write_results_report(paths: Sequence[Path], output: Path) -> None:
    """Write a page about result documents as one HTML file.

    Args:
        paths: The documents, at least one.
        output: File to write; an earlier one is replaced when the new one is complete.

    Raises:
        SparrowError: A document cannot be read or is no result, or the file cannot be written.
    """
    content = render_results(read_documents(paths))
    with atomic_file(output) as temporary:
        temporary.write_text(content, encoding="utf-8")


def render_results(documents: Sequence[Document]) -> str:
    """Make the page's HTML; charts that no document has data for are not on it."""
    curves = latency_curves(documents)
    sections = [
        _overview(documents),
        latency_section(curves),
        layers_section("Predicted time by layer", PREDICTED, predicted_times(documents), milliseconds),
        layers_section("Measured time by layer", TIMED, measured_times(documents), milliseconds),
        layers_section("Instructions by layer", COUNTED, counted_instructions(documents), millions),
        accuracy_section(documents, curves),
        size_section(documents),
        search_section(documents),
        roofline_section(documents),
        comparison_section([*compared_curves(curves), *calibration_points(documents)]),
        runtimes_section(documents),
        _environments(documents),
    ]
    subjects = ", ".join(dict.fromkeys(subject(document.result) for document in documents))
    return page("Sparrow: what it costs", subjects, *(part for part in sections if part is not None))


def _overview(documents: Sequence[Document]) -> Html:
    rows = [
        (join([document.network, element("small", how)]), text)
        for document in documents
        for how, text in facts(document.result)
    ]
    return section("Overview", "Counts and outputs under QEMU are exact. Its own times say nothing of a phone and are "
                   "not used.", table(("Network or program", "Result"), rows, text_columns=2))  # fmt: skip


def _environments(documents: Sequence[Document]) -> Html:
    """What it takes to get the same figures again."""
    rows = []
    for document in documents:
        result, environment = document.result, document.result.environment
        rows.append(
            (join([document.path.name, element("small", f"{result.schema}, version {result.schema_version}")]),
             join([environment.sparrow_version, element("small", environment.commit)]), tools(result))
        )  # fmt: skip
    return element("footer", element("h2", "What the figures were got with"),
                   table(("File", "Sparrow", "Tools"), rows, text_columns=3))  # fmt: skip

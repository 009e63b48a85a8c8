"""What all reports are made of: the page, its sections and tables, and figures as text.

A page loads nothing: its style and its pictures are part of the file. It follows the reader's light or dark scheme and
fits a phone.
"""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("page.css")


class Html(str):
    """Markup, as it stands in the page. Any other text is escaped before it gets there."""

    __slots__ = ()


def element(name: str, *content: str, **attributes: object) -> Html:
    """One element; text in it is escaped and markup is not.

    Args:
        name: Its tag.
        content: What is in it.
        attributes: Its attributes. An underscore at the end is dropped and others become hyphens, so that ``class_``
            and ``aria_label`` can be written; those that are ``None`` are left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>{join(content)}</{name}>")


def join(content: Sequence[str]) -> Html:
    """Put markup and text, which is escaped, one after another."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in content))


def page(title: str, subtitle: str, *content: str) -> str:
    """A whole HTML file."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
{join(content)}
</main>
</body>
</html>
"""


def section(title: str, note: str, *content: str) -> Html:
    """A card of the page: what it shows, and how its figures were got."""
    return element("section", element("h2", title), element("p", note, class_="note"), *content)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> Html:
    """A table that scrolls by itself where the screen is too narrow.

    Args:
        columns: Heads.
        rows: As many cells each.
        text_columns: So many columns from the left hold text, the others figures.
    """

    def cells(name: str, row: Sequence[str]) -> Html:
        kinds = (None if index < text_columns else "number" for index in range(len(row)))
        return element("tr", *(element(name, cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)))

    body = [cells("th", columns), *(cells("td", row) for row in rows)]
    return element("div", element("table", *body), class_="wide")


def numbers(columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> Html:
    """The figures behind a chart, as a table that opens on request."""
    return element("details", element("summary", "Numbers"), table(columns, rows, text_columns=text_columns))


def percent(share: float, digits: int = 2) -> str:
    """A share as a percentage."""
    return f"{100 * share:.{digits}f} %"


def byte_size(size: float) -> str:
    """A number of bytes with its unit."""
    if size < 1000:
        return f"{size:.0f} B"
    return f"{size / 1000:.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:.2f} MB"


def millions(count: float) -> str:
    """A count, in millions where it is large."""
    return f"{count / 1e6:,.2f} M" if count >= 1e5 else f"{count:,.0f}"


def milliseconds(value: float) -> str:
    """A time with its unit."""
    return f"{figure(value)} ms"


def figure(value: float) -> str:
    """A number with three significant digits, written out."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(digits, 0)}f}"

"""Text and tables that a notebook shows as HTML."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass
class Html:
    """Text that a notebook shows as HTML."""

    text: str

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return ""


def table(rows: Iterable, columns: dict[str, Callable[[Any], str]], caption: str) -> Html:
    """A table with a line for each of `rows`.

    Args:
        rows: anything.
        columns: maps headings to functions that take a row and return a cell's text.
        caption: what the table shows.
    """
    head = "".join(f"<th>{escape(heading)}</th>" for heading in columns)
    lines = [
        "<tr>" + "".join(f"<td>{escape(cell(row))}</td>" for cell in columns.values()) + "</tr>"
        for row in rows
    ]
    return Html(
        f'<table class="katlib-table"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )

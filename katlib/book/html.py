"""Text and tables that a notebook shows as HTML."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import TypeVar

Row = TypeVar("Row")


@dataclass
class Html:
    """Text that a notebook shows as HTML."""

    text: str

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        # a notebook stores this beside the HTML, where it would only repeat it
        return ""


def table(rows: Iterable[Row], columns: Mapping[str, Callable[[Row], str]], caption: str) -> Html:
    """A table with a line for each of `rows`.

    Args:
        rows: anything.
        columns: maps headings to functions that take a row and return a cell's text.
        caption: what the table shows.

    Example:
        >>> from katlib.book.html import table
        >>> table([1, 2], {"x": str, "x²": lambda x: str(x**2)}, "Squares.").text.count("<tr>")
        3
    """
    headings = "".join(f"<th>{escape(heading)}</th>" for heading in columns)
    lines = "".join(_line(row, columns) for row in rows)
    return Html(
        f'<table class="katlib-table"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{headings}</tr></thead><tbody>{lines}</tbody></table>"
    )


def _line(row: Row, columns: Mapping[str, Callable[[Row], str]]) -> str:
    cells = "".join(f"<td>{escape(cell_text(row))}</td>" for cell_text in columns.values())
    return f"<tr>{cells}</tr>"

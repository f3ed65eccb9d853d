"""What the diagrams of several chapters are drawn from: a canvas without axes, boxes and arrows."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from katlib.book import plot
from katlib.book.plot import BLACK

GREY = "#8a8a8a"
# fillings that black text can be read on
PALE, PALE_BLUE, PALE_RED = "#f1f1f1", "#cfe3f1", "#f8d9c4"

Place = tuple[float, float]


def canvas(width: float, height: float, xlim: Place, ylim: Place) -> tuple[Figure, Axes]:
    """A figure without axes."""
    fig, ax = plot.new_figure(width=width, height=height)
    ax.set(xlim=xlim, ylim=ylim)
    ax.axis("off")
    return fig, ax


def box(
    ax: Axes,
    at: Place,
    text: str,
    fill: str = "white",
    edge: str = BLACK,
    size: Place = (0.8, 0.5),
    fontsize: float | None = 11,
    rounding: float = 0.08,
) -> None:
    """A box with rounded corners around its centre; `fontsize` None is the style's own."""
    width, height = size
    corner = (at[0] - width / 2, at[1] - height / 2)
    style = f"round,pad=0,rounding_size={rounding}"
    patch = FancyBboxPatch(
        corner, width, height, boxstyle=style, facecolor=fill, edgecolor=edge, zorder=2
    )
    ax.add_patch(patch)
    ax.text(*at, text, ha="center", va="center", fontsize=fontsize, zorder=3)


def arrow(
    ax: Axes,
    start: Place,
    end: Place,
    color: str = BLACK,
    width: float = 1.4,
    head: float = 11,
) -> None:
    """An arrow with a filled head, behind the boxes."""
    look: dict[str, Any] = {
        "arrowstyle": "-|>",
        "color": color,
        "lw": width,
        "shrinkA": 0,
        "shrinkB": 0,
        "mutation_scale": head,
    }
    ax.annotate("", end, start, arrowprops=look, zorder=1)

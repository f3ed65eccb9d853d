"""The diagrams of chapter 8 and appendix A4: what backward sums, keeps, and loses to rounding."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from katlib.book import plot
from katlib.book.drawing import GREY, PALE_BLUE, PALE_RED, Place, arrow, box, canvas
from katlib.book.plot import BLACK, BLUE, VERMILION

# ---- chapter 8


def shared_coefficient() -> Figure:
    """Left, forward: one coefficient goes to all outputs. Right, backward: a sum comes back."""
    fig, ax = canvas(6.2, 3.3, (-0.75, 10.35), (-0.4, 4.1))
    for left, title, shared in (
        (0.0, "forward", "one coefficient $a_1$"),
        (5.6, "backward", "$da_1$: one sum"),
    ):
        forward = left == 0
        ax.text(left + 2.0, 3.9, title, ha="center", va="center", weight="bold")
        box(ax, (left + 2.0, 3.1), shared, PALE_RED, size=(3.0, 0.55))
        for place, name in zip((0.0, 1.0, 2.0, 4.0), "123N"):
            _element(ax, left + place, name, forward)
            # the coefficient's box is narrower than the row of elements
            shares = (left + 2.0 + 0.5 * (place - 2.0), 2.8), (left + place, 1.68)
            arrow(ax, *(shares if forward else shares[::-1]), VERMILION)
        for row in (1.4, 0.0):
            ax.text(left + 3.0, row, "…", ha="center", va="center", fontsize=14)
    return fig


def _element(ax: Axes, x: float, name: str, forward: bool) -> None:
    """An input and its output; backward, the gradients of the two."""
    box(ax, (x, 1.4), f"$y_{name}$" if forward else f"$g_{name}$")
    box(ax, (x, 0.0), f"$x_{name}$" if forward else f"$dx_{name}$", PALE_BLUE)
    ends = (x, 0.28), (x, 1.12)
    arrow(ax, *(ends if forward else ends[::-1]), BLUE)


def two_chains(x: float, coefficients: Sequence[float]) -> Figure:
    """Horner's rule for a polynomial and, one step behind, for its derivative.

    Args:
        x: where both are evaluated.
        coefficients: ascending.
    """
    fig, ax = canvas(6.2, 2.6, (-1.75, 2.4 * len(coefficients) - 1.1), (-0.55, 2.35))
    value = slope = 0.0
    ax.text(-1.7, 1.2, "value", va="center", color=BLUE)
    ax.text(-1.7, 0.0, "slope", va="center", color=VERMILION)
    for step, c in enumerate(reversed(coefficients)):
        place = 2.4 * step
        value, slope = value * x + c, slope * x + value
        box(ax, (place, 1.2), f"{value:g}", PALE_BLUE)
        box(ax, (place, 0.0), f"{slope:g}", PALE_RED)
        arrow(ax, (place, 1.85), (place, 1.47), GREY)
        name = f"$c_{len(coefficients) - 1 - step}$ = {c:g}"
        ax.text(place, 2.1, name, ha="center", va="center", color=GREY)
        if step:
            before = place - 2.0
            arrow(ax, (before, 1.2), (place - 0.42, 1.2), BLUE)
            arrow(ax, (before, 0.0), (place - 0.42, 0.0), VERMILION)
            arrow(ax, (before, 1.02), (place - 0.42, 0.15), BLACK)
            ax.text(place - 1.2, 1.37, f"· {x:g}", ha="center", va="center", color=BLUE)
            ax.text(place - 1.2, -0.22, f"· {x:g}", ha="center", va="center", color=VERMILION)
            ax.text(place - 1.0, 0.77, "+", ha="center", va="center")
    return fig


def what_is_kept() -> Figure:
    """The steps of F for one x, twice: what autograd keeps of them, and what the formulas need."""
    fig, ax = canvas(6.2, 4.3, (-1.75, 7.55), (-0.7, 6.15))
    titles = ("autograd keeps 11 tensors", "the formulas need 1")
    for bottom, title, everything in ((3.4, titles[0], True), (0.0, titles[1], False)):
        ax.text(-1.7, bottom + 2.45, title, va="center", weight="bold")
        kept = PALE_RED if everything else "white"
        edge = BLACK if everything else GREY
        box(ax, (-1.3, bottom + 0.7), "x", PALE_RED)
        for row, letter, steps in ((1.4, "P", 5), (0.0, "Q", 4)):
            arrow(ax, (-0.88, bottom + 0.7), (-0.45, bottom + row), edge)
            if letter == "Q":
                box(ax, (0.0, bottom), "|x|", kept, edge)
            _chain(ax, bottom + row, letter, steps, kept, edge)
            arrow(ax, (5.45, bottom + row), (6.2, bottom + 0.7 + (row - 0.7) * 0.2), edge)
        box(ax, (6.75, bottom + 0.7), "P / Q", "white", edge, size=(1.05, 0.55))
    return fig


def _chain(ax: Axes, y: float, letter: str, steps: int, fill: str, edge: str) -> None:
    """The values of a polynomial's Horner steps, the last one named by its letter."""
    first = 0.0 if letter == "P" else 1.25
    for step in range(steps):
        x = first + 1.25 * step
        is_last = step == steps - 1
        box(ax, (x, y), letter if is_last else "·", fill, edge)
        if step or letter == "Q":
            arrow(ax, (x - 0.83, y), (x - 0.42, y), edge)


# ---- appendix A4


def lost_bits(digits: int = 24) -> Figure:
    """2^24 + 1 in binary, with the digits that a float32 holds."""
    fig, ax = canvas(6.2, 2.5, (-5.0, digits + 3.0), (-1.4, 7.6))
    rows = (
        (4.2, "2²⁴", [1] + [0] * digits),
        (2.4, "1", [None] * digits + [1]),
        (0.2, "stored", [1] + [0] * (digits - 1)),
    )
    for y, name, bits in rows:
        ax.text(-0.9, y + 0.6, name, ha="right", va="center")
        for place, bit in enumerate(bits):
            if bit is None:
                continue
            fill = PALE_RED if place == digits else PALE_BLUE
            ax.add_patch(Rectangle((place, y), 1, 1.2, facecolor=fill, edgecolor="white"))
            ax.text(place + 0.5, y + 0.55, str(bit), ha="center", va="center", fontsize=10)
    ax.plot((digits, digits), (-0.3, 5.9), color=BLACK, linewidth=1.4)
    ax.plot((-4.8, digits + 1), (1.9, 1.9), color=GREY, linewidth=0.8)
    ax.text(digits / 2, 6.7, f"{digits} digits of a float32", ha="center", va="center", color=BLUE)
    ax.text(digits + 0.4, 6.7, "lost", va="center", color=VERMILION)
    return fig


def orders_of_adding() -> Figure:
    """Eight ones added up one by one, and in a tree; each sum is written where it is made."""
    fig, axes = plot.new_figure(2, width=6.2, height=4.0, width_ratios=(1.1, 1))
    for ax, title in zip(axes, ("one by one: 7 steps deep", "a tree: 3 steps deep")):
        ax.set(xlim=(-0.6, 7.6), ylim=(-0.6, 7.6))
        ax.axis("off")
        ax.set_title(title, loc="center", fontsize=11)
        for term in range(8):
            _node(ax, (term, 0.0), "1", PALE_BLUE)
    chain, tree = axes
    above: Place = (0.0, 0.0)
    for term in range(1, 8):
        at = (float(term), float(term))
        _line(ax=chain, start=above, end=at)
        _line(ax=chain, start=(term, 0.0), end=at)
        _node(chain, at, str(term + 1), PALE_RED)
        above = at
    level = [(float(term), 0.0) for term in range(8)]
    while len(level) > 1:
        height = level[0][1] + 2.2
        pairs = list(zip(level[::2], level[1::2]))
        level = [((left[0] + right[0]) / 2, height) for left, right in pairs]
        for at, pair in zip(level, pairs):
            for below in pair:
                _line(tree, below, at)
            _node(tree, at, str(8 // len(level)), PALE_RED)
    return fig


def _node(ax: Axes, at: Place, text: str, fill: str) -> None:
    ax.plot(*at, "o", markersize=16, markerfacecolor=fill, markeredgecolor=BLACK, zorder=2)
    ax.text(*at, text, ha="center", va="center", fontsize=10, zorder=3)


def _line(ax: Axes, start: Place, end: Place) -> None:
    ax.plot((start[0], end[0]), (start[1], end[1]), color=GREY, linewidth=1.2, zorder=1)

"""The diagrams of chapter 2 and of appendix A1: networks with a function on each edge."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from katlib.book.plot import BLACK, BLUE, PALETTE, new_figure

GREY = "#aaaaaa"

# what an edge shows: the values of a function, evenly spaced; None for a plain line
Edge = Callable[[int, int, int], Sequence[float] | None]


def learned_network(
    first: Sequence[Sequence[float]], last: Sequence[float], hidden: tuple[float, float] = (-1, 1)
) -> Figure:
    """A network [2, 1, 1] with its three functions drawn on its edges.

    Args:
        first: values of the functions of x and of y, at evenly spaced places from -1 to 1.
        last: those of the function between the hidden node and the output.
        hidden: the smallest and the largest value of the hidden node, where `last` begins and ends.
    """
    fig, ax = new_figure(width=6.4, height=3.4)
    _draw_network(
        ax,
        (2, 1, 1),
        lambda layer, o, i: last if layer else first[i],
        inputs=("x", "y"),
        output="output",
        box=(0.44, 0.6),
        ranges=lambda layer: hidden if layer else (-1, 1),
    )
    ax.set_ylim(0.35, 2.6)
    return fig


def mlp_and_kan() -> Figure:
    """An MLP and a KAN of shape [2, 3, 1], with what is learned in blue."""
    fig, (left, right) = new_figure(2, width=7.4, height=3.4)
    places = np.linspace(-1, 1, 40)
    left.set_title("MLP: a weight on each edge")
    _draw_network(
        left, (2, 3, 1), lambda *_: None, inputs=("x", "y"), node=np.tanh(2.5 * places).tolist()
    )
    right.set_title("KAN: a function on each edge")

    x = places
    inner = (
        (np.sin(np.pi * x), np.exp(1.5 * x), x**3 - 0.3 * x),
        (np.exp(-6 * (x + 0.2) ** 2), np.tanh(3 * x), x**2),
    )
    outer = (np.exp(1.5 * x), -(x**2), np.tanh(3 * x - 0.5))

    def curve(layer: int, o: int, i: int) -> list[float]:
        return (outer[i] if layer else inner[i][o]).tolist()

    _draw_network(right, (2, 3, 1), curve, inputs=("x", "y"), box=(0.28, 0.3))
    return fig


def adding_up(
    x: Sequence[float],
    pieces: Sequence[Sequence[float]],
    at: float,
    lo: float,
    hi: float,
    knots: Sequence[float] | None = None,
) -> Figure:
    """Bumps times their coefficients: side by side, and stacked to the edge's function.

    Args:
        x: places, ascending; the sum is drawn between lo and hi only.
        pieces: the values c_k B_k(x) of each bump, none of them negative.
        at: where to mark which bumps count.
        lo, hi: ends of the grid.
        knots: where the pieces of the grid meet.
    """
    fig, (top, bottom) = new_figure(1, 2, width=6.8, height=4.8, sharex=True, sharey=True)
    places, heights = np.asarray(x), np.asarray(pieces)
    shades = (*PALETTE[1:], "#6A4C93")
    colors = [shades[k % len(shades)] for k in range(len(heights))]
    column = int(np.abs(places - at).argmin())
    counting = [k for k, piece in enumerate(heights) if piece[column] > 0]
    for k, (piece, color) in enumerate(zip(heights, colors, strict=True)):
        top.fill_between(places, piece, color=color, alpha=0.3, lw=0)
        top.plot(places, piece, color=color, lw=1.6)
        peak = int(np.argmax(piece))
        label = f"$c_{k + 1}B_{k + 1}$"
        # beside the dotted line, not across it
        shift = -0.14 if 0 <= at - places[peak] < 0.1 else 0.0
        top.text(places[peak] + shift, piece[peak] + 0.02, label, color=color, ha="center")
    inside = (places >= lo) & (places <= hi)
    stack = heights[:, inside]
    bottom.stackplot(places[inside], *stack, colors=colors, alpha=0.5, lw=0)
    bottom.plot(places[inside], stack.sum(0), color=BLACK, lw=2.4)
    base = 0.0
    for k in counting:
        top.plot(at, heights[k, column], "o", ms=6, color=colors[k], mec="white", zorder=5)
        bottom.plot((at, at), (base, base + heights[k, column]), color=colors[k], lw=7, zorder=4)
        base += heights[k, column]
    bottom.plot(at, base, "o", ms=7, color=BLACK, zorder=5)
    titles = ("each bump times its coefficient", "stacked on the grid: the sum")
    for ax, title in ((top, titles[0]), (bottom, titles[1])):
        ax.axvline(at, color=BLACK, lw=0.9, ls=":", zorder=1)
        ax.axvspan(lo, hi, color="#f2f2f2", lw=0, zorder=0)
        ax.set_title(title)
        ax.set_xlim(places.min(), places.max())
    ceiling = 1.2 * max(float(heights.max()), float(stack.sum(0).max()))
    top.set_ylim(0, ceiling)
    bottom.set_xlabel("x (ticks: knots of the grid)")
    if knots is not None:
        bottom.set_xticks(knots)
    return fig


def layer_as_product(
    values: Sequence[Sequence[float]], coefficients: Sequence[Sequence[float]]
) -> Figure:
    """How a KAN layer's splines are one matrix product.

    Args:
        values: what each bump is at each input, (d_in, bumps).
        coefficients: (d_out, d_in * bumps).
    """
    heights, matrix = np.asarray(values, dtype=float), np.asarray(coefficients, dtype=float)
    (d_in, count), d_out = heights.shape, len(matrix)
    fig, ax = new_figure(width=7.6, height=2.9)
    colors = PALETTE[1:]

    def rows(y: float, cells: np.ndarray, largest: float) -> None:
        for column, cell in enumerate(cells.ravel()):
            i, gap = column // count, 0.5 * (column // count)
            strength = float(min(1.0, abs(cell) / largest))
            ax.add_patch(
                Rectangle(
                    (column + gap, y),
                    0.94,
                    0.94,
                    fc=(*to_rgb(colors[i]), 0.9 * strength),
                    ec=GREY,
                    lw=0.7,
                )
            )

    width = d_in * count + 0.5 * (d_in - 1)
    rows(d_out + 2.2, heights, 0.67)
    for i in range(d_in):
        middle = i * (count + 0.5) + count / 2
        ax.text(
            middle,
            d_out + 3.4,
            f"the {count} bumps at $x_{i + 1}$",
            ha="center",
            va="bottom",
            color=colors[i],
        )
    for o in range(d_out):
        y = d_out - 1 - o
        rows(y, matrix[o], float(np.abs(matrix).max()))
        for i in range(d_in):
            ax.text(
                i * (count + 0.5) + count / 2,
                y + 0.45,
                f"$c_{{{o + 1}{i + 1}k}}$",
                ha="center",
                va="center",
                bbox={"fc": "white", "ec": "none", "pad": 1.0},
            )
        ax.annotate(
            "",
            (width + 1.6, y + 0.47),
            (width + 0.3, y + 0.47),
            arrowprops={"arrowstyle": "->", "color": BLACK},
        )
        ax.text(width + 1.9, y + 0.45, f"$y_{o + 1}$", va="center")
    ax.text(-0.7, d_out + 2.67, f"{d_in * count} values", ha="right", va="center")
    ax.text(-0.7, d_out / 2, f"coefficients\n({d_out}, {d_in * count})", ha="right", va="center")
    ax.text(
        width / 2,
        d_out + 1.1,
        "each row below: multiply cell by cell, and add up",
        ha="center",
        va="center",
        color="#555555",
    )
    ax.set_xlim(-5.6, width + 3.2)
    ax.set_ylim(-0.3, d_out + 4.6)
    ax.axis("off")
    return fig


def theorem_network(inner: Sequence[Sequence[float]], outer: Sequence[Sequence[float]]) -> Figure:
    """The theorem's network for two inputs, [2, 5, 1], with its functions on its edges.

    Args:
        inner: values of the function of x and of that of y for each hidden node in turn.
        outer: values of the five outer functions.
    """
    fig, ax = new_figure(width=6.6, height=5.2)
    _draw_network(
        ax,
        (2, 5, 1),
        lambda layer, o, i: outer[i] if layer else inner[2 * o + i],
        inputs=("x", "y"),
        output="f(x, y)",
        box=(0.3, 0.36),
        colors=(BLACK, BLUE),
    )
    heads = (
        (0.55, "inner functions,\nthe same for all f"),
        (1.46, "outer functions,\nchosen for f"),
    )
    for (place, text), color in zip(heads, (BLACK, BLUE), strict=True):
        ax.text(place, 5.25, text, ha="center", va="bottom", color=color)
    ax.set_ylim(0.2, 5.9)
    return fig


def _draw_network(
    ax: Axes,
    sizes: Sequence[int],
    edge: Edge,
    inputs: Sequence[str],
    output: str = "",
    node: Sequence[float] | None = None,
    box: tuple[float, float] = (0.3, 0.3),
    colors: tuple[str, str] = (BLUE, BLUE),
    ranges: Callable[[int], tuple[float, float]] | None = None,
) -> None:
    """Nodes in columns, and an edge from each to all of the next column.

    Args:
        ax: where to draw.
        sizes: numbers of nodes.
        edge: gives what stands on the edge of a layer from i to o.
        inputs: names of the first nodes, from the top.
        output: what is written to the right of the last node.
        node: a function to draw in the hidden nodes; they hold a sum sign without it.
        box: width and height of the box around an edge's function.
        colors: of the two layers' functions.
        ranges: from where to where a layer's functions are drawn, to be written at their boxes.
    """
    tallest = max(sizes)
    heights = [_heights(size, tallest) for size in sizes]
    for layer in range(len(sizes) - 1):
        for i, start in enumerate(heights[layer]):
            for o, end in enumerate(heights[layer + 1]):
                values = edge(layer, o, i)
                line = {"color": colors[layer], "lw": 1.8} if values is None else {"color": GREY}
                ax.plot((layer, layer + 1), (start, end), zorder=1, **({"lw": 1.0} | line))
                if values is not None:
                    place = _place(sizes, layer, o, i)
                    center = (layer + place, start + place * (end - start))
                    _draw_box(ax, center, box, values, colors[layer])
                    if ranges is not None:
                        _write_ranges(ax, center, box, values, ranges(layer))
    for layer, places in enumerate(heights):
        ax.scatter(
            [layer] * len(places), places, s=430, color="white", edgecolor=BLACK, lw=1.2, zorder=4
        )
        for number, y in enumerate(places):
            if layer == 0:
                ax.text(layer, y, inputs[number], ha="center", va="center", zorder=5)
            elif node is not None and layer < len(sizes) - 1:
                u = np.linspace(-0.07, 0.07, len(node))
                ax.plot(layer + u, y + 0.09 * np.asarray(node), color=BLACK, lw=1.4, zorder=5)
            else:
                ax.text(layer, y, "Σ", ha="center", va="center", zorder=5)
    if output:
        ax.text(len(sizes) - 1 + 0.12, heights[-1][0], output, va="center")
    ax.set_xlim(-0.15, len(sizes) - 1 + (0.42 if output else 0.15))
    ax.set_ylim(0.45, tallest + 0.55)
    ax.axis("off")


def _heights(size: int, tallest: int) -> list[float]:
    """Where the nodes of a column are, from the top, in a network whose tallest column is that."""
    step = {2: 1.4, 3: 1.6}.get(tallest, 2.4) if size == 2 else 1.0
    return [(tallest + 1) / 2 + step * ((size - 1) / 2 - i) for i in range(size)]


def _place(sizes: Sequence[int], layer: int, o: int, i: int) -> float:
    """How far along an edge its function stands: on none of the other edges, beside all others."""
    middle = (sizes[1] - 1) / 2
    crosses = layer == 0 and (o > middle if i == 0 else o < middle)
    return 0.79 if crosses else 0.46


def _draw_box(
    ax: Axes,
    center: tuple[float, float],
    size: tuple[float, float],
    values: Sequence[float],
    color: str,
) -> None:
    """A function in a white box, scaled to fill it."""
    (x, y), (width, height) = center, size
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.04"
    ax.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, fc="white", ec=GREY, lw=0.9, zorder=2)
    )
    curve = np.asarray(values, dtype=float)
    spread = float(np.ptp(curve)) or 1.0
    scaled = (curve - (curve.max() + curve.min()) / 2) / spread
    u = np.linspace(-0.43, 0.43, len(curve)) * width
    ax.plot(x + u, y + 0.78 * height * scaled, color=color, lw=1.7, zorder=3)


def _write_ranges(
    ax: Axes,
    center: tuple[float, float],
    size: tuple[float, float],
    values: Sequence[float],
    ends: tuple[float, float],
) -> None:
    """What the edges of a box stand for: below it the ends of x, beside it those of the curve."""
    (x, y), (width, height) = center, size
    small: dict[str, Any] = {"fontsize": 9, "color": "#555555", "zorder": 3}
    label: dict[str, Any] = {"bbox": {"fc": "white", "ec": "none", "pad": 0.6}}
    for side, number in zip((-1, 1), ends, strict=True):
        place = x + side * 0.43 * width
        ax.text(place, y - height / 2 - 0.03, _short(number), ha="center", va="top", **small)
    for side, number in ((-1, min(values)), (1, max(values))):
        left, place = x - width / 2 - 0.03, y + side * 0.39 * height
        ax.text(left, place, _short(number), ha="right", va="center", **small, **label)


def _short(number: float) -> str:
    return f"{round(float(number), 1) + 0.0:g}".replace("-", "\N{MINUS SIGN}")

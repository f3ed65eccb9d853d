"""The drawings of chapter 6: the network, maps and a function, who shares it, memory."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from katlib.book import plot

GREY, PALE = "#8a8a8a", "#f1f1f1"
NODES = "white"
# two colours for groups, and one for a function that everybody shares
COLOURS = (plot.BLUE, plot.VERMILION, plot.PALETTE[3], plot.PALETTE[4])

INPUTS, OUTPUTS = 4, 3
# vertical places of inputs and outputs
INPUT_ROWS = (3.0, 2.0, 1.0, 0.0)
OUTPUT_ROWS = (2.5, 1.5, 0.5)
OUTPUT_PLACE = 2.6


def opening_network() -> Figure:
    """The network that learns, with a function on each late edge, and two shapes to be learned."""
    fig, (network, *shapes) = plot.new_figure(3, width=8.4, height=3.2, width_ratios=(3.2, 1, 1))
    _draw_network(network)
    u = np.linspace(-2.5, 2.5, 241)
    teacher = (
        ("a wave: $\\sin 3u$", np.sin(3 * u), plot.VERMILION),
        ("a bell: $e^{-2u^2}$", np.exp(-2 * u**2), plot.PALETTE[3]),
    )
    for ax, (title, values, color) in zip(shapes, teacher, strict=True):
        ax.plot(u, values, color=color)
        ax.set_title(title, loc="center", fontsize=10)
        ax.set(xticks=[], yticks=[], ylim=(-1.6, 1.6), box_aspect=1)
    return fig


def _draw_network(ax: Axes) -> None:
    ends, units = (3.0, 2.0, 1.0, 0.0), (3.3, 2.4, 1.5, -0.3)
    places = (0.0, 2.0, 5.6)
    for i, unit in enumerate(units):
        for o, end in enumerate(ends):
            ax.plot(places[:2], (end, unit), color=GREY, lw=0.8, zorder=1)
            ax.plot(places[1:], (unit, end), color=GREY, lw=0.8, zorder=1)
            # not all at the same place: edges cross in the middle
            along = (0.18, 0.34, 0.5, 0.66)[o]
            at = (places[1] + along * (places[2] - places[1]), unit + along * (end - unit))
            _function(ax, at, (i * len(ends) + o) / 15, plot.BLUE, half=0.15)
    names = ("x_0", "x_1", "x_2", "x_3"), ("", "", "", ""), ("y_0", "y_1", "y_2", "y_3")
    for place, rows, labels in zip(places, (ends, units, ends), names, strict=True):
        for y, label in zip(rows, labels, strict=True):
            ax.add_patch(Circle((place, y), 0.26, facecolor=NODES, edgecolor=plot.BLACK, zorder=3))
            ax.text(place, y, f"${label}$" if label else "", ha="center", va="center", zorder=4)
    ax.text(places[1], 0.6, "⋮", ha="center", va="center", fontsize=14)
    below = ("4 inputs", "64 units", "4 outputs")
    for place, text in zip(places, below, strict=True):
        ax.text(place, -0.95, text, ha="center", va="center", fontsize=10)
    ax.text(3.8, 3.85, "a function on each edge", ha="center", color=plot.BLUE, fontsize=10)
    ax.text(0.9, 3.85, "linear map", ha="center", fontsize=10)
    ax.set(xlim=(-0.8, 6.4), ylim=(-1.2, 4.2), aspect="equal")
    ax.axis("off")


def from_one_function() -> Figure:
    """A lopsided bump, and what a stretch, a height and two sums make of it."""
    fig, axes = plot.new_figure(4, width=8.4, height=2.2, sharex=True, sharey=True)
    x = np.linspace(-3, 3, 241)

    def shape(x):
        return (1 + 1.6 * x) / (1 + x**2 + x**4)

    panels = (
        ("stretch: $F(2x)$", shape(2 * x), plot.BLUE),
        ("height: $-0.5\\,F(x)$", -0.5 * shape(x), plot.BLUE),
        ("difference: $F(x) - F(-x)$", shape(x) - shape(-x), plot.VERMILION),
        ("sum: $F(x) + F(-x)$", shape(x) + shape(-x), plot.PALETTE[3]),
    )
    for ax, (title, values, color) in zip(axes, panels, strict=True):
        ax.plot(x, shape(x), color=GREY, lw=1.2, linestyle="--")
        ax.plot(x, values, color=color, lw=2)
        ax.set_title(title, loc="center", fontsize=10)
        ax.set(xticks=[], yticks=[])
    axes[0].text(1.1, 0.85, "$F(x)$", color=GREY)
    return fig


def ways_to_share(panels: Sequence[tuple[str, str, str]]) -> Figure:
    """A layer from 4 to 3 channels with functions on its edges, its channels, and two groups.

    Args:
        panels: three times a title, a line on the functions, and a line on the parameters.
    """
    fig, axes = plot.new_figure(len(panels), width=8.4, height=3.7)
    for ax, draw, (title, functions, parameters) in zip(
        axes, (_on_edges, _on_channels, _in_groups), panels, strict=True
    ):
        ax.set(xlim=(-0.5, 3.0), ylim=(-1.75, 4.0), aspect="equal")
        ax.axis("off")
        draw(ax)
        _nodes(ax)
        ax.text(1.25, 3.8, title, ha="center", va="center", weight="bold")
        ax.text(1.25, -0.85, functions, ha="center", va="center", color=plot.BLUE)
        ax.text(1.25, -1.4, parameters, ha="center", va="center")
    return fig


def _nodes(ax: Axes) -> None:
    for i, y in enumerate(INPUT_ROWS):
        ax.add_patch(Circle((0, y), 0.26, facecolor=NODES, edgecolor=plot.BLACK, zorder=3))
        ax.text(0, y, f"$x_{i}$", ha="center", va="center", zorder=4)
    for o, y in enumerate(OUTPUT_ROWS):
        at = (OUTPUT_PLACE, y)
        ax.add_patch(Circle(at, 0.26, facecolor=NODES, edgecolor=plot.BLACK, zorder=3))
        ax.text(*at, f"$y_{o}$", ha="center", va="center", zorder=4)


def _on_edges(ax: Axes) -> None:
    """A function, as a small wave, on each of the 12 edges."""
    for i, start in enumerate(INPUT_ROWS):
        for o, end in enumerate(OUTPUT_ROWS):
            ax.plot((0, OUTPUT_PLACE), (start, end), color=GREY, lw=0.8, zorder=1)
            # not all at the same place: edges cross in the middle
            along = (0.24, 0.42, 0.60)[o]
            at = (along * OUTPUT_PLACE, start + along * (end - start))
            _function(ax, at, (i * OUTPUTS + o) / 11, plot.BLUE, half=0.16)
            _weight(ax, (0, start), (OUTPUT_PLACE, end))


def _on_channels(ax: Axes) -> None:
    for i, y in enumerate(INPUT_ROWS):
        _weights(ax, y)
        _function(ax, (0.8, y), i / 3, plot.BLUE, half=0.25)


def _in_groups(ax: Axes) -> None:
    for i, y in enumerate(INPUT_ROWS):
        _weights(ax, y)
        _function(ax, (0.8, y), i // 2, COLOURS[i // 2], half=0.25)
    for group in range(2):
        bottom = INPUT_ROWS[2 * group + 1] - 0.4
        color = COLOURS[group]
        box = Rectangle((-0.4, bottom), 1.58, 1.8, facecolor=color, alpha=0.12, zorder=0)
        ax.add_patch(box)


def _weights(ax: Axes, y: float) -> None:
    """From an input to its function, and from there an edge to each output."""
    ax.plot((0, 0.8), (y, y), color=GREY, lw=0.8, zorder=1)
    for end in OUTPUT_ROWS:
        ax.plot((0.8, OUTPUT_PLACE), (y, end), color=GREY, lw=0.8, zorder=1)
        _weight(ax, (0.8, y), (OUTPUT_PLACE, end))


def _weight(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A dot on an edge, not far from its output."""
    place = OUTPUT_PLACE - 0.52
    along = (place - start[0]) / (end[0] - start[0])
    ax.plot(place, start[1] + along * (end[1] - start[1]), "o", color=plot.BLACK, ms=3.5, zorder=5)


def _function(ax: Axes, at: tuple[float, float], kind: float, color: str, half: float) -> None:
    """A box with a curve; `kind`, from 0 to 1, is which."""
    x, y = at
    corner = (x - half, y - half)
    size = 2 * half
    ax.add_patch(Rectangle(corner, size, size, facecolor="white", edgecolor=color, zorder=3))
    t = [k / 20 for k in range(-20, 21)]
    curve = [(1 - kind) * (s**3 - 0.1) + kind * (0.9 - 1.6 * abs(s) ** (1 + kind)) for s in t]
    places = [x + 0.75 * half * s for s in t]
    ax.plot(places, [y + 0.6 * half * v for v in curve], color=color, lw=1.3, zorder=4)


def memory(tokens: int, channels: int, groups: int, group_of: Callable[[int], int]) -> Figure:
    """The values of some tokens as they lie in memory, coloured by group, over the coefficients.

    Args:
        tokens, channels: how many are drawn.
        groups: number of groups.
        group_of: the group of a channel.
    """
    fig, ax = plot.new_figure(width=7.4, height=2.7)
    width = 1.0
    for token in range(tokens):
        first = token * channels
        for i in range(channels):
            color = COLOURS[group_of(i)]
            place = ((first + i) * width, 0)
            ax.add_patch(
                Rectangle(place, width, 1.2, facecolor=color, alpha=0.3, edgecolor="white", lw=1.5)
            )
            ax.text(place[0] + 0.5, 0.6, str(i), ha="center", va="center", fontsize=10)
        middle = (first + channels / 2) * width
        ax.plot((first + 0.1, first + channels - 0.1), (-0.3, -0.3), color=plot.BLACK, lw=1)
        ax.text(middle, -0.75, f"token {token}", ha="center", va="center")
    for token in range(tokens):
        for group in range(groups):
            members = [i for i in range(channels) if group_of(i) == group]
            middle = token * channels + (members[0] + members[-1] + 1) / 2
            row = (group + 0.5) * tokens * channels / groups
            color = COLOURS[group]
            look = {"arrowstyle": "-|>", "color": color, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (middle, 1.25), (row, 2.6), arrowprops=look)
    for group in range(groups):
        row = (group + 0.5) * tokens * channels / groups
        color = COLOURS[group]
        half = 0.42 * tokens * channels / groups
        ax.add_patch(
            Rectangle((row - half, 2.6), 2 * half, 0.95, facecolor="white", edgecolor=color)
        )
        text = f"coefficients of group {group}"
        ax.text(row, 3.07, text, ha="center", va="center", color=color, fontsize=10)
    ax.set(xlim=(-0.3, tokens * channels + 0.3), ylim=(-1.1, 3.8))
    ax.axis("off")
    return fig

"""The diagrams of chapter 1: what a network learns, how copies make a shape, what a unit costs."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor
from torch.nn import functional as F

from katlib.book.plot import BLACK, BLUE, PALETTE, VERMILION, new_figure

GREY = "#999999"

# height of the nodes of each layer
LAYERS = ((1.5, 3.5), (0.7, 1.9, 3.1, 4.3), (2.5,))
# width of a node's circle and of the curve in it, of which the layers are 2 apart
RADIUS = 0.42


def two_networks(learned: Tensor) -> Figure:
    """A network with a fixed activation beside the same with a learned one; learned is blue.

    Args:
        learned: values of the learned activation on [-3, 3], evenly spaced.
    """
    fig, axes = new_figure(2, width=7.6, height=3.9)
    x = torch.linspace(-3, 3, len(learned))
    gelu = F.gelu(x)
    _draw_network(axes[0], gelu, BLACK)
    _draw_network(axes[1], learned, BLUE, start=gelu)
    axes[0].set_title("Fixed activation")
    axes[1].set_title("Learned activation")
    axes[0].text(2, 5.15, "GELU in each unit,\ngiven", color=BLACK, ha="center", va="bottom")
    axes[1].text(
        2,
        5.15,
        "one function for all units,\nten coefficients",
        color=BLUE,
        ha="center",
        va="bottom",
    )
    for ax in axes:
        ax.text(0.95, -0.1, "weights", color=BLUE, ha="center", va="top")
        ax.text(3.05, -0.1, "weights", color=BLUE, ha="center", va="top")
    return fig


def _draw_network(ax: Axes, function: Tensor, color: str, start: Tensor | None = None) -> None:
    """Two inputs, four hidden units that hold `function`, one output; edges are learned."""
    edges = [(0, a, b) for a in LAYERS[0] for b in LAYERS[1]]
    edges += [(1, a, b) for a in LAYERS[1] for b in LAYERS[2]]
    for layer, a, b in edges:
        ax.plot((2 * layer, 2 * layer + 2), (a, b), color=BLUE, linewidth=1.1, zorder=1)
    places = np.linspace(-0.27, 0.27, len(function))
    for layer, heights in enumerate(LAYERS):
        for height in heights:
            ax.add_patch(_circle(2 * layer, height))
            if layer == 1:
                if start is not None:
                    curve = height + _shape(start)
                    ax.plot(2 + places, curve, ":", color=GREY, linewidth=1.2, zorder=3)
                curve = height + _shape(function)
                ax.plot(2 + places, curve, color=color, linewidth=2, zorder=4)
    for height, name in zip(LAYERS[0], ("x₂", "x₁"), strict=True):
        ax.text(0, height, name, ha="center", va="center", zorder=3)
    ax.text(4, LAYERS[2][0], "y", ha="center", va="center", zorder=3)
    ax.set(xlim=(-0.6, 4.6), ylim=(-0.7, 6.2), aspect="equal")
    ax.axis("off")


def _circle(x: float, y: float) -> Circle:
    return Circle((x, y), RADIUS, facecolor="white", edgecolor=BLACK, linewidth=1.2, zorder=2)


def _shape(values: Tensor) -> np.ndarray:
    """The values, moved and scaled so that they fill a node."""
    low, high = values.min(), values.max()
    return (0.42 * (values - low) / (high - low) - 0.2).numpy()


def copies(x: Tensor, pieces: Mapping[str, Tensor], target: Tensor) -> Figure:
    """Scaled and shifted copies of an activation on the left, their sum on the right.

    Args:
        x: places.
        pieces: maps labels to the values of the copies.
        target: what the sum should follow.
    """
    fig, (left, right) = new_figure(2, width=8.4, height=3.5)
    for (label, piece), color in zip(pieces.items(), PALETTE[2:], strict=False):
        left.plot(x, piece, color=color)
        left.annotate(
            label,
            (x[-1], piece[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            color=color,
            va="center",
            annotation_clip=False,
        )
    right.plot(x, target, color=BLACK, linewidth=6, alpha=0.22)
    right.plot(x, sum(pieces.values()), color=BLACK)
    right.text(0.32, 0.72, "the bump", color=GREY, va="center")
    right.text(0.45, 0.42, "the sum", color=BLACK, va="center")
    left.set(title="Three copies of GELU", xlabel="x")
    right.set(title="Their sum", xlabel="x", ylim=(-0.3, 1.2))
    return fig


def prices(units: Mapping[str, int], function: int) -> Figure:
    """What one hidden unit costs in several networks, against the price of a learned function.

    Args:
        units: maps networks to the parameters of a hidden unit.
        function: the number of coefficients of the function.
    """
    fig, ax = new_figure(width=7.0, height=0.9 + 0.5 * len(units))
    rows = range(len(units))
    ax.plot(list(units.values()), rows, "o", color=BLACK, markersize=8)
    for row, price in zip(rows, units.values(), strict=True):
        ax.annotate(
            f"{price}", (price, row), xytext=(8, 0), textcoords="offset points", va="center"
        )
    ax.axvline(function, color=BLUE, zorder=1)
    ax.text(function * 1.12, -0.72, f"a learned function: {function}", color=BLUE, va="center")
    ax.set_yticks(rows, list(units))
    ax.set(xscale="log", xlim=(1, 2 * max(units.values())), ylim=(len(units) - 0.5, -1))
    ax.set_xticks((1, 10, 100), ("1", "10", "100"))
    ax.minorticks_off()
    ax.set_xlabel("parameters of one hidden unit (logarithmic axis)")
    ax.grid(axis="y", visible=False)
    return fig


def errors_by_parameters(
    panels: Mapping[str, Mapping[str, tuple[Sequence[int], Tensor]]],
) -> Figure:
    """The errors of several networks against their numbers of parameters, a panel for each target.

    Args:
        panels: maps a target to its lines; a line's name to its numbers of parameters and to the
            errors (sizes, networks).
    """
    fig, axes = new_figure(len(panels), width=10.0, height=3.7, sharey=True)
    for ax, (title, lines) in zip(axes, panels.items(), strict=True):
        _draw_errors(ax, lines)
        ax.set_title(title)
        ax.set_xlabel("parameters")
    axes[0].set_ylabel("relative error")
    # the lines have the same colours in all panels: the names are written once, where there is room
    axes[len(axes) // 2].legend(loc="lower left", frameon=False, fontsize=10)
    return fig


def _draw_errors(ax: Axes, lines: Mapping[str, tuple[Sequence[int], Tensor]]) -> None:
    styles = {
        "GELU": (BLACK, "o", "-"),
        "ReLU": (VERMILION, "^", "--"),
        "tanh": (PALETTE[3], "s", "--"),
        "learned": (BLUE, "D", "-"),
    }
    for name, (sizes, errors) in lines.items():
        color, marker, dashes = styles[name]
        middle = errors.median(1).values
        is_compared = dashes == "-"
        if is_compared:
            low, high = errors.quantile(0.25, dim=1), errors.quantile(0.75, dim=1)
            ax.fill_between(sizes, low, high, color=color, alpha=0.13, linewidth=0)
        ax.plot(
            sizes,
            middle,
            color=color,
            marker=marker,
            markersize=5,
            linestyle=dashes,
            label=name,
            linewidth=2.2 if is_compared else 1.2,
            zorder=3 if is_compared else 2,
        )
    ax.set(xscale="log", yscale="log", ylim=(6e-3, 1.5))
    ticks = (4, 10, 25, 50, 100)
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_yticks((0.01, 0.1, 1), ("0.01", "0.1", "1"))
    ax.minorticks_off()

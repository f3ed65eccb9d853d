"""The diagrams of chapter 1: what a network learns, how copies make a shape, what KAT replaces."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from torch import Tensor
from torch.nn import functional as F

from katlib.book.plot import BLACK, BLUE, PALETTE, VERMILION, new_figure

GREY = "#999999"

# height of the nodes of each layer
LAYERS = ((2.5,), (0.7, 1.9, 3.1, 4.3), (2.5,))
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
        "one function F for all units,\nten coefficients",
        color=BLUE,
        ha="center",
        va="bottom",
    )
    for ax in axes:
        ax.text(0.95, -0.1, "weights", color=BLUE, ha="center", va="top")
        ax.text(3.05, -0.1, "weights", color=BLUE, ha="center", va="top")
    return fig


def _draw_network(ax: Axes, function: Tensor, color: str, start: Tensor | None = None) -> None:
    """One input, four hidden units that hold `function`, one output; edges are learned."""
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
    ax.text(0, LAYERS[0][0], "x", ha="center", va="center", zorder=3)
    ax.text(4, LAYERS[2][0], "y", ha="center", va="center", zorder=3)
    ax.set(xlim=(-0.6, 4.6), ylim=(-0.7, 6.2), aspect="equal")
    ax.axis("off")


def _circle(x: float, y: float) -> Circle:
    return Circle((x, y), RADIUS, facecolor="white", edgecolor=BLACK, linewidth=1.2, zorder=2)


def _shape(values: Tensor) -> np.ndarray:
    """The values, moved and scaled so that they fill a node."""
    low, high = values.min(), values.max()
    return (0.42 * (values - low) / (high - low) - 0.2).numpy()


def copies(
    x: Tensor, networks: Mapping[str, tuple[Mapping[str, Tensor], Tensor]], target: Tensor
) -> Figure:
    """Scaled and shifted copies of an activation on the left, their sum on the right.

    Args:
        x: places.
        networks: maps a title to a network, a row of panels for each: its copies, as a map from
            labels to values, and its output, the sum of the copies and of a constant.
        target: what the sums should follow.
    """
    fig, axes = new_figure(2, len(networks), width=8.4, height=2.9 * len(networks), sharex=True)
    rows = zip(np.atleast_2d(axes), networks.items(), strict=True)
    for (left, right), (title, (pieces, output)) in rows:
        _draw_pieces(left, x, pieces)
        left.set_title(title)
        right.plot(x, target, color=BLACK, linewidth=6, alpha=0.22)
        right.plot(x, output, color=BLACK)
        right.text(0.32, 0.72, "the bump", color=GREY, va="center")
        right.text(0.45, 0.42, "the sum", color=BLACK, va="center")
        right.set(title="Their sum", ylim=(-0.3, 1.2))
    for ax in (left, right):
        ax.set_xlabel("x")
    return fig


def _draw_pieces(ax: Axes, x: Tensor, pieces: Mapping[str, Tensor]) -> None:
    """The curves of the copies, each labelled at its right end."""
    for (label, piece), color in zip(pieces.items(), PALETTE[2:], strict=False):
        ax.plot(x, piece, color=color)
        ax.annotate(
            label,
            (float(x[-1]), float(piece[-1])),
            xytext=(6, 0),
            textcoords="offset points",
            color=color,
            va="center",
            annotation_clip=False,
        )


def block() -> Figure:
    """A block of a Vision Transformer and KAT's MLP for it; learned functions are blue."""
    fig, ax = new_figure(width=8.4, height=3.9)
    _draw_box(ax, 0.0, 2.9, 1.5, "tokens,\n192 channels", GREY)
    _draw_box(ax, 2.0, 2.9, 1.5, "attention", BLACK)
    _draw_box(ax, 4.0, 2.9, 1.5, "MLP", BLACK)
    for start in (1.5, 3.5, 5.5):
        _draw_arrow(ax, start, 2.9, 0.5)
    title = "one of the 12 blocks (shortcuts and norms left out)"
    ax.text(2.75, 3.75, title, ha="center", va="center")
    there, back = "linear\n192 → 768", "linear\n768 → 192"
    starts = "8 functions,\nstart as x", "8 functions,\nstart as swish"
    rows = {
        "ViT's MLP": (1.1, (there, "GELU", back)),
        "KAT's MLP": (-0.4, (starts[0], there, starts[1], back)),
    }
    for name, (y, parts) in rows.items():
        x = 2.0 if len(parts) == 3 else 0.0
        ax.text(-0.25, y, name, ha="right", va="center")
        for part in parts:
            is_function = part.startswith("8")
            _draw_box(ax, x, y, 1.5, part, BLUE if is_function else BLACK, is_function)
            if part != parts[-1]:
                _draw_arrow(ax, x + 1.5, y, 0.5)
            x += 2.0
    for end in (0.0, 7.5):
        start = 4.0 if end == 0 else 5.5
        ax.plot((start, end), (2.5, 1.6), ":", color=GREY, linewidth=1.2)
    ax.set(xlim=(-1.9, 7.7), ylim=(-1.0, 4.0))
    ax.axis("off")
    return fig


def _draw_box(
    ax: Axes, x: float, y: float, width: float, text: str, color: str, filled: bool = False
) -> None:
    face = "#dcebf6" if filled else "white"
    box = Rectangle((x, y - 0.4), width, 0.8, facecolor=face, edgecolor=color, linewidth=1.4)
    ax.add_patch(box)
    ax.text(x + width / 2, y, text, ha="center", va="center", color=color, fontsize=10.5)


def _draw_arrow(ax: Axes, x: float, y: float, length: float) -> None:
    arrow = {"arrowstyle": "->", "color": BLACK, "linewidth": 1.2}
    ax.annotate("", (x + length, y), (x, y), arrowprops=arrow)


def errors_by_parameters(
    panels: Mapping[str, Mapping[str, tuple[Sequence[int], Tensor]]],
) -> Figure:
    """The errors of several networks against their numbers of parameters, a panel for each target.

    Args:
        panels: maps a target to its lines; a line's name to its numbers of parameters and to the
            errors (sizes, networks).
    """
    fig, axes = new_figure(len(panels), width=9.6, height=3.9, sharey=True)
    for ax, (title, lines) in zip(axes, panels.items(), strict=True):
        _draw_errors(ax, lines)
        ax.set_title(title)
        ax.set_xlabel("parameters")
    axes[0].set_ylabel("relative error")
    # the lines have the same colours in all panels: the names are written once
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return fig


def _draw_errors(ax: Axes, lines: Mapping[str, tuple[Sequence[int], Tensor]]) -> None:
    """A faint dot for each network, beside the others of its size; a line through the medians."""
    styles = {
        "GELU": (BLACK, "o", "-"),
        "ReLU": (VERMILION, "^", "--"),
        "tanh": (PALETTE[3], "s", "--"),
        "learned": (BLUE, "D", "-"),
    }
    for place, (name, (_, errors)) in enumerate(lines.items()):
        color, marker, dashes = styles[name]
        x = np.arange(len(errors)) + 0.17 * (place - 1.5)
        ax.plot(x, errors, ".", color=color, alpha=0.35, markersize=5, zorder=2)
        middle = [statistics.median(row) for row in errors.tolist()]
        ax.plot(
            x,
            middle,
            color=color,
            marker=marker,
            markersize=6,
            linestyle=dashes,
            label=name,
            linewidth=1.8,
            zorder=3,
        )
    sizes = zip(lines["GELU"][0], lines["learned"][0], strict=True)
    ticks = [f"{fixed} or {learned}" for fixed, learned in sizes]
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set(yscale="log", ylim=(2e-3, 1.5))
    ax.set_yticks((0.01, 0.1, 1), ("0.01", "0.1", "1"))
    ax.minorticks_off()

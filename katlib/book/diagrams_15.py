"""The drawings of chapter 15: a conversion, where a fit is right, and what a conversion costs."""

from collections.abc import Callable, Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from katlib.book import plot

Function = Callable[[Tensor], Tensor]

BLACK, BLUE, VERMILION = plot.PALETTE[:3]
GREY, PALE, PALE_BLUE = "#8a8a8a", "#f1f1f1", "#e3eef6"
COPIED, NEW = (PALE, GREY), (PALE_BLUE, BLUE)
BOX_HEIGHT = 1.5


def conversion(before: Function, after: Function) -> Figure:
    """The path of a token through an MLP, and through the GR-KAN that takes its place.

    Args:
        before: the activation.
        after: the rational function that was fitted to it.
    """
    fig, ax = plot.new_figure(width=8.4, height=3.7)
    ax.set(xlim=(0, 10.4), ylim=(0.35, 4.95), aspect="equal")
    ax.set_axis_off()
    for y, title in ((3.6, "ViT"), (1.25, "KAT")):
        ax.text(0.0, y, title, va="center", weight="bold")
    _path(ax, 3.6, {4.3: "$W_1, c_1$", 8.3: "$W_2, c_2$"}, {6.3: (before, "GELU", COPIED)})
    identity = (lambda x: x, "$F_1$: the identity", NEW)
    fitted = (after, "$F_2$: fitted to GELU", NEW)
    _path(ax, 1.25, {4.3: "$W_1, c_1$", 8.3: "$W_2, c_2$"}, {2.3: identity, 6.3: fitted})
    ax.plot((0.8, 0.8, 1.5, 1.5), (1.1, 1.0, 1.0, 1.1), color=BLACK, linewidth=1)
    ax.text(0.85, 0.92, "input kept\nfor backward", ha="center", va="top", fontsize=10)
    for x in (4.3, 8.3):
        ax.annotate(
            "",
            (x, 1.25 + BOX_HEIGHT / 2),
            xytext=(x, 3.6 - BOX_HEIGHT / 2),
            arrowprops={"arrowstyle": "-|>", "color": GREY, "linestyle": "--"},
        )
        ax.text(x + 0.15, 2.43, "copied", va="center", color=GREY, fontsize=10)
    return fig


def _path(
    ax: Axes,
    y: float,
    maps: Mapping[float, str],
    functions: Mapping[float, tuple[Function, str, tuple[str, str]]],
) -> None:
    """A token's way from left to right: linear maps and functions by their places."""
    line = {"arrowstyle": "-|>", "color": BLACK, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (10.2, y), xytext=(0.8, y), arrowprops=line, zorder=1)
    ax.text(0.8, y + 0.15, "token", fontsize=10)
    for x, text in maps.items():
        _box(ax, x, y, *COPIED)
        ax.text(x, y, text, ha="center", va="center", zorder=3)
    for x, (function, title, colors) in functions.items():
        _box(ax, x, y, *colors)
        places = torch.linspace(-3, 3, 61, dtype=torch.float64)
        ax.plot(x + 0.2 * places, y + 0.2 * function(places), color=BLUE, zorder=3)
        ax.text(x, y + BOX_HEIGHT / 2 + 0.12, title, ha="center", va="bottom", fontsize=10)


def _box(ax: Axes, x: float, y: float, color: str, edge: str) -> None:
    corner = (x - 0.75, y - BOX_HEIGHT / 2)
    shape = "round,pad=0,rounding_size=0.12"
    ax.add_patch(
        FancyBboxPatch(
            corner, 1.5, BOX_HEIGHT, boxstyle=shape, facecolor=color, edgecolor=edge, zorder=2
        )
    )


def where_inputs_fall(
    inputs: Tensor, target: Function, fits: Mapping[str, Function], limit: float = 1.0
) -> Figure:
    """How often an activation is given which input, over the errors of fits there.

    Args:
        inputs: what the activation is given, of any shape.
        target: the activation.
        fits: up to three rational functions by their labels.
        limit: of the errors' axis.
    """
    fig, (counts, errors) = plot.new_figure(1, 2, width=8.4, height=4.6, sharex=True)
    inputs = inputs.flatten().double()
    reach = 1.05 * inputs.abs().max().item()
    counts.hist(inputs.numpy(), bins=80, range=(-reach, reach), color=GREY)
    counts.set(yscale="log", ylabel="inputs")
    x = torch.linspace(-reach, reach, 601, dtype=torch.float64)
    lines = {}
    for color, (label, fit) in zip((VERMILION, BLACK, BLUE), fits.items()):
        error = fit(x) - target(x)
        error[error.abs() > limit] = torch.nan
        (lines[label],) = errors.plot(x, error, color=color)
    errors.axhline(0, color=BLACK, linewidth=0.8)
    errors.set(xlabel="input of the activation", ylabel="F(x) − GELU(x)", ylim=(-limit, limit))
    fig.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=len(lines))
    return fig


def costs(sizes: Mapping[str, Mapping[str, float]]) -> Figure:
    """By how much one model costs more than another, as bars.

    Args:
        sizes: for each size of the models, by the name of a quantity, how much more of it there
            is: 0.01 is one percent.
    """
    fig, axes = plot.new_figure(len(sizes), width=8.4, height=2.1, sharex=True, sharey=True)
    for ax, (title, quantities) in zip(axes, sizes.items()):
        bars = ax.barh(list(quantities), list(quantities.values()), color=BLUE, height=0.6)
        written = [
            f"{value:+.2%}" if value < 5e-4 else f"{value:+.1%}" for value in bars.datavalues
        ]
        ax.bar_label(bars, written, padding=4, fontsize=10)
        ax.set(title=title, xticks=[], xlim=(0, 1.4 * max(quantities.values())))
        ax.grid(visible=False)
        ax.spines["bottom"].set_visible(False)
        ax.tick_params(length=0)
    axes[0].invert_yaxis()
    return fig

"""The diagrams of chapter 7: one output as a random sum, the cobweb of the variance map, an MLP."""

from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from katlib.book import plot

BLACK, BLUE, VERMILION, GREEN = plot.PALETTE[:4]
GREY = "#a0a0a0"
SHOWN_SUMS = 12


def random_sum(terms: Tensor) -> Figure:
    """How outputs of a layer arise: a neuron, its running sum, and the histogram of all sums.

    Args:
        terms: w_oi F(x_i), (outputs, d_in). The envelope is two standard deviations of a sum of as
            many independent terms of this mean square.
    """
    fig, (neuron, walk, share) = plot.new_figure(
        3, width=8.4, height=3.5, gridspec_kw={"width_ratios": [1.25, 1.8, 0.8]}
    )
    _draw_neuron(neuron, terms[0])
    sums = torch.cat([torch.zeros(len(terms), 1), terms], 1).cumsum(1)
    count = torch.arange(sums.shape[1])
    deviation = (terms.square().mean() * count).sqrt()
    for line in sums[1:SHOWN_SUMS]:
        walk.plot(count, line, color=GREY, linewidth=0.9)
    walk.plot(count, sums[0], color=BLACK, linewidth=1.8)
    for sign in (-2, 2):
        walk.plot(count, sign * deviation, color=GREEN, linestyle="--")
    limit = 4 * deviation[-1].item()
    walk.set(xlabel="terms added so far", ylim=(-limit, limit), xlim=(0, len(count) - 1))
    walk.set_title("adding its terms one by one", fontsize=11)
    above = 0.7 * limit
    walk.text(0.03 * len(count), above, "±2 predicted std of the sum", color=GREEN, fontsize=10)
    share.hist(sums[:, -1], bins=16, density=True, orientation="horizontal", color=GREY)
    y = torch.linspace(-limit, limit, 101)
    normal = torch.distributions.Normal(0.0, deviation[-1])
    share.plot(normal.log_prob(y).exp(), y, color=GREEN)
    share.set(ylim=(-limit, limit), xticks=[])
    share.tick_params(labelleft=False)
    share.set_title(f"{len(terms):,} outputs", fontsize=11)
    return fig


def _draw_neuron(ax: Axes, terms: Tensor) -> None:
    """The first inputs and the last one, with arrows to their sum as wide as their terms."""
    rows = [("1", 0), ("2", 1), ("3", 2), ("4", 3), (r"d_{in}", -1)]
    largest = max(abs(terms[index].item()) for _, index in rows)
    places = [4.6, 3.6, 2.6, 1.6, 0.0]
    for (name, index), y in zip(rows, places):
        term = terms[index].item()
        color = VERMILION if term > 0 else BLUE
        arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 0.8 + 4 * abs(term) / largest}
        arrow |= {"shrinkA": 2, "shrinkB": 15}
        ax.annotate("", (3.0, 2.3), xytext=(0.95, y), arrowprops=arrow)
        ax.text(0.85, y, f"$F(x_{{{name}}})$", ha="right", va="center")
    ax.text(0.45, 0.8, "⋮", ha="center", va="center")
    ax.plot(3.0, 2.3, "o", markersize=25, color="white", markeredgecolor=BLACK)
    ax.text(3.0, 2.28, "+", ha="center", va="center", fontsize=15)
    ax.annotate("", (4.1, 2.3), xytext=(3.0, 2.3), arrowprops={"arrowstyle": "-|>", "shrinkA": 13})
    ax.text(4.15, 2.3, "$y_o$", va="center")
    ax.text(2.5, 4.6, r"term $w_{oi}\,F(x_i)$:", fontsize=10)
    ax.text(2.5, 4.05, "positive", color=VERMILION, fontsize=10)
    ax.text(2.5, 3.5, "negative", color=BLUE, fontsize=10)
    ax.set(xlim=(-0.5, 4.9), ylim=(-0.5, 5.1))
    ax.set_axis_off()
    ax.set_title("one output", fontsize=11)


def cobweb(
    maps: Mapping[str, Callable[[float], float]],
    starts: Mapping[str, Sequence[float]],
    steps: int = 10,
    limit: float = 3.0,
) -> Figure:
    """Iterations q, m(q), m(m(q)), ... as staircases, and below them the factor m(q) / q.

    Args:
        maps: the map m of each panel, by the panel's title.
        starts: the values of q from which a panel's staircases start, by its title; red above 1
            and blue below.
        steps: of a staircase, which ends early where it leaves the panel.
        limit: of both axes.
    """
    ratios = {"height_ratios": [4.2, 1.3]}
    size = {"width": 4.2 * len(maps), "height": 6.5}
    fig, axes = plot.new_figure(len(maps), 2, squeeze=False, gridspec_kw=ratios, **size)
    for ax, below, (title, m) in zip(*axes, maps.items()):
        _draw_cobweb(ax, m, starts[title], steps, limit)
        _draw_factor(below, m, limit)
        ax.set_title(title, fontsize=11)
    axes[0][0].set_ylabel("m(q), after the layer")
    axes[1][0].set_ylabel("m(q) / q")
    first, place = next(iter(maps.values())), 0.68 * limit
    axes[0][0].text(place, first(place) - 0.04 * limit, "m(q)", va="top")
    return fig


def _draw_cobweb(
    ax: Axes, m: Callable[[float], float], starts: Sequence[float], steps: int, limit: float
) -> None:
    grid = torch.linspace(0, limit, 61).tolist()
    ax.grid(visible=False)
    ax.plot((0, limit), (0, limit), color=BLACK, linewidth=1, linestyle="--")
    ax.plot(grid, [m(q) for q in grid], color=BLACK, linewidth=1.2)
    for start in starts:
        _draw_staircase(ax, m, start, steps, limit)
    ax.set(xlim=(0, limit), ylim=(0, limit), xlabel="q before the layer")
    ax.set_aspect("equal")
    ax.text(0.75 * limit, 0.67 * limit, "m = q")
    ax.text(0.08 * limit, 0.92 * limit, "start above 1", color=VERMILION)
    ax.text(0.08 * limit, 0.85 * limit, "start below 1", color=BLUE)


def _draw_factor(ax: Axes, m: Callable[[float], float], limit: float) -> None:
    """m(q) / q, blue below 1 and red above it."""
    q = torch.linspace(0.01 * limit, limit, 199)
    factor = torch.tensor([m(value) / value for value in q.tolist()])
    ax.axhline(1, color=BLACK, linewidth=1, linestyle="--")
    ax.plot(q, factor, color=BLACK, linewidth=1.2)
    ax.fill_between(
        q, 1, factor, where=(factor > 1).tolist(), color=VERMILION, alpha=0.3, linewidth=0
    )
    ax.fill_between(q, 1, factor, where=(factor < 1).tolist(), color=BLUE, alpha=0.3, linewidth=0)
    ax.set(xlim=(0, limit), ylim=(0.4, 1.8), xlabel="q before the layer")
    ax.text(0.97 * limit, 1.5, "red: q grows", color=VERMILION, ha="right", fontsize=10)
    ax.text(0.03 * limit, 0.5, "blue: q shrinks", color=BLUE, fontsize=10)


def _draw_staircase(
    ax: Axes, m: Callable[[float], float], start: float, steps: int, limit: float
) -> None:
    color = VERMILION if start > 1 else BLUE
    q, corners = start, [(start, 0.0)]
    for _ in range(steps):
        if q > limit:
            break
        after = m(q)
        corners += [(q, after), (after, after)]
        q = after
    ax.plot(*zip(*corners), color=color, linewidth=2)
    ax.plot(start, 0, "o", color=color, markersize=8, clip_on=False, zorder=4)
    if q <= limit:
        ax.plot(q, q, "s", color=color, markersize=7, clip_on=False, zorder=4)


def mlp(parts: Sequence[str], strengths: Mapping[str, Sequence[float]]) -> Figure:
    """An MLP beside the residual stream, and what is left of the signal after each of its parts.

    Args:
        parts: the names of the boxes.
        strengths: by the name of a start, the RMS after each part. The first start is the right
            one.
    """
    fig, ax = plot.new_figure(width=8.4, height=2.7)
    stream, boxes, step = 2.0, 1.0, 1.75
    end = step * len(parts)
    line = {"arrowstyle": "-|>", "color": BLACK, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (end + 0.9, stream), xytext=(-1.7, stream), arrowprops=line | {"linewidth": 3})
    ax.text(-1.7, stream + 0.15, "residual stream", fontsize=10)
    # down from the stream, through the boxes, and up to the sum
    ax.plot((-1.1, -1.1), (stream, boxes), color=BLACK, linewidth=1.2)
    ax.annotate("", (-0.75, boxes), xytext=(-1.1, boxes), arrowprops=line)
    ax.plot((end - 1.0, end), (boxes, boxes), color=BLACK, linewidth=1.2)
    ax.annotate("", (end, stream - 0.18), xytext=(end, boxes), arrowprops=line)
    circle = {"markersize": 21, "color": "white", "markeredgecolor": BLACK, "zorder": 4}
    ax.plot(end, stream, "o", **circle)
    ax.text(end, stream, "+", ha="center", va="center", fontsize=15, zorder=5)
    for place, part in enumerate(parts):
        _draw_part(ax, step * place, boxes, part)
        if place:
            start = step * (place - 1) + 0.75, boxes
            ax.annotate("", (step * place - 0.75, boxes), xytext=start, arrowprops=line)
    for row, (name, values) in enumerate(strengths.items()):
        y, color = -0.05 - 0.75 * row, VERMILION if row else BLUE
        ax.text(-1.7, y + 0.3, f"RMS, {name}", color=color, fontsize=10)
        for place, value in enumerate(values):
            ax.text(step * place, y, f"{value:.2f}", color=color, ha="center", va="center")
    ax.set(xlim=(-1.8, end + 1.0), ylim=(-1.1, 2.5))
    ax.set_axis_off()
    return fig


def _draw_part(ax: Axes, x: float, y: float, text: str) -> None:
    corner, style = (x - 0.75, y - 0.28), "round,pad=0,rounding_size=0.08"
    box = FancyBboxPatch(corner, 1.5, 0.56, boxstyle=style, facecolor="#f1f1f1", edgecolor=GREY)
    ax.add_patch(box)
    ax.text(x, y, text, ha="center", va="center")

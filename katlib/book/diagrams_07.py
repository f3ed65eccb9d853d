"""The diagrams of chapter 7: one output as a random sum, and the cobweb of the variance map."""

from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
    """Iterations q, m(q), m(m(q)), ... as staircases between the curve m and the diagonal.

    Args:
        maps: the map m of each panel, by the panel's title.
        starts: the values of q from which a panel's staircases start, by its title; red above 1
            and blue below.
        steps: of a staircase, which ends early where it leaves the panel.
        limit: of both axes.
    """
    fig, axes = plot.new_figure(len(maps), width=4.2 * len(maps), height=4.7, squeeze=False)
    grid = torch.linspace(0, limit, 61).tolist()
    for ax, (title, m) in zip(axes[0], maps.items()):
        ax.grid(visible=False)
        ax.plot((0, limit), (0, limit), color=BLACK, linewidth=1, linestyle="--")
        ax.plot(grid, [m(q) for q in grid], color=BLACK, linewidth=1.2)
        for start in starts[title]:
            _draw_staircase(ax, m, start, steps, limit)
        ax.set(xlim=(0, limit), ylim=(0, limit), xlabel="q before the layer")
        ax.set_title(title, fontsize=11)
        ax.set_aspect("equal")
        ax.text(0.75 * limit, 0.67 * limit, "m = q")
        ax.text(0.08 * limit, 0.92 * limit, "start above 1", color=VERMILION)
        ax.text(0.08 * limit, 0.85 * limit, "start below 1", color=BLUE)
    axes[0][0].set_ylabel("m(q), after the layer")
    first, place = next(iter(maps.values())), 0.68 * limit
    axes[0][0].text(place, first(place) - 0.04 * limit, "m(q)", va="top")
    return fig


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

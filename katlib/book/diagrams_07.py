"""The diagrams of chapter 7: one output as a random sum, and the cobweb of the variance map."""

from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from katlib.book import plot

BLACK, BLUE, VERMILION = plot.PALETTE[:3]
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
    for k, line in enumerate(sums[:SHOWN_SUMS]):
        style = {"color": VERMILION, "linewidth": 1.8, "zorder": 3} if k == 0 else {}
        walk.plot(count, line, **({"color": BLUE, "linewidth": 0.9, "alpha": 0.7} | style))
    for sign in (-2, 2):
        walk.plot(count, sign * deviation, color=BLACK, linestyle="--", linewidth=1.4)
    limit = 4 * deviation[-1].item()
    walk.set(xlabel="terms added so far", ylim=(-limit, limit), xlim=(0, len(count) - 1))
    walk.set_title("its terms, added one by one", fontsize=11)
    walk.text(0.03 * len(count), 0.7 * limit, "dashed: ±2 standard deviations", fontsize=10)
    share.hist(sums[:, -1], bins=16, density=True, orientation="horizontal", color=BLUE, alpha=0.4)
    y = torch.linspace(-limit, limit, 101)
    normal = torch.distributions.Normal(0.0, deviation[-1])
    share.plot(normal.log_prob(y).exp(), y, color=BLACK)
    share.set(ylim=(-limit, limit), xticks=[], yticklabels=[])
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
    ax.text(2.5, 4.6, "each times $w_{oi}$,", fontsize=10)
    ax.text(2.5, 4.05, "term positive", color=VERMILION, fontsize=10)
    ax.text(2.5, 3.5, "or negative", color=BLUE, fontsize=10)
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
        starts: the values of q from which a panel's staircases start; its title again.
        steps: of a staircase, which ends early where it leaves the panel.
        limit: of both axes.
    """
    fig, axes = plot.new_figure(len(maps), width=2.8 * len(maps), height=3.3, squeeze=False)
    grid = torch.linspace(0, limit, 61).tolist()
    for ax, (title, m) in zip(axes[0], maps.items()):
        ax.plot((0, limit), (0, limit), color=BLACK, linewidth=1, linestyle="--")
        ax.plot(grid, [m(q) for q in grid], color=BLACK)
        for color, start in zip((BLUE, VERMILION), starts[title]):
            _draw_staircase(ax, m, start, steps, limit, color)
        ax.set(xlim=(0, limit), ylim=(0, limit), xlabel="q before the layer")
        ax.set_title(title, fontsize=11)
        ax.set_aspect("equal")
    axes[0][0].set_ylabel("m(q), after the layer")
    axes[0][0].text(0.5 * limit, 0.56 * limit, "m = q", ha="right")
    axes[0][0].text(0.6 * limit, 0.19 * limit, "m(q)", ha="left", va="top")
    return fig


def _draw_staircase(
    ax: Axes, m: Callable[[float], float], start: float, steps: int, limit: float, color: str
) -> None:
    q, corners = start, [(start, 0.0)]
    for _ in range(steps):
        if q > limit:
            break
        after = m(q)
        corners += [(q, after), (after, after)]
        q = after
    ax.plot(*zip(*corners), color=color, linewidth=1.5)
    ax.plot(start, 0, "o", color=color, markersize=7, clip_on=False, zorder=4)
    if q <= limit:
        ax.plot(q, q, "s", color=color, markersize=5, zorder=4)

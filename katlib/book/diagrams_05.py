"""The diagrams of chapter 5: what absolute values do to a denominator, and what one step does."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from katlib.book import plot
from katlib.book.plot import BLACK, BLUE, PALETTE, VERMILION

GREY = "#8a8a8a"


def _panel(ax: Axes, title: str, x: np.ndarray, q: np.ndarray, color: str) -> None:
    """One denominator over x, with the line that it must not reach."""
    ax.axhline(0, color=BLACK, linewidth=0.8)
    ax.plot(x, q, color=color, linewidth=2.6)
    ax.set(xlim=(-4, 4), ylim=(-6, 8), xlabel="x")
    ax.set_xticks([-4, -2, 0, 2, 4])
    ax.set_title(title, color=color)


def folding(first: float = 0.5, second: float = -0.25) -> Figure:
    """How absolute values fold the terms of Q (version A) or their sum (version B).

    Args:
        first, second: b_1 and b_2; the labels stand where they fit the default ones.
    """
    x = np.linspace(-4, 4, 801)
    terms = (first * x, second * x**2)
    inner = terms[0] + terms[1]
    fig, axes = plot.new_figure(3, width=7.4, height=3.2, sharey=True)
    _panel(axes[0], "plain: 1 + sum", x, 1 + inner, PALETTE[3])
    _panel(axes[1], "A: fold every term", x, 1 + abs(terms[0]) + abs(terms[1]), BLUE)
    _panel(axes[2], "B: fold the sum", x, 1 + abs(inner), VERMILION)
    for term, style in zip(terms, ("--", ":")):
        axes[0].plot(x, term, style, color=GREY, linewidth=1.6)
        axes[1].plot(x, abs(term), style, color=GREY, linewidth=1.6)
    axes[2].plot(x, inner, "-.", color=GREY, linewidth=1.6)
    # real zeros of the plain one
    poles = [z.real for z in np.roots([second, first, 1.0]) if abs(z.imag) < 1e-9]
    axes[0].plot(poles, [0] * len(poles), "x", color=BLACK, markersize=9, markeredgewidth=2.2)
    _point_at(axes[0], "poles: Q = 0", (1.0, 5.6), [(pole, 0.4) for pole in poles])
    _point_at(axes[2], "sum = 0", (1.0, 4.4), [(0.0, 1.2), (2.0, 1.2)])
    axes[0].text(3.9, 2.3, "b₁x", color=GREY, ha="right")
    axes[0].text(1.3, -3.4, "b₂x²", color=GREY, ha="center")
    axes[1].text(0, -1.6, "|b₁x| and |b₂x²|", color=GREY, ha="center")
    axes[2].text(0.6, -3.4, "b₁x + b₂x²", color=GREY, ha="center")
    for ax in axes[1:]:
        ax.text(0, 6.9, "Q ≥ 1", ha="center")
    axes[0].set_ylabel("Q(x)")
    return fig


def _point_at(
    ax: Axes, text: str, at: tuple[float, float], points: Sequence[tuple[float, float]]
) -> None:
    """A label with an arrow to each of the points below it."""
    ax.text(*at, text, ha="center")
    for point in points:
        arrow = {"arrowstyle": "->", "color": BLACK, "linewidth": 0.9}
        ax.annotate("", point, xytext=(at[0], at[1] - 0.1), arrowprops=arrow)


def one_step(
    before: Sequence[float], after: Sequence[float], losses: tuple[float, float]
) -> Figure:
    """The plain denominator before and after a step of training.

    Args:
        before, after: b_1 .. b_n.
        losses: the loss of the batch before the step and of the next one.
    """
    x = np.linspace(-5, 5, 1001)
    fig, ax = plot.new_figure(height=3.2)
    for b, loss, color, name in (
        (before, losses[0], BLACK, "before the step"),
        (after, losses[1], VERMILION, "after the step"),
    ):
        q = np.polynomial.polynomial.polyval(x, [1.0, *b])
        (line,) = ax.plot(x, q, color=color)
        crossings = np.flatnonzero(np.diff(np.sign(q)))
        ax.plot(x[crossings], 0 * x[crossings], "x", color=color, markersize=9, markeredgewidth=2.2)
        plot.label_line(ax, line, f"{name}:\nloss {float(f'{loss:.1g}'):,g}")
    ax.axhline(0, color=BLACK, linewidth=0.8)
    # the density of standard normal inputs, enlarged to be seen
    ax.fill_between(x, 0, 8 * np.exp(-(x**2) / 2), color=GREY, alpha=0.25, linewidth=0)
    ax.text(0, 8.4, "inputs", color=GREY, ha="center")
    ax.set(xlim=(-5, 5), xlabel="x", ylabel="Q(x)")
    return fig

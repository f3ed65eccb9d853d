"""The diagrams of chapter 4: functions of a complex x, and where they have their poles."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from katlib.book import plot
from katlib.book.plot import BLACK, BLUE, PALETTE, VERMILION

Complex = np.ndarray

# what a colour stands for in the chapter's figures and in its live one
TAYLOR, PADE, POLYNOMIAL, RATIO = VERMILION, BLUE, BLACK, PALETTE[3]

# |F(x)| from 0.1 (white) to 50 (dark): poles are dark spots
SIZES = LinearSegmentedColormap.from_list("sizes", ["#ffffff", "#bcd6ea", BLUE, "#00233a"])
LOWEST, HIGHEST = -1, 1.7


def swish(x: Complex) -> Complex:
    """x / (1 + e^-x) of a complex x."""
    return x / (1 + np.exp(-x))


def polynomial(x: Complex, coefficients: Sequence[float] | Tensor) -> Complex:
    """c_0 + c_1 x + ... of a complex x, for ascending coefficients."""
    return np.polynomial.polynomial.polyval(x, np.asarray(coefficients))


def _draw_size(
    ax: Axes, function: Callable[[Complex], Complex], right: float, top: float, fineness: int
) -> AxesImage:
    """|function(x)| as a colour for each x with abs(Re x) < right and abs(Im x) < top.

    It is computed at `fineness` places to a unit of length.
    """
    real = np.linspace(-right, right, round(2 * right * fineness))
    imaginary = np.linspace(-top, top, round(2 * top * fineness))
    with np.errstate(all="ignore"):
        size = np.log10(np.abs(function(real + 1j * imaginary[:, None])))
    size = np.nan_to_num(size, nan=HIGHEST, posinf=HIGHEST, neginf=LOWEST)
    image = ax.imshow(
        size,
        extent=(-right, right, -top, top),
        origin="lower",
        cmap=SIZES,
        vmin=LOWEST,
        vmax=HIGHEST,
        interpolation="none",
    )
    ax.axhline(0, color=BLACK, linewidth=0.8)
    ax.grid(visible=False)
    ax.set(xlim=(-right, right), ylim=(-top, top))
    return image


def _draw_scale(image: AxesImage, axes: Axes | list[Axes]) -> None:
    """Which colour of such a map stands for which |F(x)|."""
    (ax, *_) = axes if isinstance(axes, list) else [axes]
    figure = ax.figure
    assert isinstance(figure, Figure)
    bar = figure.colorbar(image, ax=axes, label="|F(x)|", shrink=0.7, aspect=16)
    bar.set_ticks([-1, 0, 1], labels=["0.1", "1", "10"])
    bar.ax.minorticks_off()


def _draw_disc(ax: Axes) -> None:
    """The disc around 0 that swish's nearest poles leave for its Taylor series."""
    ax.add_patch(Circle((0, 0), np.pi, fill=False, edgecolor=VERMILION, linewidth=2))


def _mark(ax: Axes, places: Sequence[complex], marker: str = "x", **options: Any) -> None:
    """A sign at each of these complex numbers; "x" for poles."""
    look: dict[str, Any] = {"color": VERMILION, "markersize": 9, "markeredgewidth": 2.2, **options}
    ax.plot([z.real for z in places], [z.imag for z in places], marker, **look)


def disc_of_convergence() -> Figure:
    """|swish(x)| in the complex plane, its poles at ±πi, and the disc between them."""
    right, top = 7.5, 5.0
    fig, ax = plot.new_figure(width=6.4, height=3.6)
    _draw_scale(_draw_size(ax, swish, right, top, fineness=16), ax)
    _draw_disc(ax)
    _mark(ax, [np.pi * 1j, -np.pi * 1j])
    patch = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    label: dict[str, Any] = {"va": "center", "color": BLACK, "bbox": patch}
    ax.text(0.55, np.pi + 0.75, "pole at πi", **label)
    ax.text(0.55, -np.pi - 0.75, "pole at −πi", **label)
    ax.text(0, 1.2, "the series\nconverges", ha="center", **label)
    ax.text(-5.6, 2.4, "it diverges", ha="center", **label)
    for x, text in ((np.pi, "π"), (-np.pi, "−π")):
        ax.plot(x, 0, "o", color=BLACK, markersize=6)
        ax.text(x + 0.5 * np.sign(x), -0.7, text, ha="center", **label)
    ax.text(7.3, 0.6, "the real line", ha="right", **label)
    ax.set(xlabel="real part of x", ylabel="imaginary part of x")
    return fig


def pade_equations(m: int, n: int) -> Figure:
    """Padé's equations for degrees (m, n), a row for each; those that contain only b are boxed."""
    rows = m + n + 1
    fig, ax = plot.new_figure(width=6.8, height=0.36 * rows)
    ax.axis("off")
    ax.set(xlim=(-1.4, n + 5.0), ylim=(rows - 0.3, -0.7))
    solved_first = Rectangle(
        (-0.55, m + 0.55), n + 2.3, n - 0.1, facecolor="#e8eef4", edgecolor=VERMILION, linewidth=1.5
    )
    ax.add_patch(solved_first)
    for k in range(rows):
        ax.text(-1.3, k, f"k = {k}", color="#666666", ha="left", va="center", fontsize=10)
        for j in range(min(k, n) + 1):
            term = f"$c_{{{k}}}$" if j == 0 else f"$+\\ b_{{{j}}}\\,c_{{{k - j}}}$"
            ax.text(j, k, term, ha="center", va="center")
        right_side = f"$a_{{{k}}}$" if k <= m else "0"
        ax.text(n + 0.8, k, "=", ha="center", va="center")
        ax.text(n + 1.3, k, right_side, color=BLUE if k <= m else BLACK, ha="center", va="center")
    notes: dict[str, Any] = {"ha": "left", "va": "center"}
    ax.text(n + 2.0, m / 2, "then these\ngive a", color=BLUE, **notes)
    ax.text(n + 2.0, m + (n + 1) / 2, "contain only b:\nsolve them first", color=VERMILION, **notes)
    return fig


def planes_and_line(taylor: Tensor, numerator: Tensor, denominator: Tensor) -> Figure:
    """Swish, its Taylor polynomial and its Padé approximant: as |F(x)| in the complex plane, and
    as curves on the real line.

    Args:
        taylor: coefficients of the polynomial, ascending.
        numerator: a_0 .. a_m.
        denominator: b_1 .. b_n.
    """
    right, top = 7.5, 15.0
    below = [1.0, *denominator.tolist()]

    def of_taylor(x: Complex) -> Complex:
        return polynomial(x, taylor)

    def of_ratio(x: Complex) -> Complex:
        return polynomial(x, numerator) / polynomial(x, below)

    found = np.roots(below[::-1]).tolist()
    own = [k * np.pi * 1j for k in (-3, -1, 1, 3)]
    with matplotlib.rc_context(plot.STYLE):
        fig = Figure(figsize=(6.0, 7.6))
        names = ("swish", "Taylor", "Padé")
        axes = fig.subplot_mosaic([[*names], ["line"] * 3], height_ratios=[1.6, 1])
        for name, function, poles in zip(names, (swish, of_taylor, of_ratio), (own, [], found)):
            ax = axes[name]
            image = _draw_size(ax, function, right, top, fineness=8)
            _mark(ax, poles)
            ax.set_title(name)
            ax.set(xlabel="real part of x", xticks=[-5, 0, 5])
            ax.set_yticks([k * np.pi for k in (-3, -1, 0, 1, 3)], ["−3π", "−π", "0", "π", "3π"])
            ax.tick_params(labelleft=name == names[0])
        _draw_scale(image, [axes[name] for name in names])
        axes[names[0]].set_ylabel("imaginary part of x")
        above = [z for z in np.roots(numerator.tolist()[::-1]).tolist() if abs(z) > 1e-6]
        _mark(axes[names[2]], above, "o", color=BLACK, fillstyle="none", markersize=7)
        _draw_disc(axes[names[1]])
        _draw_curves(axes["line"], of_taylor, of_ratio)
    return fig


def _draw_curves(
    ax: Axes, taylor: Callable[[Complex], Complex], ratio: Callable[[Complex], Complex]
) -> None:
    """The three functions on the real line."""
    x = np.linspace(-7.5, 7.5, 601)
    ax.plot(x, swish(x), color=BLACK, linewidth=6, alpha=0.25)
    ax.plot(x, taylor(x), color=TAYLOR)
    ax.plot(x, ratio(x), color=PADE, linestyle="--")
    for edge in (-np.pi, np.pi):
        ax.axvline(edge, color="#999999", linewidth=1, zorder=0)
    ax.text(4.05, -2.6, "Taylor", color=TAYLOR)
    ax.text(4.1, 6.3, "swish and Padé", color=PADE, ha="right")
    ax.set(xlim=(-7.5, 7.5), ylim=(-4, 8), xlabel="x on the real line", ylabel="F(x)")
    ax.set_xticks([-6, -np.pi, 0, np.pi, 6], ["−6", "−π", "0", "π", "6"])


def heights_of_zeros(
    swish_zeros: Mapping[str, Sequence[complex]], relu_zeros: Mapping[str, Sequence[complex]]
) -> Figure:
    """How far from the real line the zeros of Q are, a line of the figure for each pair of degrees.

    Args:
        swish_zeros, relu_zeros: map a label such as "(5, 4)" to the zeros of Q.
    """
    fig, axes = plot.new_figure(2, width=7.2, height=3.0, sharey=True)
    for ax, zeros_of in zip(axes, (swish_zeros, relu_zeros)):
        for row, zeros in enumerate(zeros_of.values()):
            heights = [z.imag for z in zeros if z.imag > 0]
            ax.plot(
                heights, [row] * len(heights), "x", color=RATIO, markersize=8, markeredgewidth=2
            )
        ax.set(xscale="log", xlabel="distance from the real line (log scale)")
        ax.set_yticks(range(len(zeros_of)), list(zeros_of))
        ax.set_ylim(-0.6, len(zeros_of) - 0.1)
    axes[0].set(title="swish: poles at πi, 3πi, 5πi", ylabel="degrees of the ratio")
    axes[1].set(title="ReLU: kink at 0")
    for k in (1, 3, 5):
        axes[0].axvline(k * np.pi, color=PALETTE[2], linewidth=1.2, zorder=0)
    axes[0].set_xticks([np.pi, 3 * np.pi, 5 * np.pi], ["π", "3π", "5π"])
    axes[0].set_xticks([], minor=True)
    axes[1].set_xticks([0.03, 0.1, 0.3, 1, 3, 10], ["0.03", "0.1", "0.3", "1", "3", "10"])
    axes[1].set_xticks([], minor=True)
    return fig

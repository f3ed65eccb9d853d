"""The figures of the book: one style, and for each figure a caption and a text alternative.

A drawing function takes data and returns a matplotlib `Figure`. `figure` turns that into HTML with
the drawing as SVG inside, which looks the same in Jupyter, in Colab and in the built book.
Backgrounds are opaque, so that they read on light and on dark pages.
"""

import base64
import html
import io
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter
from torch import Tensor

from katlib.book.html import Html
from katlib.book.statistics import Comparison
from katlib.files import write_whole
from katlib.rational import initial_coefficients, rational_reference

# The colours of Okabe & Ito, which can also be told apart by readers who do not see red or green.
# Black comes first: it is for what the others are compared with.
PALETTE = ("#222222", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
BLACK, BLUE, VERMILION = PALETTE[:3]

STYLE: dict[str, Any] = {
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "font.size": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
    # with a fixed salt for its identifiers, the same drawing is the same file, byte for byte
    "svg.hashsalt": "katlib",
    "svg.fonttype": "path",
}

PIXELS_PER_INCH = 96

# how a run's model is named and coloured
MODELS = {"grkan": ("KAT", BLUE), "mlp": ("MLP twin", BLACK)}

# the two rational functions of a block and the names of the functions that they start from
BLOCK_FUNCTIONS = (("act1", "identity"), ("act2", "swish"))

# the least distance between two labels at the ends of lines, as a fraction of the axes' height
LABEL_DISTANCE = 0.075


def svg(fig: Figure) -> bytes:
    """The drawing as SVG, the same bytes for the same drawing."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def figure(fig: Figure, caption: str, alt: str) -> Html:
    """The drawing with its caption, for a notebook.

    Args:
        fig: what a drawing function returned.
        caption: what to see in it.
        alt: what is drawn, for readers who cannot see it.

    Raises:
        ValueError: an empty caption or alt text.
    """
    if not caption.strip() or not alt.strip():
        raise ValueError("a figure needs a caption (what to see) and an alt text (what is drawn)")
    source = base64.b64encode(svg(fig)).decode()
    width = round(PIXELS_PER_INCH * fig.get_figwidth())
    return Html(
        f'<figure class="katlib-figure" style="margin: 1em 0">'
        f'<img alt="{html.escape(alt)}" width="{width}" '
        f'style="max-width: 100%; height: auto" src="data:image/svg+xml;base64,{source}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def new_figure(
    columns: int = 1, rows: int = 1, width: float = 6.4, height: float = 3.6, **options: Any
) -> tuple[Figure, Any]:
    """A figure and its axes in the book's style.

    Args:
        columns, rows: numbers of panels.
        width, height: of the whole figure, in inches.
        options: as for `Figure.subplots`.

    Returns:
        The figure and its axes: one `Axes` for a single panel, otherwise an array of them.
    """
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(width, height))
        axes = fig.subplots(rows, columns, **options)
    return fig, axes


def label_line(ax: Axes, line: Line2D, text: str, at: float | None = None) -> None:
    """Writes `text` at the right end of a line (or at x = `at`), in the line's colour."""
    points = _points(line)
    if at is None:
        point, offset, alignment = points[-1], (6, 0), "center"
    else:
        point = min(points, key=lambda xy: abs(xy[0] - at))
        offset, alignment = (4, 6), "bottom"
    ax.annotate(
        text,
        point,
        xytext=offset,
        textcoords="offset points",
        color=line.get_color(),
        va=alignment,
        annotation_clip=False,
    )


def _points(line: Line2D) -> list[tuple[float, float]]:
    x = np.asarray(line.get_xdata(), dtype=float)
    y = np.asarray(line.get_ydata(), dtype=float)
    return list(zip(x.tolist(), y.tolist()))


def label_ends(ax: Axes, lines: Mapping[str, Line2D]) -> None:
    """Writes each line's label at its right end, in its colour, so that no two overlap.

    Args:
        ax: the axes, with their final limits.
        lines: maps labels to lines of `ax`.
    """
    ends = [(*_right_end(ax, line), label, line.get_color()) for label, line in lines.items()]
    ends.sort(key=lambda end: end[1])
    # from the lowest to the highest, each label at least one line of text above the one before
    position = -math.inf
    for x, y, label, color in ends:
        position = max(y, position + LABEL_DISTANCE)
        ax.annotate(
            label,
            (x, position),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            color=color,
            va="center",
            annotation_clip=False,
        )


def _right_end(ax: Axes, line: Line2D) -> tuple[float, float]:
    """Where the line's last finite point is, as fractions of the axes; clipped to their height."""
    x, y = [(x, y) for x, y in _points(line) if math.isfinite(y)][-1]
    lowest, highest = ax.get_ylim()
    y = min(max(y, lowest), highest)
    to_axes = ax.transData + ax.transAxes.inverted()
    end_x, end_y = to_axes.transform((x, y))
    return end_x, end_y


def functions(
    x: Any,
    curves: Mapping[str, Any],
    xlabel: str = "x",
    ylabel: str = "",
    ylim: tuple[float, float] | None = None,
    dashed: Collection[str] = (),
    xscale: str = "linear",
    yscale: str = "linear",
    marker: str = "",
) -> Figure:
    """Curves over x, each labelled at its right end.

    Args:
        x: what they share on the horizontal axis; a list, an array or a tensor.
        curves: maps labels to values, as many as x has; one that is not finite leaves a gap.
        xlabel, ylabel: labels of the axes.
        ylim: (lowest, highest); without it, what the curves need.
        dashed: labels of the curves to draw dashed.
        xscale, yscale: "linear" or "log".
        marker: matplotlib's sign for each value; "o" where they were measured at a few x.
    """
    fig, ax = new_figure()
    ax.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    places = torch.as_tensor(x).tolist()
    lines = {}
    for label, values in curves.items():
        (lines[label],) = ax.plot(
            places,
            torch.as_tensor(values).tolist(),
            linestyle="--" if label in dashed else "-",
            marker=marker,
            markersize=4,
        )
    ax.set_ylim(ylim)
    _write_out_ticks(ax.xaxis, *ax.get_xlim())
    _write_out_ticks(ax.yaxis, *ax.get_ylim())
    label_ends(ax, lines)
    return fig


def _write_out_ticks(axis: Any, low: float, high: float) -> None:
    """Labels a logarithmic axis 20 and 30 instead of 2 x 10^1 and 3 x 10^1, if that is short."""
    if axis.get_scale() == "log" and 0.001 < low < high < 10_000:
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter())


def learning_curves(runs: list[dict], quantity: str = "test_accuracy") -> Figure:
    """A quantity of each epoch for several runs, KATs in blue and MLPs in black.

    Args:
        runs: records of `katlib.train.train`.
        quantity: a key of their epochs.
    """
    fig, ax = new_figure()
    for run in runs:
        name, color = MODELS[run["mlp"]]
        epochs = [epoch["epoch"] for epoch in run["epochs"]]
        values = [epoch[quantity] for epoch in run["epochs"]]
        ax.plot(epochs, values, color=color, marker="o", markersize=4, label=name)
    # several runs share a name: the legend has one entry for each name
    handles, names = ax.get_legend_handles_labels()
    handle_of = dict(zip(names, handles))
    ax.legend(handle_of.values(), handle_of.keys(), loc="best")
    ax.set(xlabel="epoch", ylabel=quantity.replace("_", " "))
    ax.xaxis.get_major_locator().set_params(integer=True)
    if quantity.endswith("accuracy"):
        ax.yaxis.set_major_formatter(_percent)
    return fig


def _percent(fraction: float, _position: int) -> str:
    """A tick's label, for matplotlib, which also hands over the tick's position."""
    return f"{100 * fraction:.3g}%"


def activations(learned: dict[str, dict], span: float = 4.0) -> Figure:
    """The learned functions of a model beside those that they started from (dashed).

    There is one panel for each `GroupRational`, with a column of two for each block.

    Args:
        learned: what `katlib.train.record.learned_activations` returns, or the key `activations`
            of a record.
        span: the functions are drawn on [-span, span].
    """
    # in the model's order: sorted by name, block 10 would come before block 2
    blocks = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in learned))
    fig, axes = new_figure(
        len(blocks),
        2,
        width=1.5 + 2.0 * len(blocks),
        height=4.2,
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    x = torch.linspace(-span, span, 201, dtype=torch.float64)
    for column, block in enumerate(blocks):
        for row, (function, start) in enumerate(BLOCK_FUNCTIONS):
            _draw_learned_functions(axes[row][column], x, learned[f"{block}.{function}"], start)
        axes[0][column].set_title(f"block {column}")
        axes[1][column].set_xlabel("x")
    axes[0][0].set_ylabel("first function")
    axes[1][0].set_ylabel("second function")
    return fig


def _draw_learned_functions(ax: Axes, x: Tensor, coefficients: dict, start: str) -> None:
    """Draws every group's function over x, and the function that all of them started from."""
    a = torch.tensor(coefficients["numerator"], dtype=torch.float64)
    b = torch.tensor(coefficients["denominator"], dtype=torch.float64)
    groups = max(len(a), len(b))
    values = rational_reference(x[:, None].expand(-1, groups), a, b)  # (201, groups)
    colors = matplotlib.colormaps["viridis"]
    for group in range(groups):
        color = colors(0.9 * group / max(1, groups - 1))
        ax.plot(x, values[:, group], color=color, linewidth=1.2)
    a0, b0 = initial_coefficients(start, (a.shape[1] - 1, b.shape[1]))
    start_values = rational_reference(x[:, None], a0[None], b0[None])[:, 0]
    ax.plot(x, start_values, color=BLACK, linestyle="--", linewidth=1.2)


def picture(path: str | Path, run: dict) -> None:
    """Writes the README's picture: the functions that the trained model of `run` has learned."""
    drawing = svg(activations(run["activations"]))
    with write_whole(path) as temporary:
        temporary.write_bytes(drawing)


def differences(comparisons: list[Comparison]) -> Figure:
    """What each condition of a study gains or loses against another, in percentage points.

    A line of the figure shows each seed's difference, their mean and its 95% interval.

    Args:
        comparisons: what `katlib.book.statistics.compare` returns; those without differences are
            left out.
    """
    shown = [comparison for comparison in comparisons if comparison.differences]
    fig, ax = new_figure(width=7.6, height=0.6 + 0.33 * len(shown))
    for row, comparison in enumerate(shown):
        _draw_difference(ax, row, comparison)
    ax.axvline(0, color=BLACK, linewidth=0.8)
    ax.set_yticks(range(len(shown)), [comparison.title for comparison in shown])
    ax.set(xlabel="difference of test accuracy, percentage points", ylim=(len(shown) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    return fig


def _draw_difference(ax: Axes, row: int, comparison: Comparison) -> None:
    """One line of `differences`, coloured if the interval leaves out 0."""
    is_clear = comparison.low > 0 or comparison.high < 0
    color = VERMILION if is_clear else BLACK
    interval = (100 * comparison.low, 100 * comparison.high)
    ax.plot(interval, (row, row), color=color, linewidth=1.6)
    points = [100 * difference for difference in comparison.differences]
    ax.plot(points, [row] * len(points), "|", color=BLUE, markersize=11, markeredgewidth=1.4)
    mean_marker = "D" if is_clear else "o"
    ax.plot(100 * comparison.difference, row, mean_marker, color=color, markersize=6)

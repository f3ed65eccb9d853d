"""Every figure of the book: one style, a caption and a text alternative for each.

A drawing function takes data and returns a matplotlib `Figure`; `figure` turns that into HTML with the drawing as SVG inside, which looks
the same in Jupyter, in Colab and in the built book. Backgrounds are opaque, so that they read on light and on dark pages.
"""

import base64
import html
import io
import math
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

from katlib.book.html import Html
from katlib.rational import initial_coefficients, rational_reference

# Okabe & Ito's colours, which also those tell apart who see no red or green; black first, for what others are compared with
PALETTE = ("#222222", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
STYLE = {
    "axes.prop_cycle": matplotlib.cycler(color=PALETTE),
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
    "svg.hashsalt": "katlib",
    "svg.fonttype": "path",  # a fixed salt: the same figure is the same file, byte for byte
}


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
    width = round(96 * fig.get_figwidth())
    return Html(
        f'<figure class="katlib-figure" style="margin: 1em 0"><img alt="{html.escape(alt)}" width="{width}" style="max-width: 100%; '
        f'height: auto" src="data:image/svg+xml;base64,{source}"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def new_figure(columns: int = 1, rows: int = 1, width: float = 6.4, height: float = 3.6, **options):
    """A figure and its axes in the book's style; `width` and `height` in inches, `options` as for `Figure.subplots`."""
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(width, height))
        axes = fig.subplots(rows, columns, **options)
    return fig, axes


def label_line(ax, line, text: str, at: float | None = None) -> None:
    """Writes `text` at the right end of a line (or at x = `at`), in the line's colour."""
    x, y = line.get_data()
    i = len(x) - 1 if at is None else min(range(len(x)), key=lambda k: abs(x[k] - at))
    ax.annotate(
        text,
        (x[i], y[i]),
        xytext=(6, 0) if at is None else (4, 6),
        textcoords="offset points",
        color=line.get_color(),
        va="center" if at is None else "bottom",
        annotation_clip=False,
    )


def functions(
    x,
    curves: dict,
    xlabel: str = "x",
    ylabel: str = "",
    ylim=None,
    dashed=(),
    xscale: str = "linear",
    yscale: str = "linear",
    marker: str = "",
) -> Figure:
    """Curves over x, each labelled at its right end.

    Args:
        x: what they share on the horizontal axis.
        curves: maps labels to values of x's length; a value that is not finite leaves a gap.
        ylim: (lowest, highest); without it, what the curves need.
        dashed: labels of curves to dash.
        xscale, yscale: "linear" or "log".
        marker: matplotlib's sign for each value; "o" where the values were measured at a few x.
    """
    fig, ax = new_figure()
    x = torch.as_tensor(x).tolist()
    ax.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    lines = {
        label: ax.plot(
            x,
            torch.as_tensor(y).tolist(),
            linestyle="--" if label in dashed else "-",
            marker=marker,
            markersize=4,
        )[0]
        for label, y in curves.items()
    }
    ax.set_ylim(ylim)
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        if (
            axis.get_scale() == "log" and 0.001 < low < high < 10_000
        ):  # 20 and 30, not 2 x 10^1 and 3 x 10^1
            axis.set_major_formatter(matplotlib.ticker.LogFormatter())
            axis.set_minor_formatter(matplotlib.ticker.LogFormatter())
    label_ends(ax, lines)
    return fig


def label_ends(ax, lines: dict) -> None:
    """Writes each line's label at its right end, in its colour, no two on each other. `lines` maps labels to lines of `ax`."""
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = []
    for label, line in lines.items():
        x, y = [(u, v) for u, v in zip(*line.get_data()) if math.isfinite(v)][-1]
        ends.append(
            (
                *to_axes.transform((x, min(max(y, ax.get_ylim()[0]), ax.get_ylim()[1]))),
                label,
                line.get_color(),
            )
        )
    position = -float("inf")
    for x, y, label, color in sorted(
        ends, key=lambda end: end[1]
    ):  # from below, with room for a line of text between two labels
        position = max(y, position + 0.075)
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


def learning_curves(runs: list[dict], quantity: str = "test_accuracy") -> Figure:
    """A quantity of each epoch for several runs, KATs in blue and MLPs in black. `runs` are records of `katlib.train.train`."""
    fig, ax = new_figure()
    names = {"grkan": ("KAT", PALETTE[1]), "mlp": ("MLP twin", PALETTE[0])}
    for run in runs:
        name, color = names[run["mlp"]]
        ax.plot(
            *zip(*((e["epoch"], e[quantity]) for e in run["epochs"])),
            color=color,
            marker="o",
            markersize=4,
            label=name,
        )
    handles = dict(zip(*reversed(ax.get_legend_handles_labels())))  # one entry for each name
    ax.legend(handles.values(), handles.keys(), loc="best")
    ax.set(xlabel="epoch", ylabel=quantity.replace("_", " "))
    ax.xaxis.get_major_locator().set_params(integer=True)
    if quantity.endswith("accuracy"):
        ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    return fig


def activations(learned: dict[str, dict], span: float = 4.0) -> Figure:
    """The learned functions of every `GroupRational` of a model, one panel each, beside those they started from (dashed).

    Args:
        learned: what `katlib.train.record.learned_activations` returns, or the key `activations` of a record.
        span: the functions are drawn on [-span, span].
    """
    blocks = sorted({name.rsplit(".", 1)[0] for name in learned})
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
        for row, (act, start) in enumerate((("act1", "identity"), ("act2", "swish"))):
            ax = axes[row][column]
            a, b = (
                torch.tensor(learned[f"{block}.{act}"][key], dtype=torch.float64)
                for key in ("numerator", "denominator")
            )
            groups = max(len(a), len(b))
            values = rational_reference(x[:, None].expand(-1, groups), a, b)  # (201, groups)
            for g in range(groups):
                ax.plot(
                    x,
                    values[:, g],
                    color=matplotlib.colormaps["viridis"](0.9 * g / max(1, groups - 1)),
                    linewidth=1.2,
                )
            a0, b0 = initial_coefficients(start, (a.shape[1] - 1, b.shape[1]))
            ax.plot(
                x,
                rational_reference(x[:, None], a0[None], b0[None])[:, 0],
                color=PALETTE[0],
                linestyle="--",
                linewidth=1.2,
            )
            if row == 0:
                ax.set_title(f"block {column}")
            else:
                ax.set_xlabel("x")
        axes[0][0].set_ylabel("first function")
        axes[1][0].set_ylabel("second function")
    return fig


def picture(path: str | Path, run: dict) -> None:
    """Writes the README's picture: the functions that the trained model of `run` has learned."""
    Path(path).write_bytes(svg(activations(run["activations"])))


def differences(comparisons: list) -> Figure:
    """What each condition of a study gains or loses against another, in percentage points: each seed's difference, their mean and its 95% interval.

    Args:
        comparisons: what `katlib.book.statistics.compare` returns; those without differences are left out.
    """
    shown = [c for c in comparisons if c.differences]
    fig, ax = new_figure(width=7.6, height=0.6 + 0.33 * len(shown))
    for y, c in enumerate(shown):
        clear = c.low > 0 or c.high < 0  # the interval leaves out 0
        color = PALETTE[2] if clear else PALETTE[0]
        ax.plot((100 * c.low, 100 * c.high), (y, y), color=color, linewidth=1.6)
        ax.plot(
            [100 * d for d in c.differences],
            [y] * len(c.differences),
            "|",
            color=PALETTE[1],
            markersize=11,
            markeredgewidth=1.4,
        )
        ax.plot(100 * c.difference, y, "D" if clear else "o", color=color, markersize=6)
    ax.axvline(0, color=PALETTE[0], linewidth=0.8)
    ax.set_yticks(range(len(shown)), [c.title for c in shown])
    ax.set(xlabel="difference of test accuracy, percentage points", ylim=(len(shown) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    return fig

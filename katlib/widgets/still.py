"""What a cell shows where its live figure did not start: a still picture, and what to do.

An output holds it beside the live figure. A notebook that can draw the live one leaves it out.
"""

import base64
import html
import importlib.util
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

WHAT_TO_DO = (
    "Run this cell. If the figure still does not appear, install anywidget in the environment that "
    "Jupyter itself runs in (pip install anywidget), restart Jupyter and reload the page. The "
    "book's start page says more under “When a live figure does not appear”."
)
IN_WORDS = f"There is a live figure here, which did not start. {WHAT_TO_DO}"
BELOW_THE_PICTURE = (
    "This is a still picture of a live figure, which did not start. It shows the figure as it was "
    f"when the cell ran. {WHAT_TO_DO}"
)

# the colours of the live figures
COLOURS = ("#0072b2", "#b84f00", "#00775a", "#a8508a")

# values beyond this cannot be drawn
FARTHEST = 1e12

# text stays text, which is smaller; and the same picture is the same file, byte for byte
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "katlib",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
}


class Curve(NamedTuple):
    """One line of a still picture.

    Attributes:
        name: what the legend calls it.
        x, y: its points, (N,). Where y is far outside of what most points span, as it is near a
            pole, nothing is drawn.
        dashed: True for what the others are compared with.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    dashed: bool = False


def fallback(name: str, curves: Sequence[Curve]) -> str:
    """HTML for the place of a live figure: what to do, below a picture if there can be one.

    Args:
        name: what the figure is called, for readers who cannot see the picture.
        curves: what to draw. Without curves, or without matplotlib, there is no picture.
    """
    if not curves or importlib.util.find_spec("matplotlib") is None:
        return f"<p>{IN_WORDS}</p>"
    source = base64.b64encode(_svg(curves)).decode()
    names = ", ".join(curve.name for curve in curves)
    return (
        f'<figure style="margin: 0"><img alt="{html.escape(f"{name}: {names}")}" width="640" '
        f'style="max-width: 100%; height: auto" src="data:image/svg+xml;base64,{source}">'
        f"<figcaption>{BELOW_THE_PICTURE}</figcaption></figure>"
    )


def _svg(curves: Sequence[Curve]) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    low, high = _range([curve.y for curve in curves])
    buffer = io.BytesIO()
    with matplotlib.rc_context():
        # whatever style the notebook has chosen for its own figures
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(6.4, 2.8), layout="constrained")
        axes = figure.subplots()
        for curve, colour in zip(curves, COLOURS):
            y = np.asarray(curve.y, dtype=float)
            near = np.where(np.abs(y - (low + high) / 2) < high - low, y, np.nan)
            axes.plot(curve.x, near, "--" if curve.dashed else "-", color=colour, label=curve.name)
        axes.set_ylim(low, high)
        axes.set_xlabel("x")
        axes.locator_params(nbins=6)
        axes.legend()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # hundredths of a point are enough, and a third of the bytes less
    return re.sub(rb"\d+\.\d{3,}", lambda number: b"%.2f" % float(number[0]), buffer.getvalue())


def _range(values: Sequence[ArrayLike]) -> tuple[float, float]:
    """What most of the values span, with a margin; poles would make the rest a flat line."""
    together = np.concatenate([np.asarray(y, dtype=float) for y in values])
    drawable = together[np.abs(together) < FARTHEST]
    low, high = np.quantile(drawable, (0.08, 0.92)) if drawable.size else (0.0, 0.0)
    margin = 0.25 * (high - low) or 1.0
    return low - margin, high + margin

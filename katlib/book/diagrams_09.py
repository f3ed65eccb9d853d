"""The diagrams of chapter 9: two limits, trips to memory, the roofline, and a GPU's issue slots."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from katlib.book import plot
from katlib.book.drawing import GREY, PALE_BLUE, PALE_RED, Place, arrow, box, canvas
from katlib.book.plot import BLACK, BLUE, VERMILION

_arrow = partial(arrow, width=1.6, head=13)


# ---- two limits


def two_limits() -> Figure:
    """Above, memory and arithmetic units; below, which of the two decides the time."""
    fig, ax = canvas(6.8, 3.7, (0, 10), (-0.1, 5.1))
    box(ax, (1.4, 4.3), "memory", PALE_BLUE, size=(2.2, 1.0), fontsize=None)
    box(ax, (8.4, 4.3), "arithmetic units", PALE_RED, size=(2.8, 1.0), fontsize=None)
    _arrow(ax, (2.55, 4.5), (6.95, 4.5), BLUE, width=3.0)
    _arrow(ax, (6.95, 4.1), (2.55, 4.1), BLUE, width=3.0)
    ax.text(4.75, 4.72, "bandwidth, bytes/s", ha="center", va="bottom", color=BLUE)
    ax.text(8.4, 3.62, "peak, FLOP/s", ha="center", va="top", color=VERMILION)
    _race(ax, 0.1, "memory-bound", bytes_bar=3.9, flops_bar=1.3)
    _race(ax, 5.4, "arithmetic-bound", bytes_bar=1.5, flops_bar=3.9)
    return fig


def _race(ax: Axes, left: float, title: str, bytes_bar: float, flops_bar: float) -> None:
    """Two bars that start together; the longer one is the time."""
    ax.text(left, 2.7, title, va="center", weight="bold")
    for y, length, fill, text in (
        (1.85, bytes_bar, PALE_BLUE, "bytes"),
        (1.05, flops_bar, PALE_RED, "FLOPs"),
    ):
        ax.add_patch(Rectangle((left, y - 0.3), length, 0.6, facecolor=fill, edgecolor=BLACK))
        ax.text(left + 0.12, y, text, va="center")
    end = left + max(bytes_bar, flops_bar)
    ax.plot([end, end], [0.3, 2.3], color=BLACK, linewidth=1, linestyle=":")
    _arrow(ax, (left, 0.35), (end, 0.35), GREY)
    ax.text((left + end) / 2, 0.25, "time", ha="center", va="top", color=GREY)


# ---- trips to memory


def trips() -> Figure:
    """What one line of memory costs: in place, into another tensor on a CPU, and on a GPU."""
    fig, ax = canvas(6.8, 2.7, (0, 10.2), (-0.35, 3.75))
    for left, title, arrows, count in (
        (0.1, "in place", (("x", "read"), ("x", "write")), "2 trips"),
        (
            3.1,
            "to another tensor, CPU",
            (("x", "read"), ("y", "fetch"), ("y", "write")),
            "3 trips",
        ),
        (7.5, "the same, GPU", (("x", "read"), ("y", "write")), "2 trips"),
    ):
        width = 1.25 * len(arrows)
        middle = left + width / 2
        ax.text(middle, 3.55, title, ha="center", va="center", weight="bold")
        box(ax, (middle, 2.7), "memory", PALE_BLUE, size=(width, 0.6), fontsize=None)
        box(ax, (middle, 0.6), "core", PALE_RED, size=(width, 0.6), fontsize=None)
        for place, (name, what) in enumerate(arrows):
            x = left + 1.25 * (place + 0.5)
            ends = (x, 2.36), (x, 0.94)
            color = VERMILION if what == "fetch" else BLACK
            _arrow(ax, *(ends[::-1] if what == "write" else ends), color)
            ax.text(x - 0.08, 1.65, f"{what}\n{name}", ha="right", va="center", color=color)
        ax.text(middle, -0.05, count, ha="center", va="center", color=GREY)
    return fig


# ---- the roofline

# where the label of a point stands, in points, and its alignment
PLACES = {
    "x + 1": (-8, 2, "right"),
    "GELU": (9, -5, "left"),
    "rational, eager": (9, -9, "left"),
    "rational, fused": (9, -12, "left"),
    "fused, bfloat16": (9, -8, "left"),
    "fused, with backward": (6, 7, "left"),
    "linear map": (0, -18, "center"),
}


def roofline(points: Mapping[str, Place], peak: float, bandwidth: float) -> Figure:
    """The roof of a machine, operations under it, and an arrow from the eager to the fused one.

    Args:
        points: FLOP/byte and GFLOP/s of each operation.
        peak: GFLOP/s.
        bandwidth: GB/s.
    """
    fig, ax = plot.new_figure(width=7.6, height=4.6)
    low, high = 0.04, 300.0
    ridge = peak / bandwidth
    ax.plot([low, ridge, high], [low * bandwidth, peak, peak], color=BLACK)
    ax.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s")
    bottom = min(low * bandwidth, *(y for _, y in points.values())) / 1.6
    ax.set(xlim=(low, high), ylim=(bottom, 2.2 * peak))
    ax.text(high, 1.12 * peak, f"peak {peak:,.0f} GFLOP/s", ha="right", fontsize=10)
    ax.text(0.42, 0.55 * bandwidth, f"bandwidth {bandwidth:,.0f} GB/s", ha="right", fontsize=10)
    ax.plot([ridge, ridge], [bottom, peak], color=GREY, linewidth=1, linestyle=":")
    ax.text(1.06 * ridge, 1.3 * bottom, f"ridge point {ridge:.1f}", color=GREY, fontsize=10)
    for name, point in points.items():
        is_rational = "rational" in name or "fused" in name
        color = VERMILION if "eager" in name else BLUE if is_rational else BLACK
        ax.plot(*point, "o", color=color)
        *shift, side = PLACES.get(name, (9, -5, "left"))
        look: dict[str, Any] = {"xytext": shift, "textcoords": "offset points", "ha": side}
        ax.annotate(name, point, color=color, fontsize=10, **look)
    ends = points["rational, fused"], points["rational, eager"]
    pointer: dict[str, Any] = {"arrowstyle": "->", "color": GREY, "shrinkA": 7, "shrinkB": 7}
    ax.annotate("", *ends, arrowprops=pointer)
    return fig


# ---- a GPU's instructions


def issue_slots(multiprocessors: int, clock: float, bandwidth: float) -> Figure:
    """A GPU between its instructions and its bytes.

    Args:
        multiprocessors: how many it has.
        clock: Hz.
        bandwidth: bytes/s.
    """
    fig, ax = canvas(6.8, 3.1, (0, 10.4), (-0.45, 4.3))
    ax.add_patch(
        FancyBboxPatch(
            (0.1, 0.55),
            6.1,
            3.6,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor="white",
            edgecolor=BLACK,
        )
    )
    ax.text(3.15, 3.85, "a multiprocessor, in one clock cycle", ha="center", va="center")
    for row in range(4):
        y = 3.3 - 0.7 * row
        box(ax, (1.1, y), "scheduler", PALE_RED, size=(1.7, 0.52), fontsize=None)
        _arrow(ax, (1.98, y), (2.6, y), VERMILION)
        for lane in range(32):
            corner = (2.65 + 0.107 * lane, y - 0.22)
            ax.add_patch(Rectangle(corner, 0.09, 0.44, facecolor=PALE_RED, edgecolor=GREY, lw=0.6))
    ax.text(
        3.15, 0.25, f"4 x 32 threads;  x {multiprocessors}  x {clock / 1e9:.2f} GHz",
        ha="center", va="center", color=VERMILION,
    )  # fmt: skip
    ax.text(3.15, -0.25, "= instructions/s", ha="center", va="center", color=VERMILION)
    box(ax, (9.3, 2.25), "memory", PALE_BLUE, size=(1.9, 2.2), fontsize=None)
    _arrow(ax, (8.3, 2.5), (6.3, 2.5), BLUE, width=3.0)
    _arrow(ax, (6.3, 2.0), (8.3, 2.0), BLUE, width=3.0)
    ax.text(9.0, 0.25, f"{bandwidth / 1e12:.2f} TB/s", ha="center", va="center", color=BLUE)
    ax.text(9.0, -0.25, "= bytes/s", ha="center", va="center", color=BLUE)
    return fig


def shares(loads: Mapping[str, tuple[float, float]]) -> Figure:
    """For each chip, how much of the memory's time the instructions of both kernels take.

    Args:
        loads: maps a chip to the fractions of the forward and of the backward kernel.
    """
    fig, ax = plot.new_figure(width=6.8, height=3.3)
    for place, pair in enumerate(loads.values()):
        for shift, load, color in ((-0.2, pair[0], BLUE), (0.2, pair[1], VERMILION)):
            ax.bar(place + shift, 100 * load, width=0.36, color=color)
            text = f"{load:.0%}"
            ax.text(place + shift, 100 * load + 3, text, ha="center", color=color, fontsize=10)
    ax.axhline(100, color=BLACK, linewidth=1)
    ax.text(-0.55, 103, "above: memory waits", fontsize=10)
    top = 100 * max(max(pair) for pair in loads.values())
    ax.set(ylim=(0, max(125.0, 1.15 * top)), xlim=(-0.6, len(loads) - 0.4))
    ax.set(ylabel="% of the memory's time")
    ax.set_xticks(range(len(loads)), loads)
    ax.grid(axis="x", visible=False)
    ax.set_axisbelow(True)
    first_forward, first_backward = next(iter(loads.values()))
    ax.text(-0.27, 100 * first_forward + 12, "forward", color=BLUE, ha="center")
    ax.text(0.2, 100 * first_backward + 12, "backward", color=VERMILION, ha="center")
    return fig

"""The drawings of chapter 3: who reads from memory, and who writes to it."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from katlib.book import plot
from katlib.book.meter import Kernel

READ, WRITTEN = plot.BLUE, plot.VERMILION
GREY, LIGHT, PALE = "#8a8a8a", "#c4c4c4", "#ececec"

# where the two strips of `passes` lie, and their height
MEMORY, PROCESSOR, STRIP = 1.0, 0.0, 0.22
# points of a line's width for each byte
WIDTH_OF_A_BYTE = 0.055

# half the width of the middle column of `one_step`, in bytes
MIDDLE = 12.0


def passes(
    kernels: Sequence[Kernel], inputs: int, stages: Mapping[str, int], fused: tuple[int, int]
) -> Figure:
    """Each kernel's way from memory to the processor and back, beside a single pass.

    Args:
        kernels: from a `Meter`.
        inputs: how many numbers they worked on; bytes are drawn for one of them. Kernels that
            write fewer bytes than that are drawn in grey.
        stages: maps a label to how many kernels it stands for, in order.
        fused: bytes that a single pass reads and writes for one input.
    """
    fig, ax = plot.new_figure(width=7.4, height=3.5)
    last, single = len(kernels) - 1, len(kernels) + 5
    for left, right in ((-0.8, last + 0.8), (single - 2.6, single + 2.6)):
        _strip(ax, left, right, MEMORY, "memory")
        _strip(ax, left, right, PROCESSOR, "processor")
    for place, kernel in enumerate(kernels):
        colors = (LIGHT, LIGHT) if kernel.written < inputs else (READ, WRITTEN)
        _way(ax, place, kernel.read / inputs, kernel.written / inputs, colors)
    _way(ax, single, *fused)
    half = (MEMORY + PROCESSOR) / 2
    ax.text(single - 0.7, half, f"read\n{fused[0]}", ha="right", va="center", color=READ)
    ax.text(single + 0.9, half, f"write\n{fused[1]}", ha="left", va="center", color=WRITTEN)

    total = sum(kernel.read + kernel.written for kernel in kernels) / inputs
    _title(ax, last / 2, f"{len(kernels)} kernels: {total:,.0f} bytes for each x")
    _title(ax, single, f"one pass: {sum(fused)} bytes")
    first = 0
    for label, count in stages.items():
        _stage(ax, first, first + count - 1, label)
        first += count
    ax.text(last / 2, -0.64, "time", ha="center", va="center", color=GREY)
    ax.annotate("", (last + 0.8, -0.56), (-0.8, -0.56), arrowprops=_arrow(GREY, 1))
    ax.set(xlim=(-1.2, single + 3), ylim=(-0.72, 1.4))
    ax.axis("off")
    return fig


def _strip(ax: Any, left: float, right: float, y: float, label: str) -> None:
    ax.fill_between((left, right), y - STRIP / 2, y + STRIP / 2, color=PALE, lw=0)
    ax.text((left + right) / 2, y, label, ha="center", va="center")


def _way(
    ax: Any,
    place: float,
    read: float,
    written: float,
    colors: tuple[str, str] = (READ, WRITTEN),
) -> None:
    """Down from memory with what is read, up again with what is written."""
    top, bottom = MEMORY - STRIP / 2, PROCESSOR + STRIP / 2
    ways = (
        (place - 0.2, top, bottom, read, colors[0]),
        (place + 0.25, bottom, top, written, colors[1]),
    )
    for x, start, end, size, color in ways:
        width = max(0.5, WIDTH_OF_A_BYTE * size)
        ax.annotate("", (x, end), (x, start), arrowprops=_arrow(color, width))


def _arrow(color: str, width: float) -> dict[str, Any]:
    return {
        "arrowstyle": "-|>",
        "color": color,
        "lw": width,
        "shrinkA": 0,
        "shrinkB": 0,
        "mutation_scale": 6 + width,
    }


def _title(ax: Any, x: float, text: str) -> None:
    ax.text(x, MEMORY + 0.27, text, ha="center", va="center", weight="bold")


def _stage(ax: Any, first: int, last: int, label: str) -> None:
    """A line below some kernels, with a label."""
    y = PROCESSOR - 0.2
    ax.plot((first - 0.35, last + 0.35), (y, y), color=plot.BLACK, lw=1)
    ax.text((first + last) / 2, y - 0.12, label, ha="center", va="center")


def one_step(rows: Sequence[tuple[Mapping[str, int], str, Mapping[str, int]]]) -> Figure:
    """What the kernels of one step read and write, one below the other.

    Args:
        rows: for each kernel the tensors that it reads, its operation and the tensor that it
            writes; a tensor's label is mapped to its bytes.
    """
    fig, ax = plot.new_figure(width=6.4, height=0.5 * len(rows) + 1.1)
    for row, (read, operation, written) in enumerate(rows):
        _bars(ax, row, read, READ, side=-1)
        _bars(ax, row, written, WRITTEN, side=1)
        ax.text(0, row, operation, ha="center", va="center", fontsize=14)
        if row + 1 < len(rows) and set(written) & set(rows[row + 1][0]):
            # what is written here is what the next kernel reads first
            ends = (-MIDDLE + 1, row + 0.85), (MIDDLE - 1, row + 0.2)
            ax.annotate("", *ends, arrowprops=_arrow(GREY, 0.8))
        _later(ax, row, written, rows)
    heads = (
        (-MIDDLE, "right", "read from memory", READ),
        (0, "center", "kernel", plot.BLACK),
        (MIDDLE, "left", "written to memory", WRITTEN),
    )
    for x, side, text, color in heads:
        ax.text(x, -1.0, text, ha=side, va="center", color=color, weight="bold")
    ax.set(xlim=(-100, 72), ylim=(len(rows) + 0.1, -1.4))
    ax.axis("off")
    return fig


def _later(
    ax: Any,
    row: int,
    written: Mapping[str, int],
    rows: Sequence[tuple[Mapping[str, int], str, Mapping[str, int]]],
) -> None:
    """A way around the bars to a row below the next one, if that reads what is written here."""
    for later in range(row + 2, len(rows)):
        read = rows[later][0]
        for label in set(written) & set(read):
            before = list(read)[: list(read).index(label)]
            target = -MIDDLE - sum(read[other] + 1 for other in before) - read[label] / 2
            right, below = MIDDLE + max(written.values()), later + 0.72
            xs = (right + 1, right + 9, right + 9, target)
            ax.plot(xs, (row, row, below, below), color=GREY, lw=0.8)
            ax.annotate("", (target, later + 0.36), (target, below), arrowprops=_arrow(GREY, 0.8))


def _bars(ax: Any, row: int, tensors: Mapping[str, int], color: str, side: int) -> None:
    """Bars from the middle outwards, one for each tensor, as long as it has bytes."""
    start = MIDDLE
    for label, size in tensors.items():
        ax.barh(row, side * size, left=side * start, height=0.66, color=color, alpha=0.3, lw=0)
        # in the bar where there is room, beside it where there is not
        x = start + 1.5 if size > 20 else start + size + 1.5
        text = f"{label} ({size})"
        ax.text(side * x, row, text, ha="left" if side > 0 else "right", va="center", fontsize=10)
        start += size + 1


def shares(parts: tuple[str, str], first: Mapping[str, float]) -> Figure:
    """Bars that two parts divide between them.

    Args:
        parts: names of the two.
        first: maps a quantity to the first one's share of it, from 0 to 1.
    """
    fig, ax = plot.new_figure(width=6.4, height=0.62 * len(first) + 0.9)
    colors = (WRITTEN, PALE)
    for row, share in enumerate(first.values()):
        ax.barh(row, share, height=0.62, color=colors[0])
        ax.barh(row, 1 - share, left=share, height=0.62, color=colors[1])
        # in the bar, or to the right of one that is short
        is_short = share < 0.2
        ax.text(
            share + 0.015 if is_short else share - 0.015,
            row,
            f"{share:.0%}",
            ha="left" if is_short else "right",
            va="center",
            color=plot.BLACK if is_short else "white",
            weight="bold",
        )
    ax.text(0, -0.72, parts[0], ha="left", va="center", color=colors[0], weight="bold")
    ax.text(1, -0.72, parts[1], ha="right", va="center", color=GREY, weight="bold")
    ax.set_yticks(range(len(first)), list(first))
    ax.set(xlim=(0, 1), ylim=(len(first) - 0.5, -1.1), xticks=())
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    return fig


def times(measured: Mapping[str, float], grey: Sequence[str] = ()) -> Figure:
    """Horizontal bars for times, each with its number.

    Args:
        measured: maps a label to a time.
        grey: labels whose bars are there to be compared with.
    """
    fig, ax = plot.new_figure(width=6.4, height=0.5 * len(measured) + 0.4)
    longest = max(measured.values())
    for row, (label, time) in enumerate(measured.items()):
        ax.barh(row, time, height=0.62, color=GREY if label in grey else WRITTEN)
        ax.text(time + 0.01 * longest, row, f" {time:.1f}", ha="left", va="center", weight="bold")
    ax.set_yticks(range(len(measured)), list(measured))
    ax.set(xlim=(0, 1.12 * longest), ylim=(len(measured) - 0.5, -0.5), xticks=())
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    return fig

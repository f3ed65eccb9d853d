"""The diagrams of chapter 10: who reads what, and where the terms of a sum meet."""

from collections.abc import Iterable
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from katlib.book import plot
from katlib.book.drawing import GREY, PALE, PALE_BLUE, PALE_RED, Place, arrow, box, canvas
from katlib.book.plot import BLACK, BLUE, VERMILION

# threads
WARP = 32

_arrow = partial(arrow, width=1.2, head=9)
_box = partial(box, fontsize=10, rounding=0.1)


def _threads(ax: Axes, places: Iterable[float], y: float) -> None:
    for x in places:
        ax.plot(x, y, "o", markersize=8, markerfacecolor=PALE_BLUE, markeredgecolor=BLACK, zorder=3)


def layout(groups: int = 3, packs: int = 6, rows: int = 3, threads: int = 12) -> Figure:
    """Rows of memory in packs, with the threads of a block on the packs of the middle group."""
    columns = groups * packs
    fig, ax = canvas(6.4, 2.5, (-2.1, columns + 0.1), (-1.1, rows + 1.2))
    chosen = groups // 2
    for row in range(rows):
        y = rows - 1 - row
        ax.text(-0.3, y + 0.45, f"row {row}", ha="right", va="center")
        for column in range(columns):
            group, place = divmod(column, packs)
            number = row * packs + place
            fill = PALE
            if group == chosen:
                fill = PALE_BLUE if number < threads else PALE_RED
                text = str(number % threads)
                ax.text(column + 0.5, y + 0.44, text, ha="center", va="center", fontsize=9)
            ax.add_patch(Rectangle((column, y), 1, 0.9, facecolor=fill, edgecolor="white"))
    for group in range(groups):
        x = group * packs
        ax.text(x + packs / 2, rows + 0.55, f"group {group}", ha="center", va="center")
        ax.plot((x + 0.1, x + packs - 0.1), (rows + 0.12, rows + 0.12), color=GREY, lw=1)
    middle = chosen * packs
    ax.text(middle + packs / 2 + 0.5, -0.6, "blue: first turn", ha="center", color=BLUE)
    ax.text(columns, -0.6, "orange: second turn", ha="right", color=VERMILION)
    ax.text(0, -0.6, "a square: what a thread reads", color=GREY)
    return fig


def tiles(groups: int = 8, packs: int = 3, rows: int = 11) -> Figure:
    """What a warp of 32 threads reads at once: of one narrow group, and of a tile of all groups."""
    columns = groups * packs
    fig, axes = plot.new_figure(2, width=6.4, height=2.9)
    titles = "one group per block", "a tile of 8 groups per block"
    for ax, title, alone in zip(axes, titles, (True, False)):
        ax.set(xlim=(-0.2, columns + 0.2), ylim=(-0.1, rows + 0.6))
        ax.axis("off")
        ax.set_title(title, loc="center", fontsize=11)
        for row in range(rows):
            for column in range(columns):
                group, place = divmod(column, packs)
                number = row * (packs if alone else columns) + (place if alone else column)
                is_read = number < WARP and (group == 2 or not alone)
                corner = (column + 0.15 * (place == 0), rows - 1 - row)
                size = 1 - 0.15 * (place == 0), 0.85
                fill = BLUE if is_read else PALE
                ax.add_patch(Rectangle(corner, *size, facecolor=fill, edgecolor="white", lw=0.5))
    return fig


SUMS = ("$a_0$", "$a_1$", "…", "$b_4$")


def _sums(ax: Axes, left: float, y: float, fill: str) -> list[Place]:
    """A row of boxes, one for each coefficient; returns the middle of each one's upper edge."""
    places = [(left + 0.9 * k, y) for k in range(len(SUMS))]
    for at, name in zip(places, SUMS):
        _box(ax, at, name, fill, size=(0.8, 0.55))
    return [(x, y + 0.3) for x, _ in places]


def atomics_in_l2() -> Figure:
    """Stage 1: the threads of all blocks send every term to the same few sums in the L2 cache."""
    fig, ax = canvas(6.2, 2.9, (-1.9, 9.0), (-0.9, 4.1))
    targets = _sums(ax, 2.8, 0.0, PALE_RED)
    ax.text(-1.8, 3.3, "threads", va="center")
    ax.text(-1.8, 0.0, "L2 cache", va="center")
    ax.text(6.3, 0.9, "one addition at a time:\nthe others wait", va="center", color=VERMILION)
    for block in range(3):
        first = 3.1 * block
        x = [first + 0.6 * lane for lane in range(4)]
        ax.add_patch(Rectangle((first - 0.4, 2.95), 2.6, 0.7, facecolor="white", edgecolor=GREY))
        ax.text(first + 0.9, 3.9, f"block {block}", ha="center", va="center", color=GREY)
        _threads(ax, x, 3.3)
        for start in x:
            for target in targets[:2]:
                _arrow(ax, (start, 3.1), target, VERMILION, width=0.7)
    ax.text(0.0, -0.7, "each arrow once for every element", color=GREY, va="center")
    return fig


def two_ways_to_meet() -> Figure:
    """Stages 2 and 3: the queue moves into the block; then there is none inside the loop."""
    fig, axes = plot.new_figure(2, width=6.4, height=3.3)
    for ax, title, shared in zip(axes, ("stage 2", "stage 3"), (True, False)):
        ax.set(xlim=(-0.6, 6.0), ylim=(-0.9, 4.2))
        ax.axis("off")
        ax.set_title(title, loc="center", fontsize=11)
        targets = _sums(ax, 1.35, -0.2, PALE_RED)
        for block in range(2):
            _block_of_a_stage(ax, 3.0 * block, targets, shared)
    left, right = axes
    left.text(2.7, 4.0, "orange: for every element", ha="center", va="center", color=VERMILION)
    right.text(2.7, 4.0, "black: once, at the end", ha="center", va="center")
    left.text(2.7, -0.75, "L2 cache", ha="center", va="center", color=GREY)
    right.text(2.7, -0.75, "L2 cache", ha="center", va="center", color=GREY)
    return fig


def _block_of_a_stage(ax: Axes, first: float, targets: list[Place], shared: bool) -> None:
    """Four threads, and what they add to: the block's shared memory, or registers of their own."""
    x = [first + 0.6 * lane for lane in range(4)]
    ax.add_patch(Rectangle((first - 0.4, 1.25), 2.6, 2.35, facecolor="white", edgecolor=GREY))
    _threads(ax, x, 3.2)
    if shared:
        _box(ax, (first + 0.9, 1.7), "10 shared", PALE_RED, size=(2.0, 0.55))
        for start in x:
            _arrow(ax, (start, 3.0), (first + 0.9, 2.0), VERMILION)
        _arrow(ax, (first + 0.9, 1.4), targets[1], BLACK)
        return
    for start in x:
        _box(ax, (start, 2.2), "10", PALE_BLUE, size=(0.5, 0.5))
        _arrow(ax, (start, 3.0), (start, 2.47), VERMILION)
        _arrow(ax, (start, 1.93), targets[1], BLACK)


def shuffle_tree(lanes: int = 8) -> Figure:
    """A warp adds up: in each step a lane takes the sum of the lane half as far on as before."""
    fig, ax = canvas(6.2, 3.2, (-2.3, lanes - 0.5), (-0.5, 6.6))
    half, y = lanes, 6.0
    for lane in range(lanes):
        _box(ax, (lane, y), f"$s_{lane}$", PALE_BLUE, size=(0.66, 0.72))
    while half > 1:
        half //= 2
        ax.text(-0.8, y - 1.0, f"half = {half}", ha="right", va="center", color=GREY)
        for lane in range(half):
            for source in (lane, lane + half):
                color = BLACK if source == lane else VERMILION
                _arrow(ax, (source, y - 0.4), (lane, y - 1.58), color)
            count = lanes // half
            _box(ax, (lane, y - 2.0), f"Σ {count}", PALE_RED, size=(0.66, 0.72))
        y -= 2.0
    return fig


def instructions(kernels: dict[str, tuple[float, float]], room: tuple[float, float]) -> Figure:
    """Bars of the instructions per element, and lines where they take as long as the memory.

    Args:
        kernels: name -> instructions in float32 and in bfloat16.
        room: what the memory leaves time for, in float32 and in bfloat16.
    """
    fig, ax = plot.new_figure(width=6.4, height=3.6)
    kinds = ("float32", BLUE, PALE_BLUE), ("bfloat16", VERMILION, PALE_RED)
    for turn, ((dtype, color, fill), limit) in enumerate(zip(kinds, room)):
        for row, counts in enumerate(kernels.values()):
            y = row + 0.4 * turn
            ax.barh(y, counts[turn], height=0.38, color=fill, edgecolor=color, zorder=2)
            text = f"{dtype} {counts[turn]:.0f}"
            ax.text(1.5, y, text, ha="left", va="center", fontsize=9, zorder=4)
        ax.axvline(limit, color=color, ls="--", lw=1.8, zorder=3)
        label = f"{dtype}'s budget"
        ax.text(limit, -0.75, label, color=color, ha="center", va="bottom", fontsize=10)
    ax.set(ylim=(len(kernels) - 0.2, -0.6), xlabel="instructions per element")
    ax.set_yticks([row + 0.2 for row in range(len(kernels))], list(kernels))
    ax.grid(False)
    return fig


def two_stages(parts: int = 4) -> Figure:
    """Stage 5: each block has a column of its own; a warp of the second kernel adds up a row."""
    fig, ax = canvas(6.4, 3.0, (-0.2, 11.6), (-0.9, 4.6))
    for part in range(parts):
        _box(ax, (1.0 + 1.3 * part, 3.7), f"block {part}", PALE_BLUE, size=(1.15, 0.6))
        _arrow(ax, (1.0 + 1.3 * part, 3.4), (1.0 + 1.3 * part, 2.5), BLUE)
    for k, name in enumerate(SUMS):
        y = 2.05 - 0.7 * k
        for part in range(parts):
            corner = (0.4 + 1.3 * part, y - 0.3)
            ax.add_patch(Rectangle(corner, 1.2, 0.6, facecolor=PALE_BLUE, edgecolor="white"))
        ax.text(-0.1, y, name, va="center")
        if name == "…":
            continue
        _arrow(ax, (0.4 + 1.3 * parts, y), (7.0, y), VERMILION)
        _box(ax, (7.7, y), "a warp", PALE_RED, size=(1.3, 0.55))
        _arrow(ax, (8.4, y), (9.3, y), VERMILION)
        ax.text(9.5, y, "d" + name, va="center")
    ax.text(3.0, 4.4, "first kernel: each block writes its own column", ha="center", color=BLUE)
    ax.text(8.2, 3.0, "second kernel:\neach row in a fixed order", ha="center", color=VERMILION)
    ax.text(3.0, -0.75, "partial, for one group", ha="center", color=GREY)
    return fig

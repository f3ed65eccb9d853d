"""The drawings of chapter 11: the data path of a block with its shapes, and what its parts cost."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from katlib.book import plot

BLACK, BLUE, VERMILION = plot.PALETTE[:3]
GREY, PALE, PALE_BLUE, PALE_RED = "#8a8a8a", "#f1f1f1", "#e3eef6", "#fbe6da"
# of a part's box, in units of the drawing
WIDTH, HEIGHT, STEP = 2.9, 0.66, 1.0
SHORTCUT = 2.0

# what stands in a box, and what is written there
Part = tuple[str, Sequence[int]]
COLORS = {"GELU": (PALE_RED, VERMILION), "rational": (PALE_BLUE, BLUE)}


def blocks(paths: Mapping[str, Sequence[Part | None]]) -> Figure:
    """Transformer blocks side by side, from top to bottom, with the shape after each part.

    Args:
        paths: by a block's title its parts in their order, each as the text of its box and the
            shape of what it returns. None is the sum with the shortcut.
    """
    fig, ax = plot.new_figure(width=8.4, height=6.6)
    longest = max(map(len, paths.values()))
    ax.set(xlim=(-2.5, 8.6), ylim=(-STEP * longest - 0.6, 0.95))
    ax.set_axis_off()
    for k, (title, parts) in enumerate(paths.items()):
        _path(ax, 5.8 * k, title, parts)
    return fig


def _path(ax: Axes, x: float, title: str, parts: Sequence[Part | None]) -> None:
    ax.text(x, 0.45, title, ha="center", va="bottom", weight="bold")
    line = {"arrowstyle": "-|>", "color": BLACK, "shrinkA": 0, "shrinkB": 0}
    above = fork = 0.3
    for row, part in enumerate(parts):
        y = -STEP * row - 0.6
        half = 0.2 if part is None else HEIGHT / 2
        ax.annotate("", (x, y + half), xytext=(x, above), arrowprops=line)
        if part is None:
            _sum(ax, x, y, fork - 0.08)
            fork = y - half
        else:
            _part(ax, x, y, *part)
        above = y - half
    ax.annotate("", (x, above - 0.55), xytext=(x, above), arrowprops=line)


def _part(ax: Axes, x: float, y: float, text: str, shape: Sequence[int]) -> None:
    kind = next((name for name in COLORS if name in text), "")
    color, edge = COLORS.get(kind, (PALE, GREY))
    corner, style = (x - WIDTH / 2, y - HEIGHT / 2), "round,pad=0,rounding_size=0.1"
    box = FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle=style, facecolor=color, edgecolor=edge)
    ax.add_patch(box)
    ax.text(x, y, text, ha="center", va="center", fontsize=10)
    ax.text(x + WIDTH / 2 + 0.12, y, " × ".join(map(str, shape)), va="center", fontsize=10)


def _sum(ax: Axes, x: float, y: float, fork: float) -> None:
    """A plus, and the shortcut that leads to it from the height `fork`."""
    ax.plot(x, y, "o", markersize=17, color="white", markeredgecolor=BLACK)
    ax.text(x, y - 0.02, "+", ha="center", va="center", fontsize=13)
    corners = [(x, fork), (x - SHORTCUT, fork), (x - SHORTCUT, y), (x - 0.2, y)]
    ax.plot(*zip(*corners), color=GREY, linewidth=1.2, zorder=0)


def shares(rows: Mapping[str, Mapping[str, int]]) -> Figure:
    """How a block's parameters and operations are divided among its parts, as bars of length 1.

    Args:
        rows: by what is counted, the count of each part; a part named "rational functions" is
            blue, and its share is written above it.
    """
    fig, ax = plot.new_figure(width=8.4, height=2.6)
    shades = ("#c9c9c9", "#9d9d9d", "#e4e4e4", "#6f6f6f")
    for row, counts in enumerate(rows.values()):
        total, left, shade = sum(counts.values()), 0.0, iter(shades)
        for part, count in counts.items():
            share = count / total
            is_rational = part == "rational functions"
            color = BLUE if is_rational else next(shade)
            ax.barh(row, share, left=left, height=0.5, color=color)
            if is_rational:
                text = f"{part}: {share:.2%}"
                ax.text(1.0, row - 0.33, text, ha="right", va="bottom", color=BLUE, fontsize=10)
            elif share > 0.1:
                text = f"{part}\n{share:.0%}"
                ax.text(left + share / 2, row, text, ha="center", va="center", fontsize=10)
            left += share
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlim=(0, 1), xticks=[], ylim=(len(rows) - 0.6, -0.65))
    ax.grid(visible=False)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=0)
    return fig

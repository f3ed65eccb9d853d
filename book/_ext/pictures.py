"""The book's mark, and the small pictures on the cards of the start page.

    python book/_ext/pictures.py               writes the mark, book/_static/mark.svg

A card's picture is SVG within the page, so its colours come from the style sheet, which has them
for both themes: `ink` for what is given, `one` for what a chapter is about, `two` for what it is
compared with, `three` for a third. The mark is a file, opaque, the same in both themes.
"""

import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = ROOT / "book" / "_static" / "mark.svg"

# of a card's picture, in its own units
WIDTH, HEIGHT = 120, 64

Point = tuple[float, float]


# ---- strokes


def number(value: float) -> str:
    """With at most one digit behind the point."""
    return f"{round(value, 1) + 0:g}"


def path(points: Iterable[Point], style: str) -> str:
    """A line through points."""
    corners = "L".join(f"{number(x)} {number(y)}" for x, y in points)
    return f'<path class="{style}" d="M{corners}"/>'


def line(x1: float, y1: float, x2: float, y2: float, style: str = "ink thin") -> str:
    return path([(x1, y1), (x2, y2)], style)


def dot(x: float, y: float, style: str = "ink", radius: float = 3) -> str:
    return f'<circle class="dot {style}" cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"/>'


def ring(x: float, y: float, radius: float, style: str = "ink thin") -> str:
    return f'<circle class="{style}" cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"/>'


def box(x: float, y: float, width: float, height: float, style: str = "ink thin") -> str:
    return (
        f'<rect class="{style}" x="{number(x)}" y="{number(y)}" '
        f'width="{number(width)}" height="{number(height)}" rx="3"/>'
    )


def arrow(x1: float, y1: float, x2: float, y2: float, style: str = "ink thin") -> str:
    """A line with a head at its second end."""
    length = math.hypot(x2 - x1, y2 - y1)
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    head = [
        (x2 - 4 * ux - 3 * uy, y2 - 4 * uy + 3 * ux),
        (x2, y2),
        (x2 - 4 * ux + 3 * uy, y2 - 4 * uy - 3 * ux),
    ]
    return line(x1, y1, x2, y2, style) + path(head, style)


def curve(
    function: Callable[[float], float],
    style: str = "one",
    *,
    x: Point = (-3, 3),
    y: Point = (-1, 3),
    place: tuple[float, float, float, float] = (8, 6, 104, 52),
    steps: int = 48,
) -> str:
    """A function's graph over the interval `x`; `y` is what the place's height spans."""
    left, top, width, height = place
    points = []
    for step in range(steps + 1):
        at = x[0] + (x[1] - x[0]) * step / steps
        up = (function(at) - y[0]) / (y[1] - y[0])
        points.append((left + width * step / steps, top + height * (1 - up)))
    return path(points, style)


# ---- functions


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def bell(x: float) -> float:
    return math.exp(-x * x / 2)


def hat(x: float, degree: int) -> float:
    """The B-spline of a degree with its middle at 0, on knots with distance 1."""
    half = (degree + 1) / 2
    terms = (
        (-1) ** k * math.comb(degree + 1, k) * max(x + half - k, 0) ** degree
        for k in range(degree + 2)
        if x + half - k >= 0
    )
    return sum(terms) / math.factorial(degree)


def staircase(x: float, depth: int = 9) -> float:
    """A function on [0, 1] that always increases, and whose steepest slope has no bound."""
    if depth == 0:
        return x
    if x < 0.5:
        return 0.25 * staircase(2 * x, depth - 1)
    return 0.25 + 0.75 * staircase(2 * x - 1, depth - 1)


# ---- the pictures, one for each chapter


def bump_of_copies() -> str:
    """1: three copies of GELU, and the bump that they add up to."""
    copies = [(0.9, 1.6), (-1.8, 0.0), (0.9, -1.6)]

    def total(x: float) -> float:
        return sum(v * gelu(x + c) for v, c in copies)

    def copy(v: float, c: float) -> str:
        return curve(lambda x: v * gelu(x + c), "ink thin", x=(-3.4, 3.4), y=(-3.4, 3.4))

    drawn = "".join(copy(v, c) for v, c in copies)
    return drawn + curve(total, "one", x=(-3.4, 3.4), y=(-1.1, 1.1))


def learned_edges() -> str:
    """2: a network whose edges hold functions."""

    def edge(x: float, y: float, function: Callable[[float], float]) -> str:
        frame = box(x - 13, y - 9, 26, 18, "ink thin plate")
        inner = (x - 10, y - 6, 20, 12)
        return frame + curve(function, "one", x=(-1, 1), y=(-1, 1), place=inner, steps=16)

    return (
        line(8, 12, 74, 32)
        + line(8, 52, 74, 32)
        + line(74, 32, 112, 32)
        + edge(38, 17, lambda x: math.sin(3 * x))
        + edge(38, 47, lambda x: 2 * x * x - 1)
        + edge(93, 32, lambda x: math.tanh(3 * x))
        + dot(8, 12)
        + dot(8, 52)
        + dot(72, 32)
        + dot(114, 32)
    )


def trips_to_memory() -> str:
    """3: many trips between memory and arithmetic, beside a single one."""
    many = [(14 + 7 * k, 46 if k % 2 else 18) for k in range(9)]
    return (
        box(6, 6, 108, 10)
        + box(6, 48, 108, 10)
        + path(many, "two")
        + path([(88, 18), (95, 44), (102, 18)], "one")
    )


def disc_of_convergence() -> str:
    """4: the complex plane, the disc in which a series converges, and the two poles on its rim."""

    def cross(x: float, y: float) -> str:
        return line(x - 4, y - 4, x + 4, y + 4, "two") + line(x - 4, y + 4, x + 4, y - 4, "two")

    return (
        line(10, 32, 110, 32)
        + line(60, 3, 60, 61)
        + ring(60, 32, 22, "one filled")
        + cross(60, 10)
        + cross(60, 54)
    )


def pole_and_none() -> str:
    """5: a ratio with a pole, and one with a safe denominator."""
    left = [(8 + 1.2 * k, 37 - 26 / (36 - k)) for k in range(36)]
    right = [(114 - 1.2 * k, 33 + 26 / (43 - k)) for k in range(43)]

    def safe(x: float) -> float:
        return x * x * 0.55 / (1 + 0.35 * abs(x)) * (1 if x > 0 else 0.25)

    return (
        line(55, 4, 55, 60, "ink thin dashed")
        + path(left, "two")
        + path(right, "two")
        + curve(safe, "one", y=(-1.2, 3.6))
    )


def groups_of_channels() -> str:
    """6: the channels in groups, and a function for each group."""
    drawn = ""
    shapes = [gelu, lambda x: 1.6 * math.sin(1.3 * x) + 0.7, lambda x: 0.35 * x * x - 0.3]
    for group, (function, style) in enumerate(zip(shapes, ("one", "two", "three"), strict=True)):
        left = 8 + 37 * group
        drawn += curve(function, style, x=(-2.6, 2.6), y=(-1, 2.6), place=(left, 6, 29, 24))
        for channel in range(4):
            drawn += line(left + 14.5, 34, left + 2 + 8.4 * channel, 46)
            drawn += dot(left + 2 + 8.4 * channel, 52, style)
    return drawn


def signal_in_depth() -> str:
    """7: a signal that grows, one that dies, and one that keeps its size from layer to layer."""
    drawn = "".join(line(12 + 16 * k, 6, 12 + 16 * k, 58) for k in range(7))
    return (
        drawn
        + path([(12, 32), (84, 6)], "two")
        + path([(12, 32), (84, 58)], "two")
        + line(12, 32, 108, 32, "one")
        + "".join(dot(12 + 16 * k, 32, "one", 2.6) for k in range(7))
    )


def many_into_one() -> str:
    """8: every element's share of the gradient goes into one sum."""
    drawn = ""
    for k in range(9):
        y = 6 + 6.5 * k
        drawn += dot(14, y, "ink", 2) + line(18, y, 84, 32 + (y - 32) * 0.12)
    return drawn + dot(92, 32, "one", 8)


def roofline() -> str:
    """9: the roofline, and a kernel below it."""
    return (
        path([(12, 5), (12, 58), (114, 58)], "ink thin")
        + path([(14, 54), (64, 14), (114, 14)], "one")
        + line(40, 33.2, 40, 50, "ink thin dashed")
        + dot(40, 48, "two", 3.5)
    )


def ladder() -> str:
    """10: the stages of a kernel, one rung after the other."""
    drawn = line(36, 60, 52, 4, "ink") + line(84, 60, 68, 4, "ink")
    for rung in range(6):
        y = 53 - 8.8 * rung
        inset = (60 - y) * 16 / 56
        drawn += line(36 + inset, y, 84 - inset, y, "one" if rung == 5 else "two")
    return drawn


def block() -> str:
    """11: a transformer's block, with a learned function in the place of its MLP's."""
    return (
        arrow(4, 36, 20, 36)
        + box(20, 24, 28, 24)
        + arrow(48, 36, 64, 36)
        + box(64, 22, 34, 28, "one plate")
        + curve(gelu, "one", place=(69, 27, 24, 18), steps=16)
        + arrow(98, 36, 116, 36)
        + path([(11, 36), (11, 10), (55, 10), (55, 34)], "ink thin")
        + path([(57, 36), (57, 10), (108, 10), (108, 34)], "ink thin")
        + "".join(dot(28 + 6 * k, 36, "ink", 1.8) for k in range(3))
    )


def training_curves() -> str:
    """12: three runs of each of two models, which scatter about as much as they differ."""
    drawn = path([(10, 5), (10, 58), (114, 58)], "ink thin")
    for run in range(6):
        end = 12 + 2.2 * ((run * 5) % 6)

        def falling(x: float, end: float = end, run: int = run) -> float:
            return (58 - end) * (1 - math.exp(-2.4 * x)) + 1.1 * math.sin(9 * x + 2 * run) * x

        drawn += curve(
            falling, "one thin" if run % 2 else "two thin", x=(0, 1.6), y=(0, 52), steps=30
        )
    return drawn


def intervals() -> str:
    """13: differences with their intervals, and the line at zero."""
    rows = [(34, 16, "two"), (62, 12, "ink"), (70, 18, "ink"), (58, 22, "ink"), (78, 15, "one")]
    drawn = line(66, 4, 66, 60, "ink thin dashed")
    for row, (middle, half, style) in enumerate(rows):
        y = 10 + 11 * row
        drawn += line(middle - half, y, middle + half, y, style) + dot(middle, y, style, 3)
    return drawn


def lens() -> str:
    """14: a learned function under a magnifying glass, beside where it started."""

    def wave(x: float) -> float:
        return 0.55 * x + 0.9 * math.sin(2.1 * x)

    return (
        curve(lambda x: 0.75 * x, "ink thin dashed", y=(-3, 3))
        + curve(wave, "one", y=(-3, 3))
        + ring(72, 26, 19, "ink")
        + line(85.5, 39.5, 102, 57, "ink thick")
    )


def from_one_to_the_other() -> str:
    """15: a GELU becomes a learned function with the same graph."""
    before, after = (8, 14, 36, 36), (76, 14, 36, 36)
    handles = [(-2.0, gelu(-2.0)), (0.2, gelu(0.2)), (1.8, gelu(1.8))]
    drawn = (
        box(4, 10, 44, 44)
        + curve(gelu, "ink", place=before, steps=24)
        + arrow(53, 32, 67, 32)
        + box(72, 10, 44, 44, "one")
        + curve(gelu, "one", place=after, steps=24)
    )
    for x, y in handles:
        drawn += dot(after[0] + 36 * (x + 3) / 6, after[1] + 36 * (1 - (y + 1) / 4), "two", 2.6)
    return drawn


def ledger() -> str:
    """16: claims, ticked, crossed out, and left open."""
    drawn = "".join(line(38, 12 + 13.5 * row, 108, 12 + 13.5 * row) for row in range(4))
    drawn += path([(14, 12), (18, 16.5), (26, 6)], "three")
    drawn += line(15, 20.5, 25, 30.5, "two") + line(25, 20.5, 15, 30.5, "two")
    drawn += path([(14, 39), (18, 43.5), (26, 33)], "three")
    return drawn + ring(20, 52.5, 5, "ink")


def rough_function() -> str:
    """A1: an increasing function that is rough on every scale."""
    frame = path([(12, 4), (12, 58), (112, 58)], "ink thin")
    return frame + curve(staircase, "one", x=(0, 1), y=(0, 1), place=(12, 6, 98, 52), steps=128)


def splines() -> str:
    """A2: B-splines of the degrees 0, 1 and 3."""
    drawn = line(4, 54, 116, 54)
    step = [(10, 54), (10, 16), (27, 16), (27, 54)]
    drawn += path(step, "ink") + path([(32, 54), (49, 16), (66, 54)], "two")
    return drawn + curve(
        lambda x: hat(x, 3), "one", x=(-2, 2), y=(0, 0.667), place=(62, 16, 52, 38)
    )


def quadrature() -> str:
    """A3: an integral over the normal distribution, from a few points with weights."""
    drawn = line(6, 56, 114, 56) + curve(bell, "ink", x=(-3, 3), y=(0, 1.08))
    for node in (-2.33, -1.16, 0, 1.16, 2.33):
        x, y = 60 + 104 / 6 * node, 58 - 52 / 1.08 * bell(node)
        drawn += line(x, 56, x, y, "one thin") + dot(x, y, "one")
    return drawn


def summation_tree() -> str:
    """A4: eight terms are added in pairs."""
    drawn, level = "", [(11 + 14 * k, 55.0) for k in range(8)]
    while len(level) > 1:
        above = []
        for (x1, y1), (x2, y2) in zip(level[::2], level[1::2], strict=True):
            above.append(((x1 + x2) / 2, y1 - 15))
            drawn += line(x1, y1, *above[-1]) + line(x2, y2, *above[-1])
        drawn += "".join(dot(x, y, "ink", 2.6) for x, y in level)
        level = above
    return drawn + dot(*level[0], "one", 4.5)


def round_trip() -> str:
    """A5: a trip to memory and back."""
    there = [(46 + 28 * k / 12, 24 - 10 * math.sin(math.pi * k / 12)) for k in range(13)]
    back = [(74 - 28 * k / 12, 42 + 10 * math.sin(math.pi * k / 12)) for k in range(13)]
    return (
        box(6, 14, 36, 38)
        + "".join(line(11, 23 + 10 * k, 37, 23 + 10 * k) for k in range(3))
        + box(78, 14, 36, 38, "one")
        + curve(gelu, "one", place=(84, 20, 24, 24), steps=16)
        + path(there, "two")
        + path([(68, 19), (74, 24), (75.5, 17)], "two")
        + path(back, "two")
        + path([(52, 47), (46, 42), (44.5, 49)], "two")
    )


def shared_numerator() -> str:
    """A6: one numerator for all groups, and a denominator for each."""
    drawn = box(42, 3, 36, 24, "one")
    drawn += curve(lambda x: x + x * x * x / 6, "one", y=(-6, 6), place=(46, 6, 28, 18), steps=24)
    for group, width in enumerate((0.4, 1.0, 2.4)):
        x = 22 + 38 * group
        drawn += line(60, 27, x, 38) + box(x - 15, 38, 30, 22, "two thin")
        drawn += curve(
            lambda x, width=width: 1 + width * x * x,
            "two",
            y=(0, 1 + 9 * 2.4),
            place=(x - 11, 41, 22, 16),
            steps=16,
        )
    return drawn


def plain_curve() -> str:
    """For a page without a picture of its own."""
    return line(8, 45, 112, 45) + curve(gelu)


PICTURES: dict[int | str, Callable[[], str]] = {
    1: bump_of_copies,
    2: learned_edges,
    3: trips_to_memory,
    4: disc_of_convergence,
    5: pole_and_none,
    6: groups_of_channels,
    7: signal_in_depth,
    8: many_into_one,
    9: roofline,
    10: ladder,
    11: block,
    12: training_curves,
    13: intervals,
    14: lens,
    15: from_one_to_the_other,
    16: ledger,
    "A1": rough_function,
    "A2": splines,
    "A3": quadrature,
    "A4": summation_tree,
    "A5": round_trip,
    "A6": shared_numerator,
}


def picture(chapter: int | str) -> str:
    """A chapter's picture as SVG to stand in a page. It says nothing that the text does not."""
    drawn = PICTURES.get(chapter, plain_curve)()
    return (
        f'<svg class="chapter-picture" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true" '
        f'focusable="false">{drawn}</svg>'
    )


# ---- the mark


def learned_functions() -> list[Callable[[float], float]]:
    """Those of the first block's second activation in the trained model that katlib brings."""
    import katlib

    activation = katlib.load_pretrained("kat-cifar10").blocks[0].mlp.act2
    a = activation.weight_numerator[0].tolist()

    def of_group(b: list[float]) -> Callable[[float], float]:
        return lambda x: (
            sum(a_i * x**i for i, a_i in enumerate(a))
            / (1 + sum(abs(b_j) * abs(x) ** j for j, b_j in enumerate(b, start=1)))
        )

    return [of_group(b) for b in activation.weight_denominator.tolist()]


def mark() -> str:
    """A square with the eight learned functions of a layer, one of them with a handle to drag."""
    functions = learned_functions()
    left, right, low, high = -4.4, 4.4, -0.55, 1.5
    chosen = min(functions, key=lambda f: f(left))  # the others fan out above it

    def drawn(function: Callable[[float], float], style: str) -> str:
        return curve(function, style, x=(left, right), y=(low, high), place=(0, 6, 64, 52))

    others = "".join(drawn(f, "other") for f in functions if f is not chosen)
    top = max((step / 50 for step in range(200)), key=chosen)
    x = 64 * (top - left) / (right - left)
    y = 6 + 52 * (1 - (chosen(top) - low) / (high - low))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" width="64" height="64">'
        "<title>The KAT book</title>"
        "<style>path{fill:none;stroke:#fff;stroke-width:5;stroke-linejoin:round}"
        ".other{stroke-width:1.5;opacity:.6}</style>"
        '<clipPath id="tile"><rect width="64" height="64" rx="13"/></clipPath>'
        '<g clip-path="url(#tile)"><rect width="64" height="64" fill="#0072B2"/>'
        f"{others}{drawn(chosen, 'chosen')}</g>"
        f'<circle cx="{number(x)}" cy="{number(y)}" r="6" fill="#E69F00" stroke="#fff" '
        'stroke-width="2.5"/></svg>\n'
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    MARK.write_text(mark(), encoding="utf-8")

"""SplineCostExplorer: the bytes that a B-spline basis moves, kernel by kernel."""

from __future__ import annotations

from typing import Any

import traitlets

from katlib.widgets.live import LiveFigure, shown, source
from katlib.widgets.still import Curve

MOST_GRID = 20
MOST_ORDER = 4


class SplineCostExplorer(LiveFigure):
    """What each kernel of a B-spline basis reads and writes, for any grid and order.

    The basis is `katlib.spline.bspline_basis` on 512 tokens of 128 channels. A table compares it
    with the same basis fused into one kernel, and with the matrix product that follows in
    `SplineKAN`, to 128 outputs. The counts are those of `katlib.book.meter`.

    Args:
        grid: number of intervals, 1 to 20.
        order: degree of the splines, 0 to 4.

    Attributes: the same. Both can be assigned.

    Raises:
        ValueError: sizes out of range.
        traitlets.TraitError: the same when they are assigned.

    Example:
        >>> katlib.SplineCostExplorer(grid=5, order=3).grid
        5
    """

    _esm = source("spline_cost.js")
    grid = traitlets.Int(min=1, max=MOST_GRID).tag(sync=True)
    order = traitlets.Int(min=0, max=MOST_ORDER).tag(sync=True)

    def __init__(self, grid: int = 5, order: int = 3):
        _check("grid", grid, 1, MOST_GRID)
        _check("order", order, 0, MOST_ORDER)
        super().__init__(grid=grid, order=order)

    def _still(self) -> list[Curve]:
        grids = range(1, MOST_GRID + 1)
        curves = []
        for order in range(MOST_ORDER + 1):
            moved = [_bytes(grid, order) for grid in grids]
            name = f"bytes for each input at order {order}, by grid"
            curves.append(Curve(name, list(grids), moved, dashed=order != self.order))
        return curves


def _check(name: str, value: Any, least: int, most: int) -> None:
    # True is the number 1 to Python, and a mistake here
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name}={shown(value)}; allowed are {least} to {most}")


def _bytes(grid: int, order: int) -> int:
    """What the kernels of the basis move for one input; the few bytes of the knots are left out."""
    steps = grid + 2 * order
    # the interval: two comparisons, their combination, and its conversion to floats
    interval = 10 * steps + 8
    # seven large kernels move 15 floats for each function of a degree, and read x twice
    return interval + sum(4 * 15 * (steps - d) + 8 for d in range(1, order + 1))

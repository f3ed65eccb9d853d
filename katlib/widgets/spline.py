"""SplineExplorer: a B-spline whose coefficients can be dragged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import traitlets
from torch import Tensor

from katlib.widgets.live import LiveFigure, source


class SplineExplorer(LiveFigure):
    """The curve sum_k c_k B_k(x) with a handle for each c_k, and the basis functions B_k below it.

    It is the function on one edge of `SplineKAN`.

    Args:
        coefficients: grid + order numbers, a list or a tensor; by default samples of sin(pi x).
        grid: number of intervals that divide `interval`, 2 to 12.
        order: degree of the splines, 0 to 3.
        interval: (lo, hi), where the spline lives.

    Attributes: the same. Assigning grid or order alone does not change the number of coefficients:
        assign all three under `hold_sync()`, or make another explorer.

    Raises:
        ValueError: sizes out of range, or another number of coefficients than grid + order.

    Example:
        >>> len(katlib.SplineExplorer(grid=5, order=3).coefficients)
        8
    """

    _esm = source("spline.js")
    coefficients = traitlets.List(traitlets.Float()).tag(sync=True)
    grid = traitlets.Int().tag(sync=True)
    order = traitlets.Int().tag(sync=True)
    interval = traitlets.List(traitlets.Float()).tag(sync=True)

    def __init__(
        self,
        coefficients: Sequence[float] | Tensor | None = None,
        grid: int = 5,
        order: int = 3,
        interval: tuple[float, float] = (-1.0, 1.0),
    ):
        low, high = interval
        if not (2 <= grid <= 12 and 0 <= order <= 3 and low < high):
            raise ValueError(
                f"grid={grid}, order={order}, interval={interval}; "
                "allowed are grids 2 to 12, orders 0 to 3 and lo < hi"
            )
        if coefficients is None:
            coefficients = _sine_samples(grid, order)
        numbers = [float(coefficient) for coefficient in coefficients]
        if len(numbers) != grid + order:
            raise ValueError(
                f"{len(numbers)} coefficients; grid={grid} and order={order} need {grid + order}"
            )
        super().__init__(
            coefficients=numbers, grid=grid, order=order, interval=[float(low), float(high)]
        )


def _sine_samples(grid: int, order: int) -> list[float]:
    """One period of a sine, sampled where the basis functions have their centres."""
    samples = []
    for k in range(grid + order):
        # on the scale on which the interval goes from 0 to 1; some B_k have theirs outside
        centre = (2 * k + 1 - order) / (2 * grid)
        inside = min(1.0, max(0.0, centre))
        samples.append(math.sin(2 * math.pi * inside - math.pi))
    return samples

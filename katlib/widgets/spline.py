"""SplineExplorer: a B-spline whose coefficients can be dragged."""

import math

import traitlets

from katlib.widgets.live import LiveFigure, source


class SplineExplorer(LiveFigure):
    """The curve sum_k c_k B_k(x) with a handle for each c_k, and the basis functions B_k below it, as on an edge of `SplineKAN`.

    Args:
        coefficients: grid + order numbers, a list or a tensor; by default samples of sin(pi x).
        grid: number of intervals that divide `interval`, 2 to 12.
        order: degree of the splines, 0 to 3.
        interval: (lo, hi), where the spline lives.

    Attributes: the same. Assigning grid or order alone does not change the number of coefficients: assign all three under
    `hold_sync()`, or make another explorer.

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
        coefficients=None,
        grid: int = 5,
        order: int = 3,
        interval: tuple[float, float] = (-1.0, 1.0),
    ):
        lo, hi = interval
        if not (2 <= grid <= 12 and 0 <= order <= 3 and lo < hi):
            raise ValueError(
                f"grid={grid}, order={order}, interval={interval}; allowed are grids 2 to 12, orders 0 to 3 and lo < hi"
            )
        if coefficients is None:
            centres = [
                (2 * k + 1 - order) / (2 * grid) for k in range(grid + order)
            ]  # of each B_k, 0 to 1 on the interval
            coefficients = [
                math.sin(2 * math.pi * min(1.0, max(0.0, t)) - math.pi) for t in centres
            ]
        coefficients = [float(c) for c in coefficients]
        if len(coefficients) != grid + order:
            raise ValueError(
                f"{len(coefficients)} coefficients; grid={grid} and order={order} need {grid + order}"
            )
        super().__init__(
            coefficients=coefficients, grid=grid, order=order, interval=[float(lo), float(hi)]
        )

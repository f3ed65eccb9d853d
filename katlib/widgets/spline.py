"""SplineExplorer: a B-spline whose coefficients can be dragged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import traitlets
from torch import Tensor

from katlib.spline import bspline_basis
from katlib.widgets.live import Coefficients, LiveFigure, finite_numbers, shown, source
from katlib.widgets.still import Curve

GRIDS = range(2, 13)
ORDERS = range(4)
# the page draws intervals up to this far from 0, and no shorter than this
FARTHEST = 1e6
SHORTEST = 1e-3


class SplineExplorer(LiveFigure):
    """The curve sum_k c_k B_k(x) with a handle for each c_k, and the basis functions B_k below it.

    It is the function on one edge of `SplineKAN`.

    Args:
        coefficients: grid + order numbers, a list or a tensor; by default samples of sin(pi x).
        grid: number of intervals that divide `interval`, 2 to 12.
        order: degree of the splines, 0 to 3.
        interval: (lo, hi), where the spline lives.

    Attributes: the same. All but the interval can be assigned. There are always grid + order
        coefficients: to change their number, assign them together with grid or order under
        `hold_trait_notifications()`.

    Raises:
        ValueError: sizes out of range, or something else than grid + order finite numbers.
        traitlets.TraitError: the same when it is assigned.

    Example:
        >>> len(katlib.SplineExplorer(grid=5, order=3).coefficients)
        8
    """

    _esm = source("spline.js")
    coefficients = Coefficients().tag(sync=True)
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
        _check_sizes(grid, order)
        low, high = _checked_interval(interval)
        if coefficients is None:
            coefficients = _sine_samples(grid, order)
        super().__init__(
            coefficients=_checked_coefficients(coefficients, grid, order),
            grid=int(grid),
            order=int(order),
            interval=[low, high],
        )

    @traitlets.validate("coefficients", "grid", "order")
    def _check_together(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        now = {key: getattr(self, key) for key in ("coefficients", "grid", "order")} | {name: value}
        try:
            _check_sizes(now["grid"], now["order"])
            numbers = _checked_coefficients(**now)
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None
        return numbers if name == "coefficients" else value

    def _still(self) -> list[Curve]:
        low, high = self.interval
        step = (high - low) / self.grid
        # the interval's knots, and `order` more on either side
        places = torch.arange(-self.order, self.grid + self.order + 1, dtype=torch.float64)
        # up to the last knot, which belongs to no basis function
        x = torch.linspace(low, high - 1e-6 * (high - low), 81, dtype=torch.float64)
        basis = bspline_basis(x, low + step * places, self.order)  # (81, grid + order)
        coefficients = torch.tensor(self.coefficients, dtype=torch.float64)
        return [Curve("the spline", x.tolist(), (basis @ coefficients).tolist())]


def _check_sizes(grid: Any, order: Any) -> None:
    # True is the number 1 to Python, and a mistake here
    if isinstance(order, bool) or grid not in GRIDS or order not in ORDERS:
        raise ValueError(
            f"grid={shown(grid)}, order={shown(order)}; allowed are grids 2 to 12 and orders 0 to 3"
        )


def _checked_interval(interval: Any) -> list[float]:
    low, high = finite_numbers("interval", interval, count=2)
    if not (-FARTHEST <= low <= high - SHORTEST and high <= FARTHEST):
        raise ValueError(
            f"interval={shown(interval)}; allowed are lo < hi, at least {SHORTEST} apart "
            f"and within {FARTHEST:.0e} of 0"
        )
    return [low, high]


def _checked_coefficients(coefficients: Any, grid: int, order: int) -> list[float]:
    try:
        return finite_numbers("coefficients", coefficients, count=grid + order)
    except ValueError as error:
        raise ValueError(f"{error}; grid={grid} and order={order} need {grid + order}") from None


def _sine_samples(grid: int, order: int) -> list[float]:
    """One period of a sine, sampled where the basis functions have their centres."""
    samples = []
    for k in range(grid + order):
        # on the scale on which the interval goes from 0 to 1; some B_k have theirs outside
        centre = (2 * k + 1 - order) / (2 * grid)
        inside = min(1.0, max(0.0, centre))
        samples.append(math.sin(2 * math.pi * inside - math.pi))
    return samples

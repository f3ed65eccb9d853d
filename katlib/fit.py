"""Coefficients from a target function: the best rational function in the largest error, under the denominator that is evaluated.

The released KAT coefficients for GELU were fitted with one denominator and are evaluated with another; the largest error on [-3, 3] is
1.46. So here the same Q is used for both: Q(x) = 1 + sum_j |b_j| |x|^j. `make coefficients` calls `main`, which writes `coefficients.json`, the
starting points that `GroupRational(init=...)` knows.

Method: Levenberg-Marquardt steps on weighted squares, with Lawson's reweighting (C. L. Lawson, PhD thesis, UCLA 1961) to turn the least
squares into the least maximum, from four starting denominators; two of them are Sanathanan & Koerner's linearised fits (IEEE Trans.
Automatic Control 8, 1963).
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from katlib.rational import rational_reference

TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
POINTS, DENSE = (
    600,
    20_001,
)  # Chebyshev points to fit on; even points on which the error is measured


@dataclass
class RationalFit:
    """A fitted rational function.

    Attributes:
        numerator: (m + 1,) float64, a_0 .. a_m.
        denominator: (n,) float64, b_1 .. b_n, all >= 0.
        max_error: the largest |F(x) - target(x)| on 20,001 even points of `interval`, in float64.
        interval: where it was fitted.

    Example:
        >>> fit = katlib.fit_rational(torch.cos, degrees=(2, 2), interval=(-1, 1))
        >>> x = torch.tensor([0.5], dtype=torch.float64)
        >>> (fit(x) - torch.cos(x)).abs().item() <= fit.max_error
        True
    """

    numerator: Tensor
    denominator: Tensor
    max_error: float
    interval: tuple[float, float]

    def __call__(self, x: Tensor) -> Tensor:
        """F(x), of x's shape and dtype (float64 in, float64 out)."""
        return rational_reference(
            x[..., None], self.numerator[None].to(x.device), self.denominator[None].to(x.device)
        )[..., 0]


def resolve_target(target: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function of that name in `TARGETS`, or `target` itself if it can be called."""
    if callable(target):
        return target
    if target not in TARGETS:
        raise ValueError(
            f"target={target!r} is not known; allowed are {', '.join(map(repr, TARGETS))} or a function of a tensor"
        )
    return TARGETS[target]


def fit_rational(
    target: str | Callable[[Tensor], Tensor],
    degrees: tuple[int, int] = (5, 4),
    interval: tuple[float, float] = (-3.0, 3.0),
    rounds: int = 30,
) -> RationalFit:
    """Fits F = P / Q to `target` so that the largest error on `interval` is small.

    Args:
        target: a function from a float64 tensor to one of the same shape, or one of the names in `katlib.fit.TARGETS`.
        degrees: (m, n), the degrees of numerator and denominator.
        interval: (lo, hi).
        rounds: Lawson rounds for each start; more of them polish the last digits. 30 take about half a second.

    Returns:
        A `RationalFit` with the coefficients and the measured largest error.

    Raises:
        ValueError: an unknown name, an empty interval, negative degrees, or a target that is not finite on the interval.

    Example:
        >>> katlib.fit_rational(torch.sin).max_error < 1e-5
        True
    """
    function, (m, n), (lo, hi) = resolve_target(target), degrees, interval
    if m < 0 or n < 0 or not lo < hi:
        raise ValueError(
            f"degrees={degrees}, interval={interval}; allowed are degrees >= 0 and an interval (lo, hi) with lo < hi"
        )
    t = torch.cos(math.pi * (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS)
    x = (lo + hi) / 2 + (hi - lo) / 2 * t
    if lo < 0 < hi:
        x = torch.cat([x, torch.zeros(1, dtype=x.dtype)])  # the kink of relu and of |x| is at 0
    y = function(x)
    if not y.isfinite().all():
        raise ValueError(
            f"target is not finite on {interval}, at x = {x[~y.isfinite()][0].item():.4g}"
        )
    scale = max(abs(lo), abs(hi))  # powers of x / scale stay within [-1, 1]
    X = (x / scale)[:, None] ** torch.arange(m + 1)  # (points, m + 1)
    Z = (x / scale).abs()[:, None] ** torch.arange(1, n + 1)  # (points, n)
    ones = torch.ones(m + 1 + n, dtype=torch.float64)
    even = ones.clone()
    even[m + 1 :: 2] = 0  # holds b_1, b_3, ... at 0
    best, best_error = None, math.inf
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # systems of ten unknowns: threads would only wait for each other
    for denominator, stages in ((0.1, [ones]), (1.0, [ones]), (None, [ones]), (None, [even, ones])):
        theta = _start(X, Z, y, stages[0], denominator)
        for free in stages:
            weight = torch.ones_like(y)
            for _ in range(rounds):
                theta, residual = _least_squares(X, Z, y, theta, weight, free)
                error = residual.abs().max().item()
                if error < best_error:
                    best, best_error = theta, error
                weight = weight * (residual.abs() / max(error, 1e-300) + 1e-3)
                weight = weight / weight.mean()
    torch.set_num_threads(threads)
    powers = scale ** torch.arange(max(m, n) + 1, dtype=torch.float64)
    fit = RationalFit(
        best[: m + 1] / powers[: m + 1],
        best[m + 1 :].abs() / powers[1 : n + 1],
        math.nan,
        (float(lo), float(hi)),
    )
    fit.max_error = max_error(fit, function, interval)
    return fit


def refit(
    fit: RationalFit,
    target: str | Callable[[Tensor], Tensor],
    samples: Tensor,
    elsewhere: float = 1e-3,
) -> RationalFit:
    """Moves a fit towards where its inputs are: least squares over `samples`, and with the weight `elsewhere` over its whole interval.

    Args:
        fit: where to start, on the interval that it keeps.
        target: as in `fit_rational`.
        samples: any shape; values that F will be given, a few thousand.
        elsewhere: the interval's share of the weight.

    Returns:
        A `RationalFit` of the same degrees whose largest error, on the interval, is larger, and whose mean square error on the samples is smaller.
    """
    function, (lo, hi) = resolve_target(target), fit.interval
    x = torch.cat(
        [samples.flatten().double().cpu(), torch.linspace(lo, hi, POINTS, dtype=torch.float64)]
    )
    weight = torch.full_like(x, 1 / samples.numel())
    weight[samples.numel() :] = elsewhere / POINTS
    m, n, scale = len(fit.numerator) - 1, len(fit.denominator), x.abs().max()
    X, Z = (
        (x / scale)[:, None] ** torch.arange(m + 1),
        (x / scale).abs()[:, None] ** torch.arange(1, n + 1),
    )
    powers = scale ** torch.cat([torch.arange(m + 1), torch.arange(1, n + 1)])
    theta = torch.cat([fit.numerator, fit.denominator]) * powers
    for _ in range(3):  # the damping starts anew: coefficients near 0 are slow to move
        theta, _ = _least_squares(X, Z, function(x), theta, weight, torch.ones_like(theta))
    new = RationalFit(
        (theta / powers)[: m + 1], (theta / powers)[m + 1 :].abs(), math.nan, fit.interval
    )
    new.max_error = max_error(new, function, fit.interval)
    return new


def max_error(
    fitted: Callable[[Tensor], Tensor],
    target: str | Callable[[Tensor], Tensor],
    interval: tuple[float, float] = (-3.0, 3.0),
) -> float:
    """The largest |fitted(x) - target(x)| on 20,001 even points of `interval`, in float64."""
    x = torch.linspace(*interval, DENSE, dtype=torch.float64)
    return (fitted(x) - resolve_target(target)(x)).abs().max().item()


def _start(X: Tensor, Z: Tensor, y: Tensor, free: Tensor, denominator: float | None) -> Tensor:
    """A first (a, b): with b all equal to `denominator`, or from ten rounds of the linearised problem P - y (Q - 1) = y."""
    b = torch.full(Z.shape[1:], denominator or 0.0, dtype=y.dtype) * free[X.shape[1] :]
    for _ in range(0 if denominator else 10):
        Q = 1 + Z @ b
        system = torch.cat([X, -y[:, None] * Z], 1) * free / Q[:, None]
        solution = torch.linalg.lstsq(system, (y / Q)[:, None], driver="gelsd").solution[:, 0]
        b = solution[X.shape[1] :].abs() * free[X.shape[1] :]
    a = torch.linalg.lstsq(X / (1 + Z @ b)[:, None], y[:, None], driver="gelsd").solution[:, 0]
    return torch.cat([a, b])


def _least_squares(
    X: Tensor, Z: Tensor, y: Tensor, theta: Tensor, weight: Tensor, free: Tensor
) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt on sum weight (F - y)^2 over theta = (a, b), moving what is `free`. Returns theta and F - y."""

    def evaluate(theta: Tensor) -> tuple[Tensor, Tensor]:
        a, b = theta[: X.shape[1]], theta[X.shape[1] :]
        Q = 1 + Z @ b.abs()
        ratio = X @ a / Q
        return ratio - y, torch.cat(
            [X / Q[:, None], -(ratio / Q)[:, None] * Z * torch.where(b < 0, -1.0, 1.0)], 1
        ) * free

    damping = 1e-3
    residual, jacobian = evaluate(theta)
    cost = (weight * residual**2).sum()
    for _ in range(40):
        normal = jacobian.T @ (weight[:, None] * jacobian)
        step = torch.linalg.solve(
            normal + damping * torch.diag(normal.diag().clamp_min(1e-14)),
            jacobian.T @ (weight * residual),
        )
        new_residual, new_jacobian = evaluate(theta - step)
        new_cost = (weight * new_residual**2).sum()
        if new_cost <= cost:
            converged = cost - new_cost < 1e-9 * cost
            theta, residual, jacobian, cost = theta - step, new_residual, new_jacobian, new_cost
            damping = max(damping / 10, 1e-14)
            if converged:
                break
        else:
            damping *= 10
            if damping > 1e6:
                break
    return theta, residual


def main() -> None:
    """Fits the named starting points at three pairs of degrees and writes `coefficients.json` beside this file."""
    table: dict[str, dict] = {}
    for name in TARGETS:
        if name == "identity":  # exact, needs no fit
            continue
        for degrees in ((3, 2), (5, 4), (7, 6)):
            fit = fit_rational(name, degrees, rounds=100)
            table.setdefault(name, {})["{},{}".format(*degrees)] = {
                "numerator": fit.numerator.tolist(),
                "denominator": fit.denominator.tolist(),
                "max_error": fit.max_error,
            }
            print(f"{name:6} {degrees}: largest error on [-3, 3] = {fit.max_error:.2e}")
    (Path(__file__).parent / "coefficients.json").write_text(json.dumps(table, indent=1) + "\n")

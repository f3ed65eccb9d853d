"""Coefficients from a target function: the rational function with the smallest largest error.

The released KAT coefficients for GELU were fitted with one denominator and are evaluated with
another, which makes them wrong by up to 1.46 on [-3, 3]. Here one Q serves for both:

    F(x) = P(x) / Q(x),   Q(x) = 1 + sum_j |b_j| |x|^j

`make coefficients` calls `main`, which writes `coefficients.json`, the starting points that
`GroupRational(init=...)` knows.

Method: Levenberg-Marquardt steps on weighted squares, with Lawson's reweighting (C. L. Lawson, PhD
thesis, UCLA 1961) to turn the least squares into the least maximum, from four starting
denominators. Two of them are the linearised fits of Sanathanan & Koerner (IEEE Transactions on
Automatic Control 8, 1963).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from katlib.files import write_json
from katlib.rational import rational_reference

Function = Callable[[Tensor], Tensor]

TARGETS: dict[str, Function] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "swish": F.silu,
    "tanh": torch.tanh,
}

COEFFICIENTS = Path(__file__).parent / "coefficients.json"
STORED_DEGREES = ((3, 2), (5, 4), (7, 6))

# Chebyshev points to fit on, and evenly spaced points on which the largest error is measured
FIT_POINTS = 600
ERROR_POINTS = 20_001

# Levenberg-Marquardt: steps, and where its damping starts and ends
STEPS = 40
FIRST_DAMPING = 1e-3
LEAST_DAMPING = 1e-14
MOST_DAMPING = 1e6


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
        numerator = self.numerator[None].to(x.device)
        denominator = self.denominator[None].to(x.device)
        return rational_reference(x[..., None], numerator, denominator)[..., 0]


def resolve_target(target: str | Function) -> Function:
    """The function of that name in `TARGETS`, or `target` itself if it can be called."""
    if callable(target):
        return target
    if target not in TARGETS:
        raise ValueError(
            f"target={target!r} is not known; allowed are {', '.join(map(repr, TARGETS))} or a "
            "function of a tensor"
        )
    return TARGETS[target]


def fit_rational(
    target: str | Function,
    degrees: tuple[int, int] = (5, 4),
    interval: tuple[float, float] = (-3.0, 3.0),
    rounds: int = 30,
) -> RationalFit:
    """Fits F = P / Q to `target` so that the largest error on `interval` is small.

    Args:
        target: a function from a float64 tensor to one of the same shape, or one of the names in
            `katlib.fit.TARGETS`.
        degrees: (m, n), the degrees of numerator and denominator.
        interval: (lo, hi).
        rounds: Lawson rounds for each start, at least 1; more of them polish the last digits. 30
            take about half a second.

    Returns:
        A `RationalFit` with the coefficients and the measured largest error.

    Raises:
        ValueError: an unknown name, an empty interval, negative degrees, no rounds, or a target
            that is not finite on the interval.

    Example:
        >>> katlib.fit_rational(torch.sin).max_error < 1e-5
        True
    """
    function = resolve_target(target)
    lo, hi = interval
    if min(degrees) < 0 or not lo < hi:
        raise ValueError(
            f"degrees={degrees}, interval={interval}; allowed are degrees >= 0 and an interval "
            "(lo, hi) with lo < hi"
        )
    if rounds < 1:
        raise ValueError(f"rounds={rounds}; allowed are 1 or more")
    x = _chebyshev_points(lo, hi)
    y = function(x)
    if not y.isfinite().all():
        raise ValueError(
            f"target is not finite on {interval}, at x = {x[~y.isfinite()][0].item():.4g}"
        )
    problem = _Problem.of(x, y, degrees, scale=max(abs(lo), abs(hi)))
    with _one_thread():
        theta = _minimax(problem, rounds)
    return _finished_fit(problem, theta, function, (float(lo), float(hi)))


def refit(
    fit: RationalFit,
    target: str | Function,
    samples: Tensor,
    elsewhere: float = 1e-3,
) -> RationalFit:
    """Moves a fit towards where its inputs are.

    It minimises the mean square error on `samples`, and with the weight `elsewhere` that on the
    whole interval.

    Args:
        fit: where to start, on the interval that it keeps.
        target: as in `fit_rational`.
        samples: any shape; values that F will be given, a few thousand.
        elsewhere: weight of the interval, where the samples together have 1.

    Returns:
        A `RationalFit` of the same degrees. Its mean square error on the samples is smaller, and
        its largest error on the interval is larger.
    """
    function = resolve_target(target)
    on_interval = torch.linspace(*fit.interval, FIT_POINTS, dtype=torch.float64)
    x = torch.cat([samples.flatten().double().cpu(), on_interval])
    weight = torch.full_like(x, 1 / samples.numel())
    weight[samples.numel() :] = elsewhere / FIT_POINTS
    degrees = (len(fit.numerator) - 1, len(fit.denominator))
    problem = _Problem.of(x, function(x), degrees, scale=x.abs().max().item())
    theta = torch.cat([fit.numerator, fit.denominator]) * problem.powers
    with _one_thread():
        # each call starts with little damping again, for coefficients near 0 are slow to move
        for _ in range(3):
            theta, _ = _least_squares(problem, theta, weight, torch.ones_like(theta))
    return _finished_fit(problem, theta, function, fit.interval)


def max_error(
    fitted: Function,
    target: str | Function,
    interval: tuple[float, float] = (-3.0, 3.0),
) -> float:
    """The largest |fitted(x) - target(x)| on 20,001 even points of `interval`, in float64."""
    x = torch.linspace(*interval, ERROR_POINTS, dtype=torch.float64)
    return (fitted(x) - resolve_target(target)(x)).abs().max().item()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Lets torch compute on one thread: in systems of ten unknowns, more would wait for each other.

    The number of threads that was set before is set again, also after an exception or Ctrl-C.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Problem:
    """A target's values at some points, and the powers of x that P and Q are made of.

    The powers are of x / scale, which keeps them within [-1, 1]. The unknowns are
    theta = (a_0 .. a_m, b_1 .. b_n), the coefficients of these powers.
    """

    X: Tensor  # (points, m + 1), (x / scale)^i
    Z: Tensor  # (points, n), |x / scale|^j
    y: Tensor  # (points,)
    powers: Tensor  # (m + 1 + n,), scale^i and scale^j: theta / powers are the coefficients of x

    @classmethod
    def of(cls, x: Tensor, y: Tensor, degrees: tuple[int, int], scale: float) -> "_Problem":
        m, n = degrees
        i = torch.arange(m + 1)
        j = torch.arange(1, n + 1)
        scaled = x / scale
        return cls(
            X=scaled[:, None] ** i,
            Z=scaled.abs()[:, None] ** j,
            y=y,
            powers=scale ** torch.cat([i, j]).double(),
        )

    @property
    def numerators(self) -> int:
        """How many of the unknowns are the numerator's: m + 1."""
        return self.X.shape[1]

    def residual_and_jacobian(self, theta: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """F - y, (points,), and its derivatives by the unknowns that are `free`, (points, all)."""
        a, b = theta[: self.numerators], theta[self.numerators :]
        Q = 1 + self.Z @ b.abs()
        ratio = self.X @ a / Q
        by_a = self.X / Q[:, None]
        by_b = -(ratio / Q)[:, None] * self.Z * torch.where(b < 0, -1.0, 1.0)
        return ratio - self.y, torch.cat([by_a, by_b], 1) * free


def _chebyshev_points(lo: float, hi: float) -> Tensor:
    """Points that crowd at the ends of the interval, where polynomials err most; and 0, if inside.

    The kinks of ReLU and of |x| are at 0.
    """
    t = torch.cos(math.pi * (torch.arange(FIT_POINTS, dtype=torch.float64) + 0.5) / FIT_POINTS)
    x = (lo + hi) / 2 + (hi - lo) / 2 * t
    if lo < 0 < hi:
        x = torch.cat([x, torch.zeros(1, dtype=x.dtype)])
    return x


def _finished_fit(
    problem: _Problem, theta: Tensor, function: Function, interval: tuple[float, float]
) -> RationalFit:
    """The fit with these unknowns: in powers of x itself, every b_j >= 0, its error measured."""
    coefficients = theta / problem.powers
    fit = RationalFit(
        coefficients[: problem.numerators],
        coefficients[problem.numerators :].abs(),
        math.nan,
        interval,
    )
    return replace(fit, max_error=max_error(fit, function, interval))


def _minimax(problem: _Problem, rounds: int) -> Tensor:
    """The unknowns with the smallest largest error among all rounds from all starts."""
    best = None
    best_error = math.inf
    for start, stages in _starts(problem):
        theta = start
        for free in stages:
            for after_round, error in _lawson_rounds(problem, theta, free, rounds):
                theta = after_round
                if error < best_error:
                    best, best_error = theta, error
    if best is None:
        raise ValueError("the target is too large to be fitted: its squares are not finite")
    return best


def _starts(problem: _Problem) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Four starting points. For each, what may move, in stages: masks over the unknowns.

    None of them is the best for every target, and each takes a fraction of a second.
    """
    all_free = torch.ones_like(problem.powers)
    # |x| and |x|^3 have a corner at 0 that smooth targets lack, so here b_1 and b_3 wait at 0
    even = all_free.clone()
    even[problem.numerators :: 2] = 0
    for value in (0.1, 1.0):
        b = torch.full_like(problem.Z[0], value)
        yield _with_best_numerator(problem, b), [all_free]
    for stages in ([all_free], [even, all_free]):
        b = _linearised_denominator(problem, stages[0])
        yield _with_best_numerator(problem, b), stages


def _linearised_denominator(problem: _Problem, free: Tensor) -> Tensor:
    """b from ten rounds of the linear problem P - y (Q - 1) = y, divided by the Q before."""
    X, Z, y = problem.X, problem.Z, problem.y
    free_b = free[problem.numerators :]
    b = torch.zeros_like(Z[0])
    for _ in range(10):
        Q = 1 + Z @ b
        system = torch.cat([X, -y[:, None] * Z], 1) * free / Q[:, None]
        solution = torch.linalg.lstsq(system, (y / Q)[:, None], driver="gelsd").solution[:, 0]
        b = solution[problem.numerators :].abs() * free_b
    return b


def _with_best_numerator(problem: _Problem, b: Tensor) -> Tensor:
    """(a, b) with the a that fits best, in least squares, above this denominator."""
    Q = 1 + problem.Z @ b
    a = torch.linalg.lstsq(problem.X / Q[:, None], problem.y[:, None], driver="gelsd").solution
    return torch.cat([a[:, 0], b])


def _lawson_rounds(
    problem: _Problem, theta: Tensor, free: Tensor, rounds: int
) -> Iterator[tuple[Tensor, float]]:
    """Least squares again and again, each time with more weight where the error was large.

    Yields:
        After each round, the unknowns and the largest error on the points.
    """
    weight = torch.ones_like(problem.y)
    for _ in range(rounds):
        theta, residual = _least_squares(problem, theta, weight, free)
        error = residual.abs().max().item()
        yield theta, error
        # 1e-3 keeps points of little error from being forgotten
        weight = weight * (residual.abs() / max(error, 1e-300) + 1e-3)
        weight = weight / weight.mean()


def _least_squares(
    problem: _Problem, theta: Tensor, weight: Tensor, free: Tensor
) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt on sum weight (F - y)^2, moving the unknowns that are `free`.

    Returns:
        The unknowns, and F - y at the points.
    """
    damping = FIRST_DAMPING
    residual, jacobian = problem.residual_and_jacobian(theta, free)
    cost = (weight * residual**2).sum()
    for _ in range(STEPS):
        step = _damped_step(residual, jacobian, weight, damping)
        new_residual, new_jacobian = problem.residual_and_jacobian(theta - step, free)
        new_cost = (weight * new_residual**2).sum()
        if new_cost <= cost:
            converged = cost - new_cost < 1e-9 * cost
            theta, residual, jacobian, cost = theta - step, new_residual, new_jacobian, new_cost
            damping = max(damping / 10, LEAST_DAMPING)
            if converged:
                break
        else:
            damping *= 10
            if damping > MOST_DAMPING:
                break
    return theta, residual


def _damped_step(residual: Tensor, jacobian: Tensor, weight: Tensor, damping: float) -> Tensor:
    """Solves (J^T W J + damping diag(J^T W J)) step = J^T W residual."""
    normal = jacobian.T @ (weight[:, None] * jacobian)
    # unknowns that are held still have a diagonal of 0
    damped = normal + damping * torch.diag(normal.diag().clamp_min(1e-14))
    return torch.linalg.solve(damped, jacobian.T @ (weight * residual))


def main() -> None:
    """Fits the named starting points at three pairs of degrees and writes `coefficients.json`."""
    table: dict[str, dict] = {}
    for name in TARGETS:
        # the identity is exact and needs no fit
        if name == "identity":
            continue
        table[name] = {}
        for degrees in STORED_DEGREES:
            fit = fit_rational(name, degrees, rounds=100)
            m, n = degrees
            table[name][f"{m},{n}"] = {
                "numerator": fit.numerator.tolist(),
                "denominator": fit.denominator.tolist(),
                "max_error": fit.max_error,
            }
            print(f"{name:6} {degrees}: largest error on [-3, 3] = {fit.max_error:.2e}")
    write_json(COEFFICIENTS, table, indent=1)

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

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
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


@contextmanager
def small_computation() -> Iterator[None]:
    """`_one_thread`, and new tensors are made on the CPU, whatever the default device.

    A default device makes each of torch's functions a few microseconds slower. So the fits in this
    file, which call thousands of them, name the CPU where they make a tensor instead.
    """
    with _one_thread(), torch.device("cpu"):
        yield


def resolve_target(target: str | Function) -> Function:
    """The function of that name in `TARGETS`, or a function that calls `target` with care.

    Args:
        target: a name, a function of a tensor, or a module. A module is copied: the copy is in
            evaluation mode and in float64 on the CPU, whatever the module is.

    Returns:
        A function from a float64 tensor on the CPU to float64 values of the same shape, without
        gradients. It leaves its argument as it is, even if `target` works in place. It raises
        ValueError if `target` does not accept float64 on the CPU, returns anything else than
        float32 or float64 of the same shape, or is random.
    """
    if not callable(target):
        if target not in TARGETS:
            raise ValueError(
                f"target={target!r} is not known; allowed are {', '.join(map(repr, TARGETS))} or a "
                "function of a tensor"
            )
        return TARGETS[target]
    function = _as_float64(target) if isinstance(target, nn.Module) else target

    def values(x: Tensor) -> Tensor:
        first, second = (_checked_values(function, x) for _ in range(2))
        if not torch.allclose(first, second, rtol=0, atol=0, equal_nan=True):
            raise ValueError(
                "target is random: two calls with the same x gave different values; give a fixed "
                "function"
            )
        return first

    return values


def _as_float64(module: nn.Module) -> nn.Module:
    """A copy of a module that computes in float64 on the CPU, in evaluation mode."""
    tensors = [*module.parameters(), *module.buffers()]
    if any(t.is_meta for t in tensors):
        raise ValueError(
            f"target {type(module).__name__} is on the meta device, where it has no numbers"
        )
    return copy.deepcopy(module).to("cpu", torch.float64).eval()


def _checked_values(function: Function, x: Tensor) -> Tensor:
    """function(x) as float64 on the CPU.

    Raises:
        ValueError: it cannot be computed, or has another shape or a type of fewer digits.
    """
    try:
        # what the function makes itself is where x is, whatever the default device; and it may be
        # a derivative, which needs autograd
        with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
            y = function(x.clone())
    except RuntimeError as error:
        raise ValueError(
            f"target cannot be computed for a {x.dtype} tensor of shape {tuple(x.shape)} on the "
            f"CPU: {error}"
        ) from error
    if not isinstance(y, Tensor) or y.shape != x.shape:
        given = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise ValueError(
            f"target must return a tensor of its argument's shape, {tuple(x.shape)}; it returned "
            f"{given}"
        )
    if y.is_meta or y.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"target must return float32 or float64 values; it returned {y.dtype} on {y.device}"
        )
    return y.detach().to("cpu", torch.float64)


def _finite_values(function: Function, x: Tensor, where: str) -> Tensor:
    """function(x), or ValueError if it is not finite everywhere."""
    y = function(x)
    if not y.isfinite().all():
        raise ValueError(
            f"target is not finite on {where}, at x = {x[~y.isfinite()][0].item():.4g}"
        )
    return y


@_one_thread()
def fit_rational(
    target: str | Function,
    degrees: tuple[int, int] = (5, 4),
    interval: tuple[float, float] = (-3.0, 3.0),
    rounds: int = 30,
) -> RationalFit:
    """Fits F = P / Q to `target` so that the largest error on `interval` is small.

    Args:
        target: a function from a float64 tensor to one of the same shape; a module, of any dtype
            and on any device, which is fitted as it is in evaluation mode; or one of the names in
            `katlib.fit.TARGETS`. It may work in place.
        degrees: (m, n), the degrees of numerator and denominator.
        interval: (lo, hi).
        rounds: Lawson rounds for each start, at least 1; more of them polish the last digits. 30
            take about half a second.

    Returns:
        A `RationalFit` with the coefficients and the measured largest error.

    Raises:
        ValueError: an unknown name, an interval that is empty or not finite, negative degrees, no
            rounds, or a target that is random, not finite on the interval, on the meta device, or
            not a function from float64 to float32 or float64 values of the same shape.

    Example:
        >>> katlib.fit_rational(torch.sin).max_error < 1e-5
        True
    """
    function = resolve_target(target)
    lo, hi = interval
    if min(degrees) < 0 or not -math.inf < lo < hi < math.inf:
        raise ValueError(
            f"degrees={degrees}, interval={interval}; allowed are degrees >= 0 and a finite "
            "interval (lo, hi) with lo < hi"
        )
    if rounds < 1:
        raise ValueError(f"rounds={rounds}; allowed are 1 or more")
    x = chebyshev_points(lo, hi)
    y = _finite_values(function, x, f"{interval}")
    problem = _Problem.of(x, y, degrees, scale=max(abs(lo), abs(hi)))
    theta = _minimax(problem, rounds)
    return _finished_fit(problem, theta, function, (float(lo), float(hi)))


@_one_thread()
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
        samples: any shape, dtype and device; values that F will be given, a few thousand.
        elsewhere: weight of the interval, where the samples together have 1.

    Returns:
        A `RationalFit` of the same degrees. Its mean square error on the samples is smaller, and
        its largest error on the interval is larger.

    Raises:
        ValueError: no samples, samples that are not finite, or a target as in `fit_rational`.
    """
    function = resolve_target(target)
    samples = samples.detach().flatten().to("cpu", torch.float64)
    if not samples.numel() or not samples.isfinite().all():
        raise ValueError(f"{samples.numel()} samples; allowed are 1 or more finite numbers")
    on_interval = torch.linspace(*fit.interval, FIT_POINTS, dtype=torch.float64, device="cpu")
    x = torch.cat([samples, on_interval])
    weight = torch.full_like(x, 1 / samples.numel())
    weight[samples.numel() :] = elsewhere / FIT_POINTS
    degrees = (len(fit.numerator) - 1, len(fit.denominator))
    y = _finite_values(function, x, "the samples and the interval")
    problem = _Problem.of(x, y, degrees, scale=x.abs().max().item())
    theta = torch.cat([fit.numerator, fit.denominator]) * problem.powers
    # each call starts with little damping again, for coefficients near 0 are slow to move
    for _ in range(3):
        theta, _ = _least_squares(problem, theta, weight, torch.ones_like(theta))
    return _finished_fit(problem, theta, function, fit.interval)


@_one_thread()
def max_error(
    fitted: Function,
    target: str | Function,
    interval: tuple[float, float] = (-3.0, 3.0),
) -> float:
    """The largest |fitted(x) - target(x)| on 20,001 even points of `interval`, in float64."""
    x = torch.linspace(*interval, ERROR_POINTS, dtype=torch.float64, device="cpu")
    return (resolve_target(fitted)(x) - resolve_target(target)(x)).abs().max().item()


@dataclass(frozen=True)
class _Problem:
    """A target's values at some points, and the powers of x that P and Q are made of.

    The powers are of x / scale, which keeps them within [-1, 1]. The unknowns are
    theta = (a_0 .. a_m, b_1 .. b_n), the coefficients of these powers.
    """

    X: Tensor  # (m + 1, points), (x / scale)^i
    Z: Tensor  # (n, points), |x / scale|^j
    y: Tensor  # (points,)
    powers: Tensor  # (m + 1 + n,), scale^i and scale^j: theta / powers are the coefficients of x

    @classmethod
    def of(cls, x: Tensor, y: Tensor, degrees: tuple[int, int], scale: float) -> "_Problem":
        m, n = degrees
        i = torch.arange(m + 1, device="cpu")
        j = torch.arange(1, n + 1, device="cpu")
        scaled = x / scale
        return cls(
            X=scaled ** i[:, None],
            Z=scaled.abs() ** j[:, None],
            y=y,
            powers=scale ** torch.cat([i, j]).double(),
        )

    @property
    def numerators(self) -> int:
        """How many of the unknowns are the numerator's: m + 1."""
        return len(self.X)

    def values(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """F and Q at the points, both (points,)."""
        a, b = theta[: self.numerators], theta[self.numerators :]
        Q = 1 + b.abs() @ self.Z
        return a @ self.X / Q, Q

    def jacobian(self, theta: Tensor, F: Tensor, Q: Tensor) -> Tensor:
        """The derivatives of F by the unknowns, (unknowns, points)."""
        b = theta[self.numerators :]
        by_b = self.Z * (-F / Q)  # at b >= 0
        return torch.cat([self.X / Q, torch.where(b[:, None] < 0, -by_b, by_b)])


def chebyshev_points(lo: float, hi: float) -> Tensor:
    """Points that crowd at the ends of the interval, where polynomials err most; and 0, if inside.

    The kinks of ReLU and of |x| are at 0.
    """
    k = torch.arange(FIT_POINTS, dtype=torch.float64, device="cpu")
    t = torch.cos(math.pi * (k + 0.5) / FIT_POINTS)
    x = (lo + hi) / 2 + (hi - lo) / 2 * t
    if lo < 0 < hi:
        x = torch.cat([x, x.new_zeros(1)])
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
        b = torch.full_like(problem.Z[:, 0], value)
        yield _with_best_numerator(problem, b), [all_free]
    for stages in ([all_free], [even, all_free]):
        b = _linearised_denominator(problem, stages[0])
        yield _with_best_numerator(problem, b), stages


def _linearised_denominator(problem: _Problem, free: Tensor) -> Tensor:
    """b from ten rounds of the linear problem P - y (Q - 1) = y, divided by the Q before."""
    X, Z, y = problem.X, problem.Z, problem.y
    free_b = free[problem.numerators :]
    b = torch.zeros_like(Z[:, 0])
    for _ in range(10):
        Q = 1 + b @ Z
        system = torch.cat([X, -y * Z]) * free[:, None] / Q
        solution = torch.linalg.lstsq(system.T, (y / Q)[:, None], driver="gelsd").solution[:, 0]
        b = solution[problem.numerators :].abs() * free_b
    return b


def _with_best_numerator(problem: _Problem, b: Tensor) -> Tensor:
    """(a, b) with the a that fits best, in least squares, above this denominator."""
    Q = 1 + b @ problem.Z
    a = torch.linalg.lstsq((problem.X / Q).T, problem.y[:, None], driver="gelsd").solution
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
    F, Q = problem.values(theta)
    residual = F - problem.y
    cost = weight @ residual**2
    normal, slope = _normal_equations(problem, theta, F, Q, weight, free)
    for _ in range(STEPS):
        moved = theta - _damped_step(normal, slope, damping)
        F, Q = problem.values(moved)
        new_residual = F - problem.y
        new_cost = weight @ new_residual**2
        if new_cost <= cost:
            converged = cost - new_cost < 1e-9 * cost
            theta, residual, cost = moved, new_residual, new_cost
            damping = max(damping / 10, LEAST_DAMPING)
            if converged:
                break
            normal, slope = _normal_equations(problem, theta, F, Q, weight, free)
        else:
            damping *= 10
            if damping > MOST_DAMPING:
                break
    return theta, residual


def _normal_equations(
    problem: _Problem, theta: Tensor, F: Tensor, Q: Tensor, weight: Tensor, free: Tensor
) -> tuple[Tensor, Tensor]:
    """J^T W J, and J^T W (F - y), of the unknowns that are free."""
    jacobian = problem.jacobian(theta, F, Q) * free[:, None]
    weighted = jacobian * weight
    return weighted @ jacobian.T, weighted @ (F - problem.y)


def _damped_step(normal: Tensor, slope: Tensor, damping: float) -> Tensor:
    """Solves (J^T W J + damping diag(J^T W J)) step = J^T W (F - y)."""
    # unknowns that are held still have a diagonal of 0
    damped = normal + damping * torch.diag(normal.diag().clamp_min(1e-14))
    return torch.linalg.solve(damped, slope)


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

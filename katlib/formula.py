"""A formula read off a function of one variable: the simplest rational within a tolerance.

    F(x) = P(x) / Q(x),   Q(x) = 1 + sum_j |b_j| |x|^j

is the form of every learned activation. Most of its coefficients serve the last digits only. So all
formulas of one term are tried, then all of two terms, and so on, until one is within the tolerance;
then its coefficients are rounded as far as the tolerance allows.

Method: all choices of as many terms are fitted at once. Each is a least-squares fit of P - y Q,
reweighted in every round by 1 / Q (Sanathanan & Koerner, IEEE Transactions on Automatic Control 8,
1963) and by the errors of the round before (C. L. Lawson, PhD thesis, UCLA 1961), which turns the
least squares into the least maximum.
"""

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from katlib.fit import ERROR_POINTS, Function, RationalFit, resolve_target, small_computation
from katlib.rational import GroupRational, initial_coefficients

# (5, 4) have 2^10 choices of terms, and each coefficient more doubles that
DEGREES = (5, 4)
MOST_COEFFICIENTS = 14
MOST_DIGITS = 12

# Chebyshev points to fit on, and rounds of reweighting
POINTS = 200
ROUNDS = 20

# choices of terms, or of rounded coefficients, that are followed further
KEPT = 8


class Formula(RationalFit):
    """A rational function of few terms and digits, as `formula` finds it.

    It is a `RationalFit`, so it can be called, and `GroupRational(init=found,
    degrees=found.degrees)` starts from it. A notebook shows it as LaTeX.

    Attributes:
        text: the formula in Python, with `x` and `abs`; for numbers, arrays and tensors.
        latex: the same in LaTeX, without dollar signs.
        degrees: (m, n), the degrees of numerator and denominator.
        error: the largest |F(x) - function(x)| on 20,001 even points of `interval`, as `max_error`.
        numerator, denominator, interval: as in `RationalFit`, with no 0 at the end.

    Example:
        >>> found = katlib.formula(torch.nn.functional.softsign)
        >>> found
        x/(1 + abs(x))
        >>> found.degrees, found(torch.tensor([3.0]))
        ((1, 1), tensor([0.7500]))
    """

    @property
    def text(self) -> str:
        """The formula in Python, with `x` and `abs`; for numbers, arrays and tensors."""
        style = "*", "{}**{}", _python_number
        above = _sum(self.numerator.tolist(), "x", *style)
        below = _sum([1.0, *self.denominator.abs().tolist()], "abs(x)", *style)
        if below == "1":
            return above
        return f"({above})/({below})" if " " in above else f"{above}/({below})"

    @property
    def latex(self) -> str:
        """The formula in LaTeX, without dollar signs."""
        style = r"\,", "{}^{{{}}}", _latex_number
        above = _sum(self.numerator.tolist(), "x", *style)
        below = _sum([1.0, *self.denominator.abs().tolist()], r"\lvert x \rvert", *style)
        return above if below == "1" else rf"\frac{{{above}}}{{{below}}}"

    @property
    def degrees(self) -> tuple[int, int]:
        """(m, n), the degrees of numerator and denominator."""
        return len(self.numerator) - 1, len(self.denominator)

    @property
    def error(self) -> float:
        """The largest |F(x) - function(x)| on 20,001 even points of the interval: `max_error`."""
        return self.max_error

    def __repr__(self) -> str:
        return self.text

    def _repr_latex_(self) -> str:
        return f"${self.latex}$"


@small_computation()
def formula(
    function: Any,
    tolerance: float = 0.01,
    interval: tuple[float, float] = (-3.0, 3.0),
    degrees: tuple[int, int] | None = None,
    group: int = 0,
) -> Formula:
    """The simplest rational function that stays within a tolerance of a function on an interval.

    The simplest is the one of the fewest terms, and among those the one of the fewest digits that
    the search finds. Nothing in it is random.

    It is for activations what `auto_symbolic` and `symbolic_formula` are for pykan's edges, with
    two differences. pykan tries a list of names (sin, exp, x^2) and takes the one that fits best.
    Here the formula is always rational, so a sine comes out as a rational function near to it, and
    an activation can be set to what was found. And the tolerance is a bound on the error.

    Args:
        function: a `GroupRational`, of which `group` is read; a `RationalFit`; a pair (numerator,
            denominator); or whatever `fit_rational` can fit, such as a function of a tensor.
        tolerance: largest error that is allowed, in units of the function's values.
        interval: (lo, hi); choose it where the inputs fall.
        degrees: (m, n), the highest degrees that are tried; None stands for (5, 4), or less if the
            function is a rational one of lower degrees. Each coefficient more doubles the time;
            (5, 4) take about a second.
        group: which group of a `GroupRational`.

    Returns:
        A `Formula` with `text`, `latex`, `degrees`, `error` and its coefficients. If the function
        is rational and nothing simpler is within the tolerance, the function itself.

    Raises:
        ValueError: an interval, degrees, tolerance, group or function that cannot be used, or no
            rational function of these degrees within the tolerance.

    Example:
        >>> found = katlib.formula("swish", tolerance=0.05)
        >>> found
        0.5*x + 0.22*x**2 - 0.008*x**4
        >>> found.error < 0.05
        True
    """
    lo, hi = interval
    if not (-math.inf < lo < hi < math.inf and 0 <= tolerance < math.inf):
        raise ValueError(
            f"tolerance={tolerance}, interval={interval}; allowed are tolerance >= 0 and an "
            "interval (lo, hi) with lo < hi"
        )
    itself = _as_rational(function, group, (float(lo), float(hi)))
    if degrees is None:
        m, n = itself.degrees if itself else DEGREES
        degrees = min(m, DEGREES[0]), min(n, DEGREES[1])
    if min(degrees) < 0 or sum(degrees) + 1 > MOST_COEFFICIENTS:
        raise ValueError(
            f"degrees={degrees} have m + n + 1 coefficients; allowed are degrees >= 0 and at most "
            f"{MOST_COEFFICIENTS} coefficients"
        )
    search = _Search(resolve_target(itself or function), (float(lo), float(hi)), degrees)
    found = search.simplest(tolerance) or itself
    if found is None:
        raise ValueError(
            f"no rational function of degrees {degrees} was found within {tolerance} on "
            f"{interval}; the nearest is {search.least_error:.2g} off: allow more, or give higher "
            "degrees"
        )
    return found


def _as_rational(function: Any, group: int, interval: tuple[float, float]) -> Formula | None:
    """What is rational already, with its coefficients as they are; else None."""
    if isinstance(function, GroupRational):
        numerators, denominators = function.weight_numerator, function.weight_denominator
        groups = math.lcm(len(numerators), len(denominators))
        if not 0 <= group < groups:
            raise ValueError(f"group={group}; allowed are 0 to {groups - 1}")
        # neighbouring groups share a row
        function = tuple(c[group * len(c) // groups].cpu() for c in (numerators, denominators))
    elif not (hasattr(function, "numerator") or isinstance(function, tuple | list)):
        return None
    a, b = initial_coefficients(function, None)
    return Formula(_without_last_zeros(a), _without_last_zeros(b.abs()), 0.0, interval)


def _without_last_zeros(coefficients: Tensor) -> Tensor:
    """A polynomial's coefficients up to the last that is not 0."""
    places = coefficients.nonzero()
    return coefficients[: int(places.max()) + 1 if len(places) else 0]


class _Search:
    """The search for one function on one interval.

    The unknowns are theta (S, m + 1 + n), the coefficients of all candidates S at once. They belong
    to the powers of x / scale, and to values that are divided by the largest, so that neither large
    intervals nor large functions lead to large numbers.
    """

    def __init__(self, target: Function, interval: tuple[float, float], degrees: tuple[int, int]):
        self.interval = interval
        self.numerators = degrees[0] + 1
        self.least_error = math.inf
        # where errors are measured, as in `max_error`
        self.even_points = torch.linspace(*interval, ERROR_POINTS, dtype=torch.float64)
        self.even_values = target(self.even_points)
        x = _points(*interval)
        y = target(x)
        for places, values in ((self.even_points, self.even_values), (x, y)):
            if not values.isfinite().all():
                where = places[~values.isfinite()][0].item()
                raise ValueError(f"the function is not finite on {interval}, at x = {where:.4g}")
        self.height = y.abs().max().item() or 1.0
        self.y = y / self.height
        i, j = torch.arange(self.numerators), torch.arange(1, degrees[1] + 1)
        scale = max(map(abs, interval))
        self.X = (x / scale)[:, None] ** i  # (points, m + 1)
        self.Z = (x / scale).abs()[:, None] ** j  # (points, n)
        # theta * units are the coefficients of the powers of x
        self.units = torch.cat([self.height / scale ** i.double(), 1 / scale ** j.double()])

    def simplest(self, tolerance: float) -> Formula | None:
        """The formula of the fewest terms, and of the fewest digits among these."""
        count = len(self.units)
        for terms in range(count + 1):
            chosen = torch.zeros(math.comb(count, terms), count, dtype=torch.bool)
            places = torch.tensor(list(combinations(range(count), terms)), dtype=torch.long)
            chosen.scatter_(1, places, True)
            theta, chosen = self.nearest(torch.zeros_like(chosen).double(), chosen, tolerance)
            for digits in range(1, MOST_DIGITS + 1 if len(theta) else 0):
                found = self.rounded(theta, chosen, digits, tolerance)
                if found:
                    return min(found, key=lambda each: (_digits(each), each.max_error))
        return None

    def nearest(self, theta: Tensor, free: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Fits what is free, and returns those theta and free that come nearest.

        They are within the tolerance on the points, and `KEPT` at most.
        """
        theta, error = self.fitted(theta, free)
        error = error * self.height
        self.least_error = min(self.least_error, error.min().item())
        kept = error.argsort(stable=True)[:KEPT]
        kept = kept[error[kept] <= tolerance]
        return theta[kept], free[kept]

    def fitted(self, theta: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Moves what is free (S, count) so that the largest errors (S,) get small."""
        system = torch.cat([self.X, -self.y[:, None] * self.Z], 1)  # (points, count)
        fixed = torch.where(free, 0, theta)
        right = self.y - fixed @ system.T  # (S, points)
        best, least = theta, self.residual(theta)[0].amax(1)
        weight = torch.ones_like(right)
        for _ in range(ROUNDS if free.any() else 0):
            root = weight.sqrt() / self.residual(theta)[1]
            weighted = system * free[:, None] * root[..., None]  # (S, points, count)
            normal = weighted.mT @ weighted
            # a little keeps terms apart that can replace each other, and 1 those that are not free
            ridge = 1e-13 * normal.diagonal(dim1=1, dim2=2).amax(1, keepdim=True) + ~free
            solution = torch.linalg.solve(
                normal + torch.diag_embed(ridge), weighted.mT @ (root * right)[..., None]
            )
            theta = torch.where(free, solution[..., 0], fixed)
            theta[:, self.numerators :].clamp_min_(0)
            residual = self.residual(theta)[0]
            error = residual.amax(1)
            best = torch.where((error < least)[:, None], theta, best)
            least = torch.minimum(error, least)
            # 1e-3 keeps points of little error from being forgotten
            weight = weight * (residual / error.clamp_min(1e-300)[:, None] + 1e-3)
            weight = weight / weight.mean(1, keepdim=True)
        return best, least

    def residual(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """|F - y| and Q at the points, (S, points) both."""
        Q = 1 + theta[:, self.numerators :] @ self.Z.T
        return (theta[:, : self.numerators] @ self.X.T / Q - self.y).abs(), Q

    def rounded(self, theta: Tensor, free: Tensor, digits: int, tolerance: float) -> list[Formula]:
        """Formulas of so many digits: one coefficient after the other is rounded, down and up.

        After each, the others are fitted anew, so that they make up for it.
        """
        while free.any():
            place = torch.where(free, theta.abs(), -1).argmax(1, keepdim=True)  # (S, 1)
            unit = self.units[place]
            down, up = _neighbours(theta.gather(1, place) * unit, digits)
            ways = [theta.scatter(1, place, value / unit) for value in (down, up)]
            free = free.scatter(1, place, False)
            theta, free = self.nearest(torch.cat(ways), torch.cat([free, free]), tolerance)
        candidates = [self.shortened(row, digits, tolerance) for row in theta * self.units]
        return [found for found in candidates if found.max_error <= tolerance]

    def shortened(self, coefficients: Tensor, digits: int, tolerance: float) -> Formula:
        """The formula with these coefficients, with fewer digits wherever the tolerance allows."""
        coefficients = _to_digits(coefficients, digits)
        found = self.formula(coefficients)
        for i in range(len(coefficients)):
            for fewer in range(1, digits if found.max_error <= tolerance else 0):
                trial = coefficients.clone()
                trial[i] = _to_digits(trial[i : i + 1], fewer)[0]
                shorter = self.formula(trial)
                if shorter.max_error <= tolerance:
                    coefficients, found = trial, shorter
                    break
        return found

    def formula(self, coefficients: Tensor) -> Formula:
        """The formula with these coefficients, and its error."""
        a = _without_last_zeros(coefficients[: self.numerators])
        b = _without_last_zeros(coefficients[self.numerators :])
        found = Formula(a if len(a) else a.new_zeros(1), b, math.nan, self.interval)
        found.max_error = (found(self.even_points) - self.even_values).abs().max().item()
        return found


def _points(lo: float, hi: float) -> Tensor:
    """Points that crowd at both ends, which they contain; and 0, if inside, for the kink of |x|."""
    t = torch.linspace(0, math.pi, POINTS, dtype=torch.float64).cos()
    x = (lo + hi) / 2 + (hi - lo) / 2 * t
    return torch.cat([x, torch.zeros(1, dtype=x.dtype)]) if lo < 0 < hi else x


def _neighbours(values: Tensor, digits: int) -> tuple[Tensor, Tensor]:
    """The next numbers below and above that have so many digits; of 0, itself."""
    last = values.abs().clamp_min(1e-300).log10().floor() - (digits - 1)
    unit = 10**last
    return (values / unit).floor() * unit, (values / unit).ceil() * unit


def _to_digits(values: Tensor, digits: int) -> Tensor:
    """Rounded to so many decimal digits."""
    return values.new_tensor([float(f"{value:.{digits - 1}e}") for value in values.tolist()])


def _digits(found: Formula) -> int:
    """How many digits its coefficients have."""
    coefficients = torch.cat([found.numerator, found.denominator]).tolist()
    mantissas = [f"{abs(c):.{MOST_DIGITS}e}".split("e")[0] for c in coefficients]
    return sum(len(mantissa.replace(".", "").strip("0")) for mantissa in mantissas)


# ---- writing


def _sum(
    coefficients: list[float],
    odd_base: str,
    product: str,
    power: str,
    number: Callable[[float], str],
) -> str:
    """c_0 + c_1 x + ..., with `odd_base` for x in odd powers."""
    text = ""
    for i, c in enumerate(coefficients):
        if c == 0:
            continue
        base = odd_base if i % 2 else "x"
        factors = [number(abs(c))] if i == 0 or abs(c) != 1 else []
        if i > 0:
            factors.append(base if i == 1 else power.format(base, i))
        sign = "-" if c < 0 else "+" if text else ""
        text += (f" {sign} " if text else sign) + product.join(factors)
    return text or "0"


def _python_number(c: float) -> str:
    return repr(c).removesuffix(".0")


def _latex_number(c: float) -> str:
    mantissa, _, exponent = _python_number(c).partition("e")
    return rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if exponent else mantissa

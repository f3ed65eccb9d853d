"""What the figures of rational functions share in Python; `rational.js` is its twin in the page."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from katlib.fit import TARGETS as FUNCTIONS
from katlib.init import gauss_hermite
from katlib.widgets.live import finite_numbers
from katlib.widgets.still import Curve

# the functions that errors are measured against, which `rational.js` knows by these names
TARGETS = ("identity", "relu", "gelu", "swish", "tanh")

# a_0 .. a_m and b_1 .. b_n
Pair = tuple[Sequence[float] | Tensor, Sequence[float] | Tensor]


def checked_pair(numerator: Any, denominator: Any) -> tuple[list[float], list[float]]:
    """The coefficients a_0 .. a_m and b_1 .. b_n as lists.

    Raises:
        ValueError: they are not finite numbers, or there is no a_0.
    """
    return finite_numbers("numerator", numerator, least=1), finite_numbers(
        "denominator", denominator
    )


def check_target(target: str) -> None:
    """Raises a ValueError for a target that the figures do not know."""
    if target not in TARGETS:
        raise ValueError(
            f"target={target!r} is not known; allowed are {', '.join(map(repr, TARGETS))}"
        )


def preset_list(pairs: dict[str, Pair]) -> list[list]:
    """Named coefficients in the form that the page reads: [name, numerator, denominator]."""
    return [[name, _as_list(a), _as_list(b)] for name, (a, b) in pairs.items()]


def _as_list(values: Sequence[float] | Tensor) -> list[float]:
    return torch.as_tensor(values, dtype=torch.float64).tolist()


def quadrature() -> list[list[float]]:
    """Nodes and weights of E[F(z)^2], z ~ N(0, 1), for the page; those of `katlib.gain`."""
    return [values.tolist() for values in gauss_hermite()]


# ---- still pictures


# where they draw functions, as the page does
POINTS = np.linspace(-4, 4, 81)


def target_curve(target: str) -> Curve:
    return Curve(target, POINTS, FUNCTIONS[target](torch.from_numpy(POINTS)).numpy(), dashed=True)


# a plain denominator can be 0, and large coefficients overflow
@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def values(
    x: np.ndarray, numerator: Sequence[float], denominator: Sequence[float], version: str = "A"
) -> np.ndarray:
    """P(x) / Q(x), infinite or not a number where Q is 0.

    Args:
        x: (N,).
        numerator, denominator: a_0 .. a_m and b_1 .. b_n.
        version: of Q: "A", "B", "signed" or "plain", as in `DenominatorExplorer`.
    """
    P = np.polynomial.polynomial.polyval(x, numerator)
    b = np.asarray(denominator, dtype=float)
    powers = x[:, None] ** np.arange(1, len(b) + 1)  # (N, n)
    Q = {
        "A": 1 + np.abs(b * powers).sum(1),
        "B": 1 + np.abs((b * powers).sum(1)),
        "signed": 1 + (np.abs(b) * powers).sum(1),
        "plain": 1 + (b * powers).sum(1),
    }[version]
    return P / Q

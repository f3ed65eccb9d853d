"""RationalExplorer: a rational function whose coefficients can be dragged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import traitlets
from torch import Tensor

from katlib.rational import RELEASED_GELU, STORED, GroupRational, initial_coefficients
from katlib.widgets.live import Coefficients, LiveFigure, finite_numbers, shown, source
from katlib.widgets.rational import (
    POINTS,
    TARGETS,
    Pair,
    check_target,
    checked_pair,
    preset_list,
    quadrature,
    target_curve,
    values,
)
from katlib.widgets.still import Curve


class RationalExplorer(LiveFigure):
    """F(x) = P(x) / Q(x) with a handle for each of its coefficients.

    It shows F and its slope, P and Q, a target with the largest error on [-3, 3], the density of
    inputs z ~ N(0, 1), the gain 1 / E[F(z)^2] and the poles. Everything is computed in the browser;
    with a kernel, the coefficients sync both ways.

    Args:
        start: where the function starts: a name, a `RationalFit` or a pair (numerator, denominator)
            as in `GroupRational(init=...)`, or a `GroupRational`, of which `group` is taken.
        target: "identity", "relu", "gelu", "swish" or "tanh"; what the error is measured against.
        group: which group of a `GroupRational`.
        degrees: (m, n), if `start` is a name.
        handles: for newcomers: the few coefficients that have a handle at first, by name, with the
            values that they begin with, for example {"a0": 1.0}. The goal is to bring the function
            back to the target, and a button shows the rest. By default all have a handle.

    Attributes:
        numerator: list of m + 1 floats, a_0 .. a_m. Can be assigned.
        denominator: list of n floats, b_1 .. b_n. Can be assigned.
        target: as above. Can be assigned.
        safe: True for Q = 1 + sum |b_j| |x|^j, as katlib evaluates it; False for the plain
            1 + sum b_j x^j, which can have poles.

    Raises:
        ValueError: an unknown name or target, coefficients that are not finite numbers, or a group
            that the `GroupRational` does not have.
        traitlets.TraitError: the same when it is assigned, or another number of coefficients.

    Example:
        >>> explorer = katlib.RationalExplorer("swish", target="gelu")
        >>> explorer.numerator = [0.0, 0.6, *explorer.numerator[2:]]  # the figure follows
        >>> katlib.GroupRational(64, init=explorer).channels
        64
    """

    _esm = source("rational.js", "explorer.js")
    numerator = Coefficients().tag(sync=True)
    denominator = Coefficients().tag(sync=True)
    target = traitlets.Enum(TARGETS).tag(sync=True)
    safe = traitlets.Bool(True).tag(sync=True)
    interval = traitlets.List([-3.0, 3.0]).tag(sync=True)
    handles = traitlets.List(traitlets.Unicode()).tag(sync=True)
    presets: traitlets.List[Any] = traitlets.List().tag(sync=True)
    best: traitlets.Dict[str, float] = traitlets.Dict().tag(sync=True)
    quadrature: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def __init__(
        self,
        start: Any = "swish",
        target: str = "gelu",
        group: int = 0,
        degrees: tuple[int, int] = (5, 4),
        handles: Mapping[str, float] | None = None,
    ):
        check_target(target)
        self.module: GroupRational | None = None
        self.group = 0
        if isinstance(start, GroupRational):
            self.module, self.group = start, group
        a, b = checked_pair(*_start_coefficients(start, group, degrees))
        _set_first(handles or {}, a, b)
        self.lengths = {"numerator": len(a), "denominator": len(b)}
        m, n = len(a) - 1, len(b)
        super().__init__(
            numerator=a,
            denominator=b,
            target=target,
            handles=list(handles or {}),
            best=_smallest_errors(m, n),
            quadrature=quadrature(),
            presets=preset_list(_preset_coefficients(m, n)),
        )

    def _still(self) -> list[Curve]:
        version = "A" if self.safe else "plain"
        y = values(POINTS, self.numerator, self.denominator, version)
        return [Curve("F", POINTS, y), target_curve(self.target)]

    @torch.no_grad()
    def write_back(self) -> None:
        """Copies the coefficients into the `GroupRational` that the explorer started from.

        They are changed in place. A row of coefficients that groups share changes for all of them.

        Raises:
            ValueError: it did not start from one, or the figure shows the plain denominator, which
                katlib does not evaluate.
        """
        if self.module is None:
            raise ValueError(
                "there is nothing to write to: the explorer did not start from a GroupRational"
            )
        if not self.safe:
            raise ValueError(
                "the figure shows the plain denominator, which katlib does not evaluate; "
                "set explorer.safe = True"
            )
        a, b = _rows_of_group(self.module, self.group)
        a.copy_(torch.tensor(self.numerator))
        b.copy_(torch.tensor(self.denominator))


def _start_coefficients(start: Any, group: int, degrees: tuple[int, int]) -> tuple[Any, Any]:
    """The numerator and the denominator of whatever an explorer can start from."""
    if isinstance(start, GroupRational):
        return _rows_of_group(start, group)
    if isinstance(start, str):
        return initial_coefficients(start, degrees)
    if hasattr(start, "numerator") and hasattr(start, "denominator"):
        return start.numerator, start.denominator
    if isinstance(start, (tuple, list)) and len(start) == 2:
        return start[0], start[1]
    raise ValueError(
        f"start={shown(start)}; allowed are a name, a RationalFit, a GroupRational "
        "or a pair (numerator, denominator)"
    )


def _set_first(handles: Mapping[str, float], a: list[float], b: list[float]) -> None:
    """Gives the coefficients that a newcomer begins with their values, in place."""
    places = {f"a{i}": (a, i) for i in range(len(a))}
    places |= {f"b{j}": (b, j - 1) for j in range(1, len(b) + 1)}
    for name, value in handles.items():
        if name not in places:
            raise ValueError(f"handles={shown(handles)}; allowed are {', '.join(places)}")
        coefficients, place = places[name]
        (coefficients[place],) = finite_numbers(f"handles[{name!r}]", [value])


def _rows_of_group(module: GroupRational, group: int) -> tuple[Tensor, Tensor]:
    """The rows of the module's parameters that one of its groups uses."""
    a, b = module.weight_numerator, module.weight_denominator
    groups = math.lcm(len(a), len(b))
    if group not in range(groups):
        raise ValueError(f"group={group!r}; the GroupRational has groups 0 to {groups - 1}")
    group = int(group)
    return a[group * len(a) // groups], b[group * len(b) // groups]


def _stored_fits(m: int, n: int) -> dict[str, dict]:
    """The fits of katlib that have these degrees, by the names of their targets."""
    degrees = f"{m},{n}"
    return {name: fits[degrees] for name, fits in STORED.items() if degrees in fits}


def _preset_coefficients(m: int, n: int) -> dict[str, Pair]:
    """What the buttons of the figure choose, by their labels."""
    known: dict[str, Pair] = {}
    # a constant numerator cannot be the identity
    if m >= 1:
        known["identity"] = initial_coefficients("identity", (m, n))
    for name, fit in _stored_fits(m, n).items():
        known[name] = (fit["numerator"], fit["denominator"])
    if (m, n) == (5, 4):
        known["released “gelu”"] = RELEASED_GELU
    return known


def _smallest_errors(m: int, n: int) -> dict[str, float]:
    """The error of the best fit to each target, for the figure's score; 0 where none is stored."""
    fits = _stored_fits(m, n)
    return {name: fits[name]["max_error"] if name in fits else 0.0 for name in TARGETS}

"""RationalExplorer: a rational function to take in the hand; its curves, coefficients and gain, alive with and without Python behind it."""

import math

import numpy as np
import torch
import traitlets

from katlib.init import NODES
from katlib.rational import RELEASED_GELU, STORED, GroupRational, initial_coefficients
from katlib.widgets.live import Coefficients, LiveFigure, source

TARGETS = ("identity", "relu", "gelu", "swish", "tanh")


def _rule() -> list[list[float]]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return [nodes.tolist(), (weights / weights.sum()).tolist()]


class RationalExplorer(LiveFigure):
    """F(x) = P(x) / Q(x) with a handle for each of its coefficients.

    Shows F and its slope, P and Q, a target with the largest error on [-3, 3], the density of inputs z ~ N(0, 1), the gain
    1 / E[F(z)^2] and the poles. Everything is computed in the browser; with a kernel, the coefficients sync both ways.

    Args:
        start: where the function starts: a name, a `RationalFit` or a pair (numerator, denominator) as in `GroupRational(init=...)`, or a
            `GroupRational`, of which `group` is taken.
        target: "identity", "relu", "gelu", "swish" or "tanh"; what the error is measured against.
        group: which group of a `GroupRational`.
        degrees: (m, n), if `start` is a name.

    Attributes:
        numerator: list of m + 1 floats, a_0 .. a_m. Can be assigned.
        denominator: list of n floats, b_1 .. b_n. Can be assigned.
        target: as above. Can be assigned.
        safe: True for Q = 1 + sum |b_j| |x|^j, as katlib evaluates it; False for the plain 1 + sum b_j x^j, which can have poles.

    Raises:
        ValueError: an unknown name or target, or a group that the `GroupRational` does not have.

    Example:
        >>> explorer = katlib.RationalExplorer("swish", target="gelu")
        >>> explorer.numerator[1] = 0.6                        # a list: assign it as a whole to be seen in the figure
        >>> katlib.GroupRational(64, init=explorer).channels
        64
    """

    _esm = source("rational.js", "explorer.js")
    numerator = Coefficients().tag(sync=True)
    denominator = Coefficients().tag(sync=True)
    target = traitlets.Enum(TARGETS).tag(sync=True)
    safe = traitlets.Bool(True).tag(sync=True)
    interval = traitlets.List([-3.0, 3.0]).tag(sync=True)
    presets = traitlets.List().tag(sync=True)
    best = traitlets.Dict().tag(sync=True)
    quadrature = traitlets.List().tag(sync=True)

    def __init__(
        self, start="swish", target: str = "gelu", group: int = 0, degrees: tuple[int, int] = (5, 4)
    ):
        if target not in TARGETS:
            raise ValueError(
                f"target={target!r} is not known; allowed are {', '.join(map(repr, TARGETS))}"
            )
        self.module, self.group = (start, group) if isinstance(start, GroupRational) else (None, 0)
        if self.module is not None:
            a, b = self._rows()
        else:
            a, b = initial_coefficients(start, degrees if isinstance(start, str) else None)
        key = f"{len(a) - 1},{len(b)}"
        known = (
            {"identity": initial_coefficients("identity", (len(a) - 1, len(b)))}
            if len(a) > 1
            else {}
        )
        known |= {
            name: (fits[key]["numerator"], fits[key]["denominator"])
            for name, fits in STORED.items()
            if key in fits
        }
        if key == "5,4":
            known["released “gelu”"] = RELEASED_GELU
        best = {name: STORED.get(name, {}).get(key, {}).get("max_error", 0.0) for name in TARGETS}
        super().__init__(
            numerator=a.tolist(),
            denominator=b.tolist(),
            target=target,
            best=best,
            quadrature=_rule(),
            presets=[
                [name, *(torch.as_tensor(c, dtype=torch.float64).tolist() for c in pair)]
                for name, pair in known.items()
            ],
        )

    def _rows(self):
        """The rows of the module's parameters that its group uses."""
        a, b = self.module.weight_numerator, self.module.weight_denominator
        groups = math.lcm(len(a), len(b))
        if not 0 <= self.group < groups:
            raise ValueError(f"group={self.group}; the GroupRational has groups 0 to {groups - 1}")
        return a[self.group * len(a) // groups], b[self.group * len(b) // groups]

    @torch.no_grad()
    def write_back(self) -> None:
        """Copies the coefficients into the `GroupRational` that the explorer started from, in place; a row that groups share changes for all.

        Raises:
            ValueError: it did not start from one, or the figure shows the plain denominator, which katlib does not evaluate.
        """
        if self.module is None:
            raise ValueError(
                "there is nothing to write to: the explorer did not start from a GroupRational"
            )
        if not self.safe:
            raise ValueError(
                "the figure shows the plain denominator, which katlib does not evaluate; set explorer.safe = True"
            )
        for row, values in zip(self._rows(), (self.numerator, self.denominator)):
            row.copy_(torch.tensor(values))

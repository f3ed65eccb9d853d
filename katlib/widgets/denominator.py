"""DenominatorExplorer: what one set of coefficients becomes under each of four denominators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import traitlets
from torch import Tensor

from katlib.rational import RELEASED_GELU, initial_coefficients
from katlib.widgets.live import Coefficients, LiveFigure, source
from katlib.widgets.rational import (
    POINTS,
    TARGETS,
    Pair,
    check_target,
    checked_pair,
    preset_list,
    values,
)
from katlib.widgets.still import Curve


class DenominatorExplorer(LiveFigure):
    """P(x) / Q(x) for one numerator and one b under four denominators, with a handle for each b_j.

    They are A: 1 + sum |b_j| |x|^j, which KAT's kernels and katlib evaluate; B: 1 + |sum b_j x^j|,
    which the paper writes; signed: 1 + sum |b_j| x^j, which the released PyTorch fallback
    evaluates; and plain: 1 + sum b_j x^j, without absolute values.

    Args:
        numerator, denominator: a_0 .. a_m and b_1 .. b_n, lists or tensors; by default those of the
            released "gelu".
        target: "identity", "relu", "gelu", "swish" or "tanh"; what the errors on [-3, 3] are
            measured against.

    Attributes: the same, all of them can be assigned; the number of coefficients stays.

    Raises:
        ValueError: an unknown target, or coefficients that are not finite numbers.
        traitlets.TraitError: the same when it is assigned, or another number of coefficients.

    Example:
        >>> katlib.DenominatorExplorer(denominator=[-0.2, 0.1, 0.0, 0.0]).denominator
        [-0.2, 0.1, 0.0, 0.0]
    """

    _esm = source("rational.js", "denominator.js")
    numerator = Coefficients().tag(sync=True)
    denominator = Coefficients().tag(sync=True)
    target = traitlets.Enum(TARGETS).tag(sync=True)
    interval = traitlets.List([-3.0, 3.0]).tag(sync=True)
    presets: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def __init__(
        self,
        numerator: Sequence[float] | Tensor = RELEASED_GELU[0],
        denominator: Sequence[float] | Tensor = RELEASED_GELU[1],
        target: str = "gelu",
    ):
        check_target(target)
        a, b = checked_pair(numerator, denominator)
        self.lengths = {"numerator": len(a), "denominator": len(b)}
        super().__init__(
            numerator=a,
            denominator=b,
            target=target,
            presets=preset_list(_preset_coefficients()),
        )

    def _still(self) -> list[Curve]:
        return [
            Curve(version, POINTS, values(POINTS, self.numerator, self.denominator, version))
            for version in ("A", "B", "signed", "plain")
        ]


def _preset_coefficients() -> dict[str, Pair]:
    """What the buttons of the figure choose, by their labels."""
    identity, _ = initial_coefficients("identity")
    return {
        "released “gelu”": RELEASED_GELU,
        "gelu": initial_coefficients("gelu"),
        "swish": initial_coefficients("swish"),
        "a pole at 2": (identity, [-0.5, 0.0, 0.0, 0.0]),
    }

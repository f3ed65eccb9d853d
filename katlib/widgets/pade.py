"""PadeExplorer: Taylor polynomials and Padé approximants of the same number of coefficients."""

from __future__ import annotations

from typing import Any

import torch
import traitlets

from katlib.fit import TARGETS, Function
from katlib.widgets.live import LiveFigure, shown, source
from katlib.widgets.still import Curve

FUNCTIONS: dict[str, Function] = {
    "swish": TARGETS["swish"],
    "tanh": TARGETS["tanh"],
    "gelu": TARGETS["gelu"],
    "exp": torch.exp,
}
# what the page computes exactly, in fractions
NUMERATORS = range(1, 9)
DENOMINATORS = range(7)


class PadeExplorer(LiveFigure):
    """A function, its Padé approximant at 0 and the Taylor polynomial with as many coefficients.

    They are drawn on the real line. In the complex plane below are the disc in which the Taylor
    series converges, the poles of the function and those of the approximant.

    Args:
        target: "swish", "tanh", "gelu" or "exp".
        degrees: (m, n) of the numerator, 1 to 8, and of the denominator, 0 to 6.

    Attributes: the same. Both can be assigned.

    Raises:
        traitlets.TraitError: an unknown target, or degrees out of range.

    Example:
        >>> explorer = katlib.PadeExplorer("tanh")
        >>> explorer.degrees = [3, 2]  # the figure follows
    """

    _esm = source("rational.js", "pade.js")
    target = traitlets.Enum(list(FUNCTIONS), "swish").tag(sync=True)
    degrees = traitlets.List(traitlets.Int(), [5, 4]).tag(sync=True)

    def __init__(self, target: str = "swish", degrees: tuple[int, int] = (5, 4)):
        super().__init__(target=target, degrees=list(degrees))

    @traitlets.validate("degrees")
    def _check_degrees(self, proposal: Any) -> Any:
        degrees = proposal["value"]
        right = len(degrees) == 2 and degrees[0] in NUMERATORS and degrees[1] in DENOMINATORS
        if not right:
            raise traitlets.TraitError(
                f"degrees={shown(degrees)}; allowed are m from 1 to 8 and n from 0 to 6"
            )
        return degrees

    def _still(self) -> list[Curve]:
        x = torch.linspace(-7.5, 7.5, 81, dtype=torch.float64)
        return [Curve(self.target, x.numpy(), FUNCTIONS[self.target](x).numpy())]

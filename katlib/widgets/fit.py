"""FitExplorer: a fixed and a learned activation, trained on a curve while it is dragged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import traitlets
from torch import Tensor

from katlib.rational import initial_coefficients
from katlib.widgets.live import Coefficients, LiveFigure, source
from katlib.widgets.rational import preset_list
from katlib.widgets.still import Curve

TARGETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bump": lambda x: np.exp(-8 * x**2),
    "corner": np.abs,
    "wave": lambda x: np.sin(8 * x),
}
ACTIVATIONS = ("gelu", "relu", "tanh")
# where the curve has its handles, and how far each of them reaches
HANDLES = np.linspace(-0.9, 0.9, 7)
REACH = 0.3


class FitExplorer(LiveFigure):
    """Two small networks that follow a curve on [-1, 1] while it is dragged.

    The hidden units of one have a fixed activation. Those of the other share a learned one,
    P(x) / Q(x) of degrees (5, 4), which starts as GELU. The page trains both on 101 points, by
    Levenberg-Marquardt steps with a little weight decay, from six starts of which the best goes
    on. It shows their parameters and their errors: the root mean square, as a share of the curve's
    standard deviation.

    Args:
        target: the curve to start from: "bump" exp(-8 x^2), "corner" |x| or "wave" sin(8 x).
        activation: the fixed one: "gelu", "relu" or "tanh".
        units: of the network with the fixed activation, 1 to 12.
        learned_units: of the other one, 1 to 4.
        offsets: 7 numbers that the handles add to the curve, a list or a tensor; by default 0.

    Attributes: the same. All can be assigned.

    Raises:
        traitlets.TraitError: an unknown name, or numbers out of range.

    Example:
        >>> explorer = katlib.FitExplorer("wave", units=4)
        >>> explorer.activation = "tanh"  # the figure trains it again
    """

    _esm = source("rational.js", "slopes.js", "random.js", "fit.js")
    target = traitlets.Enum(list(TARGETS), "bump").tag(sync=True)
    activation = traitlets.Enum(ACTIVATIONS, "gelu").tag(sync=True)
    units = traitlets.Int(1, min=1, max=12).tag(sync=True)
    learned_units = traitlets.Int(1, min=1, max=4).tag(sync=True)
    offsets = Coefficients().tag(sync=True)
    presets: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def __init__(
        self,
        target: str = "bump",
        activation: str = "gelu",
        units: int = 1,
        learned_units: int = 1,
        offsets: Sequence[float] | Tensor | None = None,
    ):
        self.lengths = {"offsets": len(HANDLES)}
        super().__init__(
            target=target,
            activation=activation,
            units=units,
            learned_units=learned_units,
            offsets=np.zeros(len(HANDLES)) if offsets is None else offsets,
            presets=preset_list({"gelu": initial_coefficients("gelu")}),
        )

    def _still(self) -> list[Curve]:
        x = np.linspace(-1, 1, 81)
        away = np.clip((x[:, None] - HANDLES) / REACH, -1, 1)  # (81, 7)
        hills = (1 + np.cos(np.pi * away)) / 2
        curve = TARGETS[self.target](x) + hills @ np.asarray(self.offsets)
        return [Curve("the curve to follow", x, curve)]

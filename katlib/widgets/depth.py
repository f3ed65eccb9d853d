"""DepthExplorer: what many layers do to the strength of a signal and of its gradient."""

from __future__ import annotations

import math

import torch
import traitlets

from katlib.fit import TARGETS
from katlib.init import gain, gauss_hermite
from katlib.widgets.live import Finite, LiveFigure, source
from katlib.widgets.still import Curve

# what the page draws: the most layers, and the largest mean square q
LAYERS = 32
LARGEST = 3.0


class DepthExplorer(LiveFigure):
    """The variance map of the layers y = W F(x), its cobweb, and the signal layer by layer.

    The map m(q) = channels std^2 E[F(sqrt(q) z)^2], z ~ N(0, 1), is what a layer makes of a mean
    square q. Below it are the RMS of the signal after each layer, and of the gradient on its way
    back: in the mean over all weights, and for four inputs in one stack of random weights.

    Args:
        function: "identity", "relu", "gelu", "swish" or "tanh".
        std: of the weights, 0.001 to 1; by default the one that keeps q = 1.
        depth: number of layers, 1 to 32.
        start: mean square of the input, 0.01 to 3.
        channels: of every layer, 8 to 256.

    Attributes: the same. All but the channels can be assigned.

    Raises:
        traitlets.TraitError: an unknown function, or a number out of range.

    Example:
        >>> round(katlib.DepthExplorer("swish").std, 3)
        0.21
    """

    _esm = source("rational.js", "slopes.js", "random.js", "depth.js")
    function = traitlets.Enum(list(TARGETS), "swish").tag(sync=True)
    std = Finite(0.21, min=1e-3, max=1.0).tag(sync=True)
    depth = traitlets.Int(24, min=1, max=LAYERS).tag(sync=True)
    start = Finite(1.0, min=0.01, max=LARGEST).tag(sync=True)
    channels = traitlets.Int(64, min=8, max=256).tag(sync=True)

    def __init__(
        self,
        function: str = "swish",
        std: float | None = None,
        depth: int = 24,
        start: float = 1.0,
        channels: int = 64,
    ):
        # an unknown function, or a number of channels out of range, is the trait's to refuse
        if std is None and function in TARGETS and channels in range(8, 257):
            std = math.sqrt(gain(function) / channels)
        given = {} if std is None else {"std": std}
        super().__init__(function=function, depth=depth, start=start, channels=channels, **given)

    def _still(self) -> list[Curve]:
        nodes, weights = map(torch.from_numpy, gauss_hermite())
        q = torch.linspace(0, LARGEST, 61, dtype=torch.float64)
        values = TARGETS[self.function](q.sqrt()[:, None] * nodes)  # (61, nodes)
        m = self.channels * self.std**2 * values**2 @ weights
        return [Curve("m(q)", q.numpy(), m.numpy()), Curve("q", q.numpy(), q.numpy(), dashed=True)]
